"""Pairs of images and masks in one folder or two: by name, by class, by case."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from fastclip.transfuse.data.formats import Plane
from fastclip.transfuse.data.names import (
    Found,
    Item,
    Listing,
    children,
    drop_extras,
    image_folder,
    list_files,
    mask_base,
    mask_rank,
    match,
    natural,
    split_of,
)
from fastclip.transfuse.data.samples import DataError, printable


def descend(folder: Path) -> Path:
    """The folder, or the only one in it where an archive has wrapped it."""
    entries = [e for e in folder.iterdir() if not e.name.startswith((".", "__MACOSX"))]
    if len(entries) == 1 and entries[0].is_dir() and entries[0].name == folder.name:
        return descend(entries[0])
    return folder


def find_unit(folder: Path) -> Found | None:
    """The pairs of one folder that is no collection of others; None where it is none."""
    folder = descend(folder)
    kids = children(folder)
    images = [kid for kid in kids if image_folder(kid.name)]
    ranked = [(rank, kid) for kid in kids if (rank := mask_rank(kid.name)) is not None]
    if images and ranked:
        return _pair_folders(folder, images, ranked)
    if images and not list_files(images[0], deep=True).files:
        raise DataError(f"{printable(images[0])} holds no images")
    return (
        find_cases(folder, kids)
        or find_flat(folder)
        or next((found for kid in images if (found := find_flat(kid))), None)
    )


def _pair_folders(folder: Path, images: list[Path], ranked: list[tuple[int, Path]]) -> Found:
    best = min(rank for rank, _ in ranked)
    masks = [kid for rank, kid in ranked if rank == best]
    for several in (images, masks):
        if len(several) > 1:
            names = " and ".join(kid.name for kid in several)
            raise DataError(
                f"{printable(folder)} holds {printable(names)}: which of them is meant? Move the "
                "others elsewhere, or give a list of image,mask"
            )
    found = find_pairs(images[0], masks[0])
    for rank, kid in ranked:
        if rank != best:
            found.skipped[f"files in {printable(kid.name)}/"] += len(list_files(kid).files)
    return found


def find_pairs(image_folder: Path, mask_folder: Path) -> Found:
    """Match the files of two folders, and of the folders in them."""
    images = list_files(descend(image_folder), deep=True)
    masks = list_files(descend(mask_folder), deep=True)
    layout = f"{printable(image_folder.name)}/ and {printable(mask_folder.name)}/"
    if not images.files:
        raise DataError(f"{printable(image_folder)} holds no images")
    drop_extras(images)
    drop_extras(masks)
    found = _in_folders(images, masks, layout) or _by_stem(images, masks, layout)
    found.problems += images.problems + masks.problems
    found.skipped.update(images.skipped)
    found.skipped.update(masks.skipped)
    return found


def _by_stem(images: Listing, masks: Listing, layout: str) -> Found:
    found = Found(layout, [])
    claims = match(images.files, masks.files)
    taken: set[str] = set()
    for stem, image in sorted(images.files.items()):
        stems = claims.get(stem, [])
        taken.update(stems)
        if not stems:
            found.problem(
                f"{printable(image)} has no mask: add {printable(masks.folder / stem)}.png, or "
                "remove the image"
            )
        elif len(stems) > 1:
            names = " and ".join(printable(masks.files[mask]) for mask in stems)
            found.problem(f"{printable(image)} has several masks, {names}: leave one")
        else:
            found.items.append(_item(stem, image, (Plane(masks.files[stems[0]]),)))
    _report_orphans(found, images, masks.files, taken)
    return found


def _item(stem: str, image: Path, masks: tuple[Plane, ...], per_class: bool = False) -> Item:
    """An item; the first folder of its stem may say which split it belongs to."""
    first, _, rest = stem.partition("/")
    split = split_of(first) if rest else None
    name = printable(rest if split else stem)
    return Item(name, Plane(image), masks, name, split, per_class=per_class)


def _in_folders(images: Listing, masks: Listing, layout: str) -> Found | None:
    """Masks in one folder per class, or in one per image with a file per object."""
    if any("/" in stem for stem in images.files) or not all("/" in s for s in masks.files):
        return None
    groups: defaultdict[str, dict[str, Path]] = defaultdict(dict)
    for stem, file in masks.files.items():
        group, _, name = stem.partition("/")
        groups[group][name] = file
    if not groups or any(split_of(group) for group in groups):
        return None
    if set(groups) <= set(images.files):
        found = Found(f"{layout}, a folder of objects per image", [])
        for stem, image in sorted(images.files.items()):
            planes = tuple(Plane(file) for _, file in sorted(groups[stem].items()))
            if planes:
                found.items.append(_item(stem, image, planes))
            else:
                found.problem(f"{printable(image)} has no mask: add one, or remove it")
        return found
    order = sorted(groups, key=natural)
    found = Found(f"{layout}, a folder per class: {printable(', '.join(order))}", [])
    claims = {group: match(images.files, groups[group]) for group in order}
    for stem, image in sorted(images.files.items()):
        files = [groups[g][claims[g][stem][0]] for g in order if stem in claims[g]]
        if len(files) < len(order):
            absent = next(g for g in order if stem not in claims[g])
            found.problem(
                f"{printable(image)} has no mask in {printable(masks.folder / absent)}: add one, "
                "or remove the image"
            )
        else:
            found.items.append(_item(stem, image, tuple(map(Plane, files)), per_class=True))
    for group in order:
        taken = {mask for stems in claims[group].values() for mask in stems}
        _report_orphans(found, images, groups[group], taken)
    return found


def _report_orphans(found: Found, images: Listing, masks: dict[str, Path], taken: set[str]) -> None:
    """Masks that belong to no image."""
    for stem, mask in masks.items():
        if stem not in taken:
            found.problem(
                f"{printable(mask)} has no image in {printable(images.folder)}: add it, or remove "
                "the mask"
            )


def find_cases(folder: Path, kids: list[Path]) -> Found | None:
    """One folder per case: an image in `images`, all its objects in `masks`."""
    found = Found("a folder per case, with a mask per object", [])
    for kid in kids:
        inner = children(kid)
        images = [k for k in inner if image_folder(k.name)]
        masks = [k for k in inner if mask_rank(k.name) is not None]
        if len(images) != 1 or len(masks) != 1:
            return None
        listed, objects = list_files(images[0]), list_files(masks[0], deep=True)
        if len(listed.files) != 1:
            return None
        found.skipped.update(listed.skipped)
        found.skipped.update(objects.skipped)
        found.problems += objects.problems
        (image,) = listed.files.values()
        planes = tuple(Plane(file) for file in objects.files.values())
        name = printable(kid.name)
        if planes:
            found.items.append(Item(name, Plane(image), planes, name))
        else:
            found.problem(f"{printable(masks[0])} holds no mask of {name}: add one")
    return found if found.items else None


def find_flat(folder: Path) -> Found | None:
    """Images and masks in one folder, told apart by the ending or prefix of the masks."""
    listing = list_files(folder)
    drop_extras(listing)
    files = listing.files
    bases = {stem: mask_base(stem) for stem in files}
    masks = {stem: file for stem, file in files.items() if bases[stem] in files}
    if not masks:  # ISIC's own names end in nothing that the image has
        return None
    images = Listing(folder, {stem: file for stem, file in files.items() if stem not in masks})
    found = _by_stem(images, Listing(folder, masks), "one folder, masks by their names")
    found.problems += listing.problems
    found.skipped.update(listing.skipped)
    return found
