"""Folders, arrays, synthetic pairs, augmentation; and what damaged data says."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import needs_train  # noqa: F401
import numpy as np
import pytest
import torch
from PIL import Image

from fastclip.transfuse.config.train import TrainConfig
from fastclip.transfuse.data import DataError, Samples, load_split
from fastclip.transfuse.data.synthetic import synthetic_samples
from fastclip.transfuse.network.normalise import normalise
from fastclip.transfuse.training.batches import TrainingBatches, steps_per_epoch

SIZE = (32, 48)


def write_pair(root: Path, stem: str, size: tuple[int, int] = (40, 60), ending: str = "") -> None:
    """A gray image with a bright left half, and a 1-bit mask of that half."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    half = np.zeros(size, np.uint8)
    half[:, : size[1] // 2] = 255
    Image.fromarray(np.stack([half // 2 + 50] * 3, -1)).save(root / "images" / f"{stem}.jpg")
    Image.fromarray(half).convert("1").save(root / "masks" / f"{stem}{ending}.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "skin"
    for split, count in (("train", 3), ("val", 2)):
        for row in range(count):
            write_pair(root / split, f"{split}{row}")
    return root


def test_pairs_are_matched_resized_and_named(folder: Path) -> None:
    write_pair(folder / "train", "odd", size=(64, 31), ending="_segmentation")
    samples = load_split(str(folder), "train", SIZE)
    assert samples.names == ["odd", "train0", "train1", "train2"]
    assert samples.source == "skin train"
    assert samples.images.shape == (4, 3, *SIZE)
    assert samples.masks.shape == (4, 1, *SIZE)
    assert samples.images.dtype == samples.masks.dtype == torch.uint8
    for image, mask in zip(samples.images, samples.masks, strict=True):
        assert (mask[0, :, :20] == 255).all()
        assert (mask[0, :, 28:] == 0).all()
        assert image[:, :, :18].float().mean() > 160 > 80 > image[:, :, 30:].float().mean()
    assert len(load_split(str(folder), "val", SIZE)) == 2


@pytest.mark.parametrize("values", [(0, 1), (0, 255)])
@pytest.mark.parametrize("mode", ["L", "P", "RGB"])
def test_masks_of_every_kind(tmp_path: Path, values: tuple[int, int], mode: str) -> None:
    write_pair(tmp_path, "a", size=SIZE)
    mask = np.full(SIZE, values[0], np.uint8)
    mask[:5] = values[1]
    picture = Image.fromarray(mask)
    if mode == "P":
        # Class numbers under a palette whose colours mean nothing: the numbers count.
        picture.putpalette([90, 90, 90] * 256)
    elif mode == "RGB":
        picture = Image.fromarray(np.stack([mask] * 3, -1))
    picture.save(tmp_path / "masks" / "a.png")
    loaded = load_split(str(tmp_path), "all", SIZE).masks[0, 0]
    assert (loaded[:5] == 255).all()
    assert (loaded[5:] == 0).all()


def test_one_folder_is_parted_by_seed(tmp_path: Path) -> None:
    for row in range(10):
        write_pair(tmp_path, f"{row}")

    def names(split: str, seed: int) -> set[str]:
        return set(load_split(str(tmp_path), split, SIZE, seed=seed, val_fraction=0.3).names)

    assert names("train", 0) | names("val", 0) == {str(row) for row in range(10)}
    assert not names("train", 0) & names("val", 0)
    assert names("val", 0) == names("val", 0)
    assert len({frozenset(names("val", seed)) for seed in range(5)}) > 1


def test_published_arrays(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (3, *SIZE, 3), np.uint8)
    masks = (images[..., 0] > 99).astype(np.uint8)
    np.save(tmp_path / "data_train.npy", images)
    np.save(tmp_path / "mask_train.npy", masks)
    samples = load_split(str(tmp_path), "train", SIZE)
    assert np.array_equal(samples.images.permute(0, 2, 3, 1).numpy(), images)
    assert np.array_equal(samples.masks[:, 0].numpy(), masks * 255)
    assert load_split(str(tmp_path), "train", (16, 16)).images.shape == (3, 3, 16, 16)

    np.save(tmp_path / "mask_train.npy", masks[:2])
    with pytest.raises(DataError, match=r"mask_train.npy is \[2, 32, 48\]"):
        load_split(str(tmp_path), "train", SIZE)
    np.save(tmp_path / "mask_train.npy", masks.astype(float))
    with pytest.raises(DataError, match=r"mask_train.npy holds float64: expected uint8"):
        load_split(str(tmp_path), "train", SIZE)
    (tmp_path / "mask_train.npy").write_bytes(b"not an array")
    with pytest.raises(DataError, match=r"mask_train.npy cannot be read"):
        load_split(str(tmp_path), "train", SIZE)


def truncate(file: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    Image.fromarray(noise).save(file)
    file.write_bytes(file.read_bytes()[:-200])


def gray_levels(file: Path) -> None:
    Image.fromarray(np.full((40, 60), 7, np.uint8)).save(file)


def sixteen_bits(file: Path) -> None:
    Image.fromarray(np.full((40, 60), 7, np.uint16)).save(file)


DAMAGE: list[tuple[str, Callable[[Path], object], str]] = [
    ("images/train1.jpg", truncate, r"train1\.jpg cannot be read .*truncated.*: replace it"),
    ("images/train1.jpg", lambda f: f.write_bytes(b""), r"train1\.jpg cannot be read"),
    ("masks/train1.png", lambda f: f.write_text("x"), r"train1\.png cannot be read"),
    ("masks/train1.png", gray_levels, r"train1\.png holds values 0\.\.7: a mask is 0 and 1"),
    ("masks/train1.png", sixteen_bits, r"train1\.png holds values 0\.\.7: a mask is 0 and 1"),
    ("masks/train1.png", Path.unlink, r"images/train1\.jpg has no mask: add .*masks/train1\.png"),
    ("images/train1.jpg", Path.unlink, r"masks/train1\.png has no image in .*images"),
]


@pytest.mark.parametrize(("file", "damage", "message"), DAMAGE)
def test_damage_is_named(
    folder: Path, file: str, damage: Callable[[Path], object], message: str
) -> None:
    damage(folder / "train" / file)
    with pytest.raises(DataError, match=message):
        load_split(str(folder), "train", SIZE)


def test_sizes_twins_and_empty_folders_are_named(folder: Path, tmp_path: Path) -> None:
    mask = folder / "train" / "masks" / "train2.png"
    Image.new("1", (50, 40)).save(mask)
    with pytest.raises(DataError, match=r"train2\.jpg is 40x60 and .*train2\.png is 40x50"):
        load_split(str(folder), "train", SIZE)
    image = folder / "val" / "images" / "val0.jpg"
    image.with_suffix(".png").write_bytes(image.read_bytes())
    with pytest.raises(DataError, match=r"val0\.jpg and .*val0\.png share one name"):
        load_split(str(folder), "val", SIZE)
    with pytest.raises(DataError, match="no test data there; expected test/images"):
        load_split(str(folder), "test", SIZE)
    with pytest.raises(DataError, match="absent: no such folder"):
        load_split(str(tmp_path / "absent"), "train", SIZE)
    (tmp_path / "empty" / "images").mkdir(parents=True)
    with pytest.raises(DataError, match=r"empty/images holds no images"):
        load_split(str(tmp_path / "empty"), "train", SIZE)
    write_pair(tmp_path / "one", "single")
    with pytest.raises(DataError, match=r"1 image\(s\) cannot be parted"):
        load_split(str(tmp_path / "one"), "train", SIZE)


def test_more_than_memory_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastclip.transfuse.data.decoder._available_bytes", lambda: 20_000)
    with pytest.raises(DataError, match=r"3 images at 32x48 need .* smaller --size"):
        load_split(str(folder), "train", SIZE)


def test_synthetic_pairs_are_lesions_and_deterministic() -> None:
    first, again = synthetic_samples(12, (48, 64), seed=3), synthetic_samples(12, (48, 64), seed=3)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.masks, again.masks)
    assert not torch.equal(first.images, synthetic_samples(12, (48, 64), seed=4).images)
    assert first.source == "synthetic (seed 3)"
    assert set(first.masks.unique().tolist()) == {0, 255}
    for image, mask in zip(first.images.float(), first.masks[:, 0] > 0, strict=True):
        assert 0.01 < mask.float().mean() < 0.9
        assert image[:, mask].mean() < image[:, ~mask].mean() - 10  # lesions are darker


def halves(count: int) -> Samples:
    """Image equals mask in every channel: what moves one must move the other."""
    masks = torch.zeros(count, 1, 32, 32, dtype=torch.uint8)
    masks[:, :, 8:20, 4:16] = 255
    return Samples(masks.expand(-1, 3, -1, -1).clone(), masks, [str(i) for i in range(count)], "")


@pytest.mark.parametrize("where", ["workers", "device"])
def test_augmentation_moves_image_and_mask_alike(where: Literal["workers", "device"]) -> None:
    samples = halves(24)
    config = TrainConfig(data="synthetic", batch_size=24, augment_on=where)
    ((images, masks),) = TrainingBatches(samples, config, torch.device("cpu")).epoch(0)
    moved = sum(not torch.equal(mask, samples.masks[0]) for mask in masks)
    assert moved > 12
    for image, mask in zip(images.float().mean(1), masks[:, 0], strict=True):
        # Jitter shades and bilinear sampling blurs the image; its bright part stays the mask.
        if mask.any():
            bright = image > 0.5 * image.max()
            assert (bright == (mask > 127)).float().mean() > 0.97


@pytest.mark.parametrize("where", ["workers", "device"])
def test_batches_depend_on_seed_and_epoch_alone(where: Literal["workers", "device"]) -> None:
    samples = synthetic_samples(10, (32, 32), seed=0)

    def batches(epoch: int, start: int = 0, workers: int = 0) -> list[torch.Tensor]:
        torch.rand(7)  # the global generator has no part in it
        config = TrainConfig(data="synthetic", batch_size=3, seed=1, workers=workers)
        batches = TrainingBatches(samples, replace(config, augment_on=where), torch.device("cpu"))
        return [images for images, _ in batches.epoch(epoch, start)]

    whole = batches(0)
    assert len(whole) == steps_per_epoch(10, 3) == 3
    assert all(map(torch.equal, whole, batches(0)))
    assert all(map(torch.equal, whole[1:], batches(0, start=1)))
    assert all(map(torch.equal, whole, batches(0, workers=2)))
    assert not torch.equal(whole[0], batches(1)[0])
    before = torch.get_rng_state()
    batches(0)
    torch.set_rng_state(before)
    torch.rand(7)
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    batches(0)
    assert torch.equal(torch.get_rng_state(), after)  # nothing but the rand(7) above was drawn
    assert steps_per_epoch(2, 16) == 1


def test_normalise() -> None:
    images = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    images[:, 0] = 255
    out = normalise(images)
    assert torch.allclose(out[0, 0], torch.tensor((1 - 0.485) / 0.229))
    assert torch.allclose(out[0, 2], torch.tensor(-0.406 / 0.225))


@pytest.mark.skipif("FASTCLIP_DATA" not in os.environ, reason="FASTCLIP_DATA names no data")
def test_real_lesions() -> None:
    data = os.environ.get("FASTCLIP_DATA", "")
    samples = load_split(data, "val", (96, 128))
    assert len(samples) >= 50
    inside = (samples.masks >= 128).float().mean(dim=(1, 2, 3))
    assert 0.05 < inside.mean() < 0.6
    assert inside.min() > 0
