"""Accelerate: its clipping runs on fastclip; NormMonitor takes what `prepare` returns.

pip install accelerate
python examples/accelerate_loop.py      (or: accelerate launch examples/accelerate_loop.py)
"""

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fastclip


def main(epochs: int = 5) -> tuple[float, float]:
    """Train; the loss of the first and of the last step."""
    torch.manual_seed(0)
    inputs = torch.randn(256, 20)
    data = DataLoader(TensorDataset(inputs, inputs[:, :4].argmax(1)), batch_size=32)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 4))
    groups = fastclip.param_groups(model, lr=1e-2, weight_decay=0.01)

    accelerator = Accelerator(gradient_accumulation_steps=2)
    optimizer = torch.optim.AdamW(groups)
    model, optimizer, data = accelerator.prepare(model, optimizer, data)

    losses = []
    with (
        fastclip.patched_torch(),  # Accelerate calls torch.nn.utils.clip_grad_norm_
        fastclip.NormMonitor(model, optimizer, every=5, max_norm=1.0) as monitor,
    ):
        for _ in range(epochs):
            for batch, labels in data:
                with accelerator.accumulate(model):
                    loss = nn.functional.cross_entropy(model(batch), labels)
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        monitor.observe(accelerator.clip_grad_norm_(model.parameters(), 1.0))
                    optimizer.step()
                    optimizer.zero_grad()
                losses.append(loss.item())
    last = monitor.history[-1]
    accelerator.print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    accelerator.print(f"step {last['step']}: norm {last['grad_norm']:.3f}")
    return losses[0], losses[-1]


if __name__ == "__main__":
    main()
