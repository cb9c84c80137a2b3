"""The TransFuse network: a CNN and a transformer side by side, fused at three scales.

Source: Zhang, Liu, Hu, "TransFuse: Fusing Transformers and CNNs for Medical Image
Segmentation", MICCAI 2021 (arXiv 2102.08005). Keys, shapes and dtypes of the state dict are
those of the published checkpoints.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from timm.models import checkpoint_seq
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from fastclip.transfuse.network.blocks import BiFusion, Conv, Up

PATCH = 16


@dataclass(frozen=True)
class Architecture:
    """Sizes of one TransFuse: backbones by their timm names, widths from coarse to fine."""

    resnet: str
    deit: str
    size: tuple[int, int]  # H, W of the published input, and so of pos_embed
    cnn: tuple[int, int, int]  # channels of layer3, layer2, layer1
    decoder: tuple[int, int, int]  # channels at 1/16, 1/8, 1/4
    reductions: tuple[int, int, int]  # squeeze of the channel attention at the same scales
    width: int
    heads: int
    blocks: int
    drop: float = 0.2  # of the Dropout2d after each stage; BiFusion drops half as often

    @property
    def grid(self) -> tuple[int, int]:
        """Tokens down and across."""
        return self.size[0] // PATCH, self.size[1] // PATCH


_S = Architecture(
    resnet="resnet34",
    deit="deit_small_patch16_224",
    size=(192, 256),
    cnn=(256, 128, 64),
    decoder=(256, 128, 64),
    reductions=(4, 2, 1),
    width=384,
    heads=6,
    blocks=8,
)
_L = Architecture(
    resnet="resnet50",
    deit="deit_base_patch16_224",
    size=(192, 256),
    cnn=(1024, 512, 256),
    decoder=(1024, 512, 256),
    reductions=(4, 2, 1),
    width=768,
    heads=12,
    blocks=12,
)
_T = Architecture(
    resnet="resnet18",
    deit="deit_tiny_patch16_224",
    size=(96, 128),
    cnn=(256, 128, 64),
    decoder=(96, 64, 32),
    reductions=(4, 2, 1),
    width=192,
    heads=3,
    blocks=4,
    drop=0.0,  # made for short runs, which underfit: 0.73 instead of 0.69 Dice after 150 steps
)
ARCHITECTURES = {
    "transfuse_t": _T,
    "transfuse_s": _S,
    "transfuse_l": _L,
    "transfuse_l_384": Architecture(**{**vars(_L), "size": (384, 512)}),
}


class Transformer(nn.Module):
    """DeiT without class token and head: patches, position embedding, blocks, norm."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.checkpointing = False  # compute the blocks again in the backward pass
        rows, columns = self.grid = arch.grid
        # A key of the published checkpoints that no forward pass reads: frozen, so that
        # DistributedDataParallel does not wait for its gradient.
        self.cls_token = nn.Parameter(torch.zeros(1, 1, arch.width), requires_grad=False)
        self.pos_embed = nn.Parameter(torch.empty(1, rows * columns, arch.width))
        self.patch_embed = PatchEmbed(
            img_size=None, patch_size=PATCH, embed_dim=arch.width, strict_img_size=False
        )
        norm_layer: Any = partial(nn.LayerNorm, eps=1e-6)
        self.blocks = nn.Sequential(
            *(
                Block(arch.width, arch.heads, qkv_bias=True, norm_layer=norm_layer)
                for _ in range(arch.blocks)
            )
        )
        self.norm = norm_layer(arch.width)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, width, H/16, W/16]."""
        rows, columns = x.shape[-2] // PATCH, x.shape[-1] // PATCH
        tokens = self.patch_embed(x)  # [B, rows * columns, width]
        tokens = tokens + resize_pos_embed(self.pos_embed, self.grid, (rows, columns))
        if self.checkpointing and self.training:
            tokens = checkpoint_seq(self.blocks, tokens)
        else:
            tokens = self.blocks(tokens)
        tokens = self.norm(tokens)
        return tokens.transpose(1, 2).reshape(x.shape[0], -1, rows, columns)


def resize_pos_embed(pos_embed: Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Bilinear (align_corners) [1, h*w, width] -> [1, h'*w', width]; itself where grids agree."""
    # An exported graph is for any grid and has no branch; on its own it interpolates to itself.
    if not torch.compiler.is_exporting() and grid == new_grid:
        return pos_embed
    image = pos_embed.transpose(1, 2).reshape(1, -1, *grid)
    image = F.interpolate(image, size=new_grid, mode="bilinear", align_corners=True)
    return image.flatten(2).transpose(1, 2)


def _resnet(name: str) -> nn.Module:
    """timm's ResNet without its last stage and classifier."""
    net = timm.create_model(name, pretrained=False, num_classes=0)
    del net.layer4
    return net


class TransFuse(nn.Module):
    """TransFuse: CNN and transformer branches, BiFusion, gated decoder, three heads.

    Args:
        arch: sizes, one of `ARCHITECTURES`.
        num_classes: channels of each output map.

    Use `create_model`. `arch` and `num_classes` are kept as attributes.
    """

    def __init__(self, arch: Architecture, num_classes: int = 1) -> None:
        super().__init__()
        self.arch, self.num_classes = arch, num_classes
        (c0, c1, c2), (d0, d1, d2) = arch.cnn, arch.decoder
        r0, r1, r2 = arch.reductions
        self.resnet = _resnet(arch.resnet)
        self.transformer = Transformer(arch)
        self.up1 = Up(arch.width, d1)
        self.up2 = Up(d1, d2)
        self.final_x = nn.Sequential(
            Conv(d0, d2, 1, bn=True, relu=True),
            Conv(d2, d2, 3, bn=True, relu=True),
            Conv(d2, num_classes, 3),
        )
        self.final_1 = nn.Sequential(Conv(d2, d2, 3, bn=True, relu=True), Conv(d2, num_classes, 3))
        self.final_2 = nn.Sequential(Conv(d2, d2, 3, bn=True, relu=True), Conv(d2, num_classes, 3))
        self.up_c = BiFusion(c0, arch.width, r0, d0, d0, arch.drop / 2)
        self.up_c_1_1 = BiFusion(c1, d1, r1, d1, d1, arch.drop / 2)
        self.up_c_1_2 = Up(d0, d1, d1, attn=True)
        self.up_c_2_1 = BiFusion(c2, d2, r2, d2, d2, arch.drop / 2)
        self.up_c_2_2 = Up(d1, d2, d2, attn=True)
        self.drop = nn.Dropout2d(arch.drop)
        for name, module in self.named_children():
            if name not in ("resnet", "transformer"):
                module.apply(_init_decoder)

    def layer_id(self, name: str) -> int:
        """The layer of a parameter, for layer-wise learning rates: read by `param_groups`.

        Both backbones see the image, so each is counted from its own input: conv1, then stage by
        stage; patches, then block by block. The decoder lies on top of both.
        """
        parts = name.split(".")
        if parts[0] == "resnet":
            stage = parts[1].removeprefix("layer")
            return int(stage) if stage.isdigit() else 0
        if parts[0] == "transformer":
            block = int(parts[2]) + 1 if parts[1] == "blocks" else 0
            return self.arch.blocks if parts[1] == "norm" else block
        return max(self.arch.blocks, 3) + 1

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Segment a batch.

        Args:
            images: [B, 3, H, W], normalised; H and W divisible by 16.

        Returns:
            Logit maps `(map_x, map_1, map_2)`, each [B, num_classes, H, W]; map_2 is the
            prediction, the others are the lateral heads of deep supervision.

        Raises:
            ValueError: another number of dimensions or channels, or a size not divisible by 16.
        """
        check_images(images)
        t0 = self.drop(self.transformer(images))  # [B, width, H/16, W/16]
        t1 = self.drop(self.up1(t0))  # [B, d1, H/8, W/8]
        t2 = self.drop(self.up2(t1))  # [B, d2, H/4, W/4]

        net: Any = self.resnet
        c2 = net.layer1(net.maxpool(net.act1(net.bn1(net.conv1(images)))))
        c2 = self.drop(c2)  # [B, c2, H/4, W/4]
        c1 = self.drop(net.layer2(c2))  # [B, c1, H/8, W/8]
        c0 = self.drop(net.layer3(c1))  # [B, c0, H/16, W/16]

        f0 = self.up_c(c0, t0)  # [B, d0, H/16, W/16]
        f1 = self.up_c_1_2(f0, self.up_c_1_1(c1, t1))  # [B, d1, H/8, W/8]
        f2 = self.up_c_2_2(f1, self.up_c_2_1(c2, t2))  # [B, d2, H/4, W/4]

        return (
            _upsample(self.final_x(f0), 16),
            _upsample(self.final_1(t2), 4),
            _upsample(self.final_2(f2), 4),
        )

    def no_weight_decay(self) -> set[str]:
        """Names that decay would pull towards zero for no gain (timm's convention)."""
        return {"transformer.pos_embed", "transformer.cls_token"}


def _upsample(x: Tensor, factor: int) -> Tensor:
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=True)


def _init_decoder(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        if module.bias is not None:
            bound = 1 / math.sqrt(module.weight[0].numel())
            nn.init.uniform_(module.bias, -bound, bound)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


def check_size(height: int, width: int) -> None:
    """Raise ValueError unless both sides are positive multiples of 16."""
    if height < PATCH or width < PATCH or height % PATCH or width % PATCH:
        near = [max(PATCH, round(n / PATCH) * PATCH) for n in (height, width)]
        raise ValueError(
            f"image size {height}x{width} (HxW): both sides must be positive multiples of "
            f"{PATCH}, for example {near[0]}x{near[1]}"
        )


def check_images(images: Tensor) -> None:
    """Raise ValueError unless `images` is [B, 3, H, W] with H and W divisible by 16."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be [B, 3, H, W], got {list(images.shape)}")
    check_size(images.shape[2], images.shape[3])


def architecture(name: str) -> Architecture:
    """The sizes of model `name`; an unknown name raises ValueError with the choices."""
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    near = difflib.get_close_matches(str(name).lower().replace("-", "_"), ARCHITECTURES, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown model {name!r}: choose from {', '.join(ARCHITECTURES)}{hint}")
