"""FSDP2: sharded parameters, clipped with one all-reduce for all of them.

torchrun --nproc-per-node=2 examples/fsdp2.py
"""

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

import fastclip


def build() -> nn.Module:
    """Four blocks and a head, each sharded over all processes."""
    blocks = [nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.GELU()) for _ in range(4)]
    model = nn.Sequential(*blocks, nn.Linear(64, 4))
    for block in model:
        fully_shard(block)
    return fully_shard(model)


def main(steps: int = 20) -> None:
    """Train on every rank's own part of the data."""
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_gpu else "gloo")
    device = "cuda" if on_gpu else "cpu"
    torch.manual_seed(0)  # equal weights; the data differ
    model = build().to(device)
    generator = torch.Generator().manual_seed(1 + dist.get_rank())
    inputs = torch.randn(128, 64, generator=generator).to(device)
    labels = inputs[:, :4].argmax(1)

    # Groups are made of the sharded model: the names and the rules are those of the plain one.
    groups = fastclip.param_groups(model, lr=3e-3, weight_decay=0.05)
    optimizer = torch.optim.AdamW(groups)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        # Was torch.nn.utils.clip_grad_norm_ and .full_tensor(): the norm is of the whole model.
        norm = fastclip.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if dist.get_rank() == 0 and step % 5 == 0:
            whole = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
            print(f"step {step}: loss {losses[-1]:.3f}, norm {float(whole):.3f}", flush=True)
    print(f"rank {dist.get_rank()}: loss {losses[0]:.3f} -> {losses[-1]:.3f}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
