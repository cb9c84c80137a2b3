"""Mixed precision: float16 with a GradScaler, unscaled and clipped in one pass; bfloat16 without.

python examples/mixed_precision.py
"""

import torch
from torch import nn

import fastclip


def main(steps: int = 40, dtype: torch.dtype = torch.float16) -> tuple[float, float]:
    """Train a small network under autocast; the first and the last loss."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10)).to(device)
    inputs = torch.randn(128, 32, device=device)
    labels = inputs[:, :10].argmax(dim=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    # bfloat16 has the range of float32: there the scaler is disabled, and the loop stays the same.
    scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)

    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        with torch.autocast(device, dtype):
            logits = model(inputs)
        loss = nn.functional.cross_entropy(logits.float(), labels)
        scaler.scale(loss).backward()
        # Was: scaler.unscale_(optimizer); clip_grad_norm_(model.parameters(), 1.0)
        norm = fastclip.unscale_and_clip_grad_norm_(scaler, optimizer, 1.0)
        scaler.step(optimizer)  # skips a step whose norm is not finite
        scaler.update()
        losses.append(loss.item())
        if step % 10 == 0:
            print(
                f"step {step}: loss {losses[-1]:.3f}, norm {norm:.3f}, scale {scaler.get_scale()}"
            )
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    return losses[0], losses[-1]


if __name__ == "__main__":
    main()
