"""Plain PyTorch: one import changes, and the norms of a run go to a CSV file.

python examples/plain_pytorch.py
"""

import torch
from torch import nn

import fastclip


def main(steps: int = 60, csv: str | None = None) -> tuple[float, float]:
    """Train a small network on a function that it can learn; the first and the last loss."""
    torch.manual_seed(0)
    inputs = torch.randn(256, 16)
    targets = inputs[:, :4].prod(dim=1, keepdim=True)
    model = nn.Sequential(nn.Linear(16, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 1))

    # Norms and biases do not decay; AdamW takes the groups as they are.
    groups = fastclip.param_groups(model, lr=1e-2, weight_decay=0.05)
    print(groups.explain())
    optimizer = torch.optim.AdamW(groups, fused=True)

    losses = []
    with fastclip.NormMonitor(model, optimizer, every=10, max_norm=1.0, csv=csv) as monitor:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(inputs), targets)
            loss.backward()
            # Was: torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            monitor.observe(fastclip.clip_grad_norm_(model.parameters(), 1.0))
            optimizer.step()
            losses.append(loss.item())
        for row in monitor.history:
            print(f"step {row['step']}: norm {row['grad_norm']:.3f}, of {row['worst_parameter']}")
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    return losses[0], losses[-1]


if __name__ == "__main__":
    main()
