"""Checks of test_distributed.py: fused steps, a GradScaler, DDP."""

from __future__ import annotations

import torch
import torch.distributed as dist
from distributed_cases import full, sharded_model
from torch import nn

import fastclip


def check_inside_a_fused_step():
    results = []
    for fused in (True, False):
        model = sharded_model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
        if fused:
            norm = fastclip.clip_grads_in_step_(optimizer, 0.1)
        else:
            norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
        results.append([full(norm), *(p.full_tensor() for p in model.parameters())])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def check_with_a_grad_scaler():
    results = []
    for fused in (True, False):
        model = sharded_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        scaler.scale(torch.ones(()))
        if fused:
            norm = fastclip.unscale_and_clip_grad_norm_(scaler, optimizer, 0.01)
        else:
            scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        scaler.step(optimizer)
        scaler.update()
        results.append([full(norm), *(p.full_tensor() for p in model.parameters())])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)


def check_ddp_training():
    """Three clipped steps on a share of the batch each are three on the whole of it."""
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    batch, weights = torch.randn(3, 4 * world, 6), None
    for wrapped in (True, False):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))
        run = nn.parallel.DistributedDataParallel(model) if wrapped else model
        clip_ = fastclip.clip_grad_norm_ if wrapped else nn.utils.clip_grad_norm_
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for x in batch:
            optimizer.zero_grad()
            share = x[4 * rank : 4 * rank + 4] if wrapped else x
            run(share).square().mean().backward()
            assert clip_(run.parameters(), 0.05) > 0.05
            optimizer.step()
        found = [p.detach().clone() for p in model.parameters()]
        weights = found if weights is None else weights
    torch.testing.assert_close(weights, found)
