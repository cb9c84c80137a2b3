"""What all masks of a set together say, and whether they agree with each other."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from fastclip.transfuse.data.decode import decode
from fastclip.transfuse.data.masks import OPAQUE_BLACK, list_colours
from fastclip.transfuse.data.names import Item
from fastclip.transfuse.data.options import ReadOptions
from fastclip.transfuse.data.samples import DataError

MOSTLY = 0.9  # share of the object beyond which masks are perhaps inverted


@dataclass
class Report:
    """How one sample was read: the rule of its mask, the object's share per class, remarks."""

    kind: str
    shares: list[float]
    notes: list[str] = field(default_factory=list)
    root: str = ""
    ignored_share: float = 0.0


def summarise(names: list[str], reports: list[Report], options: ReadOptions) -> list[str]:
    """Lines that state how images and masks were read."""
    kinds = Counter(report.kind for report in reports)
    held = ", ".join(f"{kind} ({count})" for kind, count in kinds.most_common())
    count = len(reports)
    empty = sum(not any(report.shares) for report in reports)
    line = f"masks: {held}; {count - empty} with an object, {empty} empty"
    for number in range(options.masks.channels):
        share = sum(report.shares[number] for report in reports) / count
        of = f"class {number + 1} on" if options.masks.channels > 1 else "object on"
        line += f"; {of} {share:.1%} of the pixels"
        if share == 0 and options.masks.channels > 1:
            line += " (in no mask)"
    if options.masks.ignore is not None:
        ignored = sum(report.ignored_share for report in reports) / count
        line += f"; {ignored:.1%} ignored"
    notes = [line]
    mean = sum(max(report.shares) for report in reports) / count
    if mean > MOSTLY:
        notes.append("the object fills nearly every mask: --invert if the object is the dark part")
    if empty == count:
        notes.append("every mask is empty")
    remarks: defaultdict[str, list[str]] = defaultdict(list)
    for name, report in zip(names, reports, strict=True):
        for note in report.notes:
            remarks[note].append(name)
    notes += [f"images: {text}: {len(of)}, e.g. {of[0]}" for text, of in remarks.items()]
    return notes


def left_out_note(count: int) -> str:
    """One line about files that are not part of the samples."""
    return f"left out by --skip-bad: {count}"


def check_set(items: list[Item], reports: Sequence[Report | None], options: ReadOptions) -> None:
    """Raise DataError where masks that are plain one by one contradict each other."""
    named = [(item, report) for item, report in zip(items, reports, strict=True) if report]
    first: dict[tuple[str, str], Item] = {}
    for item, report in named:
        first.setdefault((report.root, report.kind), item)
    for root in {report.root for _, report in named}:
        one, white = first.get((root, "0/1")), first.get((root, "0/255"))
        if one and white:
            raise DataError(
                f"{one.masks[0]} holds 0 and 1, and {white.masks[0]} 0 and 255: what 255 means in "
                "one set with 1 is not known. Say --ignore 255 (pixels that do not count) or "
                "store all masks as 0 and 255"
            )
        alpha, black = first.get((root, "alpha")), first.get((root, OPAQUE_BLACK))
        if alpha and black:
            raise DataError(
                f"{alpha.masks[0]} holds its mask in the alpha channel, and {black.masks[0]} is "
                "black and opaque: say --mask-colors alpha, or store gray masks"
            )
    if options.masks.colors and named and not any(any(report.shares) for _, report in named):
        item = named[0][0]
        pixels = decode(item.masks[0])
        seen = pixels.pixels if pixels.palette is None else pixels.palette[pixels.pixels]
        held = f"; {item.masks[0]} holds {list_colours(seen)}" if seen.ndim == 3 else ""
        raise DataError(f"no mask holds {' or '.join(options.masks.colors)}{held}")
