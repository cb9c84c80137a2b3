"""Augmentation of whole batches: exact maps, torchvision's colours, no image minds the others."""

from __future__ import annotations

import needs_train  # noqa: F401
import pytest
import torch
from torchvision.transforms.v2 import functional

from fastclip.transfuse.augmentation import batch
from fastclip.transfuse.augmentation.batch import augment_batch
from fastclip.transfuse.augmentation.colour import jitter, turn_hue
from fastclip.transfuse.augmentation.draws import Draws, draw, mix_seed
from fastclip.transfuse.augmentation.scales import rescale, scale_of_step

STILL = {"angle": 0.0, "shift_x": 0.0, "shift_y": 0.0, "scale": 1.0, "flip_x": 1.0, "flip_y": 1.0}
COLOURS = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}


def pictures(count: int, seed: int = 0, size: tuple[int, int] = (32, 48)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)


def drawn(monkeypatch: pytest.MonkeyPatch, **values: float) -> None:
    """Let every image draw these numbers."""
    every = {**STILL, **COLOURS, **values}
    one = Draws(
        **{name: torch.tensor([value]) for name, value in every.items()},
        jittered=torch.tensor([any(name in COLOURS for name in values)]),
    )

    def draw(seeds: object) -> Draws:
        return one

    monkeypatch.setattr(batch, "draw", draw)


@pytest.mark.parametrize(("axis", "name"), [(-1, "flip_x"), (-2, "flip_y")])
def test_a_flip_is_exact(monkeypatch: pytest.MonkeyPatch, axis: int, name: str) -> None:
    drawn(monkeypatch, **{name: -1.0})
    image = pictures(1)
    moved, mask = augment_batch(image, image[:, :1], [0])
    assert torch.equal(moved, image.flip(axis))
    assert torch.equal(mask, image[:, :1].flip(axis))


def test_nothing_drawn_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn(monkeypatch)
    image = pictures(1)
    assert torch.equal(augment_batch(image, image[:, :1], [0])[0], image)


def test_a_shift_moves_by_its_share_and_fills_with_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn(monkeypatch, shift_x=0.125, shift_y=-0.25)  # of 48 and of 32: 6 and -8 pixels
    image = pictures(1)
    moved, _ = augment_batch(image, image[:, :1], [0])
    assert torch.equal(moved[..., :24, 6:], image[..., 8:, :-6])
    assert not moved[..., :6].any()
    assert not moved[..., 24:, :].any()


def test_rotation_and_scale_agree_with_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn(monkeypatch, angle=torch.tensor(20.0).deg2rad().item(), scale=1.1)
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(48.0), indexing="ij")
    smooth = (100 + 40 * (x / 9).sin() + 40 * (y / 7).cos()).to(torch.uint8)
    image = smooth.expand(1, 3, -1, -1)
    moved, _ = augment_batch(image, image[:, :1], [0])
    bilinear = functional.InterpolationMode.BILINEAR
    theirs = functional.affine(image, 20.0, [0, 0], 1.1, [0.0, 0.0], interpolation=bilinear)
    inside = (slice(None), slice(None), slice(8, 24), slice(12, 36))
    assert (moved[inside].int() - theirs[inside].int()).abs().max() <= 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("brightness", 1.2), ("contrast", 0.8), ("saturation", 1.2), ("hue", -0.17), ("hue", 0.2)],
)
def test_each_colour_change_is_that_of_torchvision(name: str, value: float) -> None:
    images = pictures(3).float() / 255
    images[0, :, :4] = images[0, :1, :4]  # grays have no hue
    factors = {key: torch.full((3,), number) for key, number in {**COLOURS, name: value}.items()}
    ours = jitter(images, **factors)
    theirs = getattr(functional, f"adjust_{name}")(images, value)
    assert torch.allclose(ours, theirs, atol=2e-5)


def test_a_whole_turn_of_the_hue_changes_nothing() -> None:
    images = pictures(2).float() / 255
    assert torch.allclose(turn_hue(images, torch.ones(2)), images, atol=1e-5)


@pytest.mark.parametrize("chunk", [2, 100])
def test_an_image_looks_the_same_in_every_batch(
    monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(batch, "AT_A_TIME", chunk)
    images, seeds = pictures(11, size=(48, 80)), [mix_seed(3, 1, row) for row in range(11)]
    masks = (images[:, :1] > 127).to(torch.uint8) * 255
    whole = augment_batch(images, masks, seeds)
    changed = 0
    for row in (7, 2, 10, 0):
        alone = augment_batch(images[row : row + 1], masks[row : row + 1], seeds[row : row + 1])
        assert torch.equal(alone[0][0], whole[0][row])
        assert torch.equal(alone[1][0], whole[1][row])
        changed += not torch.equal(whole[0][row], images[row])
    assert changed >= 3


def test_draws_stay_in_the_published_ranges_and_fill_them() -> None:
    draws = draw([mix_seed(0, epoch, row) for epoch in range(20) for row in range(100)])
    moved = draws.angle != 0
    assert 0.45 < float(moved.float().mean()) < 0.55
    assert 0.45 < float(draws.jittered.float().mean()) < 0.55
    assert 0.45 < float((draws.flip_x < 0).float().mean()) < 0.55
    assert 24 < float(draws.angle.rad2deg().abs().max()) <= 25
    for values, middle, reach in (
        (draws.shift_x, 0.0, 0.15),
        (draws.scale, 1.0, 0.15),
        (draws.contrast, 1.0, 0.2),
        (draws.hue, 0.0, 0.2),
    ):
        assert 0.95 * reach < float((values - middle).abs().max()) <= reach + 1e-6
    other = draw([mix_seed(1, 0, 0)])
    assert not torch.equal(other.hue, draw([mix_seed(0, 0, 0)]).hue)


def test_each_step_draws_one_of_the_scales() -> None:
    scales = (0.75, 1.0, 1.25)
    drawn_scales = [scale_of_step(scales, 5, step) for step in range(60)]
    assert set(drawn_scales) == set(scales)
    assert drawn_scales == [scale_of_step(scales, 5, step) for step in range(60)]
    assert scale_of_step((), 5, 3) == 1.0


def test_rescaling_keeps_sides_divisible_by_16() -> None:
    image = torch.full((1, 3, 48, 80), 200, dtype=torch.uint8)
    mask = torch.zeros(1, 1, 48, 80, dtype=torch.uint8)
    mask[..., 40:] = 255
    for scale, size in ((0.75, (32, 64)), (1.0, (48, 80)), (1.25, (64, 96)), (0.1, (16, 16))):
        images, masks = rescale(image, mask, scale)
        assert images.shape[-2:] == masks.shape[-2:] == size
        assert (images == 200).all()
        assert 100 < masks.float().mean() < 155
    assert rescale(image, mask, 1.0)[0] is image
