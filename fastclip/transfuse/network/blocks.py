"""Building blocks of TransFuse: convolutions, attention gate, decoder step, BiFusion.

Source: Zhang, Liu, Hu, "TransFuse: Fusing Transformers and CNNs for Medical Image
Segmentation", MICCAI 2021 (arXiv 2102.08005). Attribute names are the keys of the published
checkpoints.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Conv(nn.Module):
    """Convolution of stride 1 that keeps the size, then BatchNorm and ReLU where asked for."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        bn: bool = False,
        relu: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__()
        padding = (kernel_size - 1) // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, bias=bias)
        self.bn = nn.BatchNorm2d(out_channels) if bn else None
        self.relu = nn.ReLU(inplace=True) if relu else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, out, H, W]."""
        x = self.conv(x)
        if self.bn is not None:
            x = self.bn(x)
        return x if self.relu is None else self.relu(x)


class DoubleConv(nn.Module):
    """Two 3x3 convolutions beside a 1x1 shortcut: ReLU(double_conv(x) + identity(x))."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.double_conv = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
            nn.BatchNorm2d(out_channels),
        )
        self.identity = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1), nn.BatchNorm2d(out_channels)
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, out, H, W]."""
        return self.relu(self.double_conv(x) + self.identity(x))


class Residual(nn.Module):
    """Pre-activation bottleneck, with a 1x1 shortcut where the channel count changes.

    The keys of `skip_layer` exist in both cases, as in the published checkpoints; where the
    shortcut is the input itself they are frozen, so that no parameter waits for a gradient
    which never comes (DistributedDataParallel would).
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.relu = nn.ReLU(inplace=True)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = Conv(in_channels, half, 1)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv2 = Conv(half, half, 3)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv3 = Conv(half, out_channels, 1)
        self.skip_layer = Conv(in_channels, out_channels, 1)
        self.need_skip = in_channels != out_channels
        if not self.need_skip:
            self.skip_layer.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, out, H, W]."""
        shortcut = self.skip_layer(x) if self.need_skip else x
        x = self.conv1(self.relu(self.bn1(x)))
        x = self.conv2(self.relu(self.bn2(x)))
        return self.conv3(self.relu(self.bn3(x))) + shortcut


class AttentionGate(nn.Module):
    """Additive attention gate: x * sigmoid(psi(ReLU(W_g(g) + W_x(x))))."""

    def __init__(self, gate_channels: int, in_channels: int, hidden_channels: int) -> None:
        super().__init__()

        def projection(channels: int, out: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(channels, out, 1), nn.BatchNorm2d(out))

        self.W_g = projection(gate_channels, hidden_channels)
        self.W_x = projection(in_channels, hidden_channels)
        self.psi = projection(hidden_channels, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, g: Tensor, x: Tensor) -> Tensor:
        """g [B, gate, H, W], x [B, in, H, W] -> [B, in, H, W]."""
        return x * torch.sigmoid(self.psi(self.relu(self.W_g(g) + self.W_x(x))))


class Up(nn.Module):
    """Bilinear x2, then, where there is a skip, gate and concatenate it, then DoubleConv."""

    def __init__(
        self, in_channels: int, out_channels: int, skip_channels: int = 0, *, attn: bool = False
    ) -> None:
        super().__init__()
        self.conv = DoubleConv(in_channels + skip_channels, out_channels)
        self.attn_block = AttentionGate(in_channels, skip_channels, out_channels) if attn else None

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """x [B, in, h, w], skip [B, skip, H, W] -> [B, out, H, W] ([B, out, 2h, 2w] alone)."""
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        if skip is not None:
            dy, dx = skip.shape[-2] - x.shape[-2], skip.shape[-1] - x.shape[-1]
            if dy or dx:
                x = F.pad(x, (dx // 2, dx - dx // 2, dy // 2, dy - dy // 2))
            if self.attn_block is not None:
                skip = self.attn_block(x, skip)
            x = torch.cat([skip, x], dim=1)
        return self.conv(x)


class BiFusion(nn.Module):
    """Fuse a CNN map and a transformer map of one size.

    Spatial attention on the CNN map, channel attention on the transformer map, and their
    bilinear (Hadamard) product, concatenated and mixed by a residual block.
    """

    def __init__(
        self,
        cnn_channels: int,
        transformer_channels: int,
        reduction: int,
        hidden_channels: int,
        out_channels: int,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        squeezed = transformer_channels // reduction
        self.fc1 = nn.Conv2d(transformer_channels, squeezed, 1)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(squeezed, transformer_channels, 1)
        self.spatial = Conv(2, 1, 7, bn=True, bias=False)
        self.W_g = Conv(cnn_channels, hidden_channels, 1, bn=True)
        self.W_x = Conv(transformer_channels, hidden_channels, 1, bn=True)
        self.W = Conv(hidden_channels, hidden_channels, 3, bn=True, relu=True)
        self.residual = Residual(
            cnn_channels + transformer_channels + hidden_channels, out_channels
        )
        self.dropout = nn.Dropout2d(drop)

    def forward(self, g: Tensor, x: Tensor) -> Tensor:
        """g [B, cnn, H, W], x [B, transformer, H, W] -> [B, out, H, W]."""
        bilinear = self.W(self.W_g(g) * self.W_x(x))

        pooled = torch.cat([g.amax(dim=1, keepdim=True), g.mean(dim=1, keepdim=True)], dim=1)
        g = g * torch.sigmoid(self.spatial(pooled))  # [B, 1, H, W] gate

        squeezed = x.mean(dim=(2, 3), keepdim=True)  # [B, transformer, 1, 1]
        x = x * torch.sigmoid(self.fc2(self.relu(self.fc1(squeezed))))

        return self.dropout(self.residual(torch.cat([g, x, bilinear], dim=1)))
