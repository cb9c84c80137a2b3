"""PraNet-style training with the loss swapped in: four heads, one call, the same numbers.

python examples/pranet.py
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastclip


def published_loss(pred: Tensor, mask: Tensor) -> Tensor:
    """PraNet's `structure_loss`. Its `reduce='none'` averages, so the BCE is a plain mean."""
    weit = 1 + 5 * torch.abs(F.avg_pool2d(mask, kernel_size=31, stride=1, padding=15) - mask)
    wbce = F.binary_cross_entropy_with_logits(pred, mask)
    wbce = (weit * wbce).sum(dim=(2, 3)) / weit.sum(dim=(2, 3))
    pred = torch.sigmoid(pred)
    inter = ((pred * mask) * weit).sum(dim=(2, 3))
    union = ((pred + mask) * weit).sum(dim=(2, 3))
    wiou = 1 - (inter + 1) / (union - inter + 1)
    return (wbce + wiou).mean()


class FourHeads(nn.Module):
    """Stands for PraNet: features, and four side outputs at the size of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.heads = nn.ModuleList(nn.Conv2d(16, 1, k, padding=k // 2) for k in (1, 3, 5, 7))

    def forward(self, images: Tensor) -> list[Tensor]:
        features = self.features(images)
        return [head(features) for head in self.heads]


def polyps(count: int, size: int = 64) -> tuple[Tensor, Tensor]:
    """Bright discs on noise, [B, 3, H, W], and their masks [B, 1, H, W]."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    centres = torch.randint(16, size - 16, (count, 2, 1, 1))
    masks = (((y - centres[:, 0]) ** 2 + (x - centres[:, 1]) ** 2) < 120).float().unsqueeze(1)
    return masks + 0.5 * torch.randn(count, 3, size, size), masks


def main(steps: int = 30) -> tuple[float, float]:
    """Train with the fused loss, checked against the published one; first and last loss."""
    torch.manual_seed(0)
    model = FourHeads()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        images, masks = polyps(8)
        heads = model(images)
        # Was: loss = sum(structure_loss(head, masks) for head in heads)
        loss = fastclip.structure_loss(heads, masks, bce="mean", head_weights=(1, 1, 1, 1))
        expected = sum(published_loss(head, masks) for head in heads)
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
        optimizer.zero_grad()
        loss.backward()
        fastclip.clip_grad_value_(model.parameters(), 0.5)  # as PraNet's clip_gradient
        optimizer.step()
        losses.append(loss.item())
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}, equal to the published loss at each step")
    return losses[0], losses[-1]


if __name__ == "__main__":
    main()
