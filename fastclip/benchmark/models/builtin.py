"""The model that is measured where none is named, and the loss that people copy, in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastclip.benchmark.models.workload import Request, Workload, of_model

VOCABULARY, WIDTH, LAYERS, HEADS, LENGTH = 8192, 384, 6, 6, 128


class Block(nn.Module):
    """Attention and a feed-forward network, each after a normalisation, as in GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:  # [B, T, C]
        batch, length, _ = x.shape
        heads = self.qkv(self.norm_1(x)).view(batch, length, 3, HEADS, -1).transpose(1, 3)
        q, k, v = heads.unbind(2)  # [B, H, T, C / H]
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, WIDTH))
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


class SmallGPT(nn.Module):
    """A decoder of 14 million parameters; returns the loss of the next token."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(1024, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, ids: Tensor) -> Tensor:  # [B, T] of integers
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        logits = self.norm(self.blocks(x)) @ self.tokens.weight.T / WIDTH**0.5
        return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


def small_gpt(request: Request) -> Workload:
    """A small GPT and one batch of random tokens."""
    batch, length = request.batch_size or 4, request.sequence_length or LENGTH
    torch.manual_seed(0)
    ids = torch.randint(0, VOCABULARY, (batch, length))
    return of_model("small GPT", SmallGPT(), ids, f"{batch} x {length} tokens", request)


def published_structure_loss(heads: Sequence[Tensor], mask: Tensor) -> Tensor:
    """The structure loss as TransFuse's training code has it, summed over the heads."""
    losses = []
    for logits in heads:
        weight = 1 + 5 * (F.avg_pool2d(mask, 31, stride=1, padding=15) - mask).abs()
        bce = F.binary_cross_entropy_with_logits(logits, mask, reduction="none")
        bce = (weight * bce).sum((2, 3)) / weight.sum((2, 3))
        predicted = logits.sigmoid()
        inter = (predicted * mask * weight).sum((2, 3))
        union = ((predicted + mask) * weight).sum((2, 3))
        losses.append((bce + 1 - (inter + 1) / (union - inter + 1)).mean())
    return torch.stack(losses).sum()
