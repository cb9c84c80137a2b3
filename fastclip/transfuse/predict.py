"""Masks and overlays for a folder of images."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from fastclip.transfuse.augment import normalise
from fastclip.transfuse.checkpoint import load_model
from fastclip.transfuse.config import PredictConfig, image_size, torch_device, usage_errors
from fastclip.transfuse.data import Size, by_stem, list_images, open_image, resize
from fastclip.transfuse.model import TransFuse
from fastclip.transfuse.pictures import PREDICTION, tint, write_png


@torch.no_grad()
def predict_mask(
    model: TransFuse, image: np.ndarray, size: Size, threshold: float = 0.5
) -> np.ndarray:
    """Segment one image at the size of training, and bring the mask back to the image's.

    Args:
        model: in eval mode, on any device.
        image: uint8 [H, W, 3].
        size: (H, W) that the model was trained at.
        threshold: probability from which a pixel belongs to the mask.

    Returns:
        bool [H, W].
    """
    from PIL import Image

    device = next(model.parameters()).device
    small = torch.from_numpy(resize(Image.fromarray(image), size)).permute(2, 0, 1)[None]
    logits = model(normalise(small.to(device)))[2]
    logits = F.interpolate(logits, image.shape[:2], mode="bilinear", align_corners=False)
    return (logits[0, 0].sigmoid() >= threshold).cpu().numpy()


def run_predict(config: PredictConfig) -> int:
    """`fastclip predict`: one mask and one overlay per image."""
    with usage_errors():
        device = torch_device(config.device)
        if not 0 < config.threshold < 1:
            raise ValueError(f"--threshold must be between 0 and 1, got {config.threshold}")
        files = list(by_stem(list_images(config.images)).values())  # two masks of a name collide
        model, content = load_model(config.checkpoint)
        size = image_size(content["config"]["size"], content["model"])
        config.out.mkdir(parents=True, exist_ok=True)
    model.to(device)
    for file in files:
        with usage_errors():
            image = np.array(open_image(file).convert("RGB"))
        mask = predict_mask(model, image, size, config.threshold)
        write_png(config.out / f"{file.stem}_mask.png", mask.astype(np.uint8) * 255)
        if config.overlay:
            overlay = tint(image, mask, PREDICTION)
            write_png(config.out / f"{file.stem}_overlay.png", overlay)
    print(f"{len(files)} masks in {config.out}")
    return 0
