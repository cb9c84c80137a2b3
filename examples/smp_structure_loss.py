"""segmentation-models-pytorch with the structure loss, and layers that learn at their own rates.

pip install segmentation-models-pytorch
python examples/smp_structure_loss.py
"""

import segmentation_models_pytorch as smp
import torch
from torch import Tensor

import fastclip


def lesions(count: int, size: int = 64) -> tuple[Tensor, Tensor]:
    """Dark discs on noise, [B, 3, H, W], and their masks [B, 1, H, W]."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    centres = torch.randint(16, size - 16, (count, 2, 1, 1))
    masks = (((y - centres[:, 0]) ** 2 + (x - centres[:, 1]) ** 2) < 150).float().unsqueeze(1)
    return 0.3 * torch.randn(count, 3, size, size) - masks, masks


def main(steps: int = 25) -> tuple[float, float]:
    """Train a U-Net from scratch; Dice of the last batch before and after."""
    torch.manual_seed(0)
    model = smp.Unet("resnet18", encoder_weights=None, decoder_channels=(64, 32, 32, 16, 16))
    # With encoder_weights="imagenet" the encoder needs a smaller rate: lr_scale does it by name.
    groups = fastclip.param_groups(model, lr=3e-3, weight_decay=1e-4, lr_scale={"encoder.*": 0.5})
    optimizer = torch.optim.AdamW(groups, fused=True)
    criterion = fastclip.StructureLoss()  # instead of smp.losses.DiceLoss("binary")
    dice = []
    for _ in range(steps):
        images, masks = lesions(8)
        logits = model(images)
        loss = criterion(logits, masks)
        optimizer.zero_grad()
        loss.backward()
        fastclip.clip_grads_in_step_(optimizer, 1.0)  # the factor goes into the fused step
        optimizer.step()
        counts = smp.metrics.get_stats(logits.sigmoid(), masks.long(), mode="binary", threshold=0.5)
        dice.append(float(smp.metrics.f1_score(*counts, reduction="micro")))
    print(f"Dice {dice[0]:.3f} -> {dice[-1]:.3f}")
    return dice[0], dice[-1]


if __name__ == "__main__":
    main()
