"""The callbacks under the real trainers, against the norms of the same training by hand."""

from __future__ import annotations

import csv

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fastclip

pytestmark = pytest.mark.slow

STEPS, LR, LIMIT = 6, 0.1, 3.0
GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.randn(STEPS, 4, generator=GENERATOR), torch.randn(STEPS, 1, generator=GENERATOR)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))


def by_hand(steps: int = STEPS) -> list[float]:
    """The norm of each step before clipping, batch size 1, in order."""
    model, norms = net(), []
    for x, y in zip(X[:steps], Y, strict=False):
        model.zero_grad()
        nn.functional.mse_loss(model(x[None]), y[None]).backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), LIMIT).item())
        with torch.no_grad():
            for p in model.parameters():
                p -= LR * p.grad
    return norms


def expected_rows() -> list[tuple[int, float, float]]:
    norms = by_hand()
    rows = [(k, norms[k - 1], float(norms[k - 1] > LIMIT)) for k in (2, 4, 6)]
    assert {clipped for *_, clipped in rows} == {0.0, 1.0}, "some are clipped, some are not"
    return rows


def check(rows) -> None:
    found = [(r["step"], r["grad_norm"], r["clip_frequency"]) for r in rows]
    assert [pytest.approx(row, rel=1e-5) for row in expected_rows()] == found


def lightning_run(tmp_path, callback, steps=STEPS, precision="32-true", **kwargs):
    pl = pytest.importorskip("lightning.pytorch")
    from lightning.pytorch.loggers import CSVLogger

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net()

        def training_step(self, batch, _):
            return nn.functional.mse_loss(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=LR)

    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        devices=1,
        callbacks=[callback],
        logger=logger,
        log_every_n_steps=1,
        gradient_clip_val=LIMIT,
        enable_progress_bar=False,
        enable_model_summary=False,
        precision=precision,
        default_root_dir=tmp_path,
    )
    trainer.fit(Module(), DataLoader(TensorDataset(X, Y), batch_size=1), **kwargs)
    return trainer, logger


@pytest.mark.filterwarnings("ignore")
def test_lightning(tmp_path):
    pytest.importorskip("lightning.pytorch")
    from fastclip.integrations.lightning import NormMonitorCallback

    callback = NormMonitorCallback(every=2, csv=tmp_path / "norms.csv", by="depth", depth=2)
    _, logger = lightning_run(tmp_path, callback)
    rows = callback.monitors[0].history
    check(rows)
    assert {"grad_norm/net.0", "grad_norm/net.2"} <= rows[0].keys()
    with open(f"{logger.log_dir}/metrics.csv") as file:
        logged = [row for row in csv.DictReader(file) if row["norms/grad_norm"]]
    assert [int(row["step"]) for row in logged] == [2, 4, 6]
    assert [float(row["norms/grad_norm"]) for row in logged] == [r["grad_norm"] for r in rows]


@pytest.mark.filterwarnings("ignore")
def test_lightning_goes_on_from_a_checkpoint(tmp_path):
    pytest.importorskip("lightning.pytorch")
    from fastclip.integrations.lightning import NormMonitorCallback

    path = tmp_path / "norms.csv"
    trainer, _ = lightning_run(tmp_path, NormMonitorCallback(every=2, csv=path), steps=3)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = NormMonitorCallback(every=2, csv=path)
    lightning_run(tmp_path, again, ckpt_path=tmp_path / "last.ckpt", weights_only=False)
    with path.open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["2", "4", "6"]


@pytest.mark.filterwarnings("ignore")
def test_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from fastclip.integrations.transformers import NormMonitorCallback

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x, labels):
            return {"loss": nn.functional.mse_loss(self.net(x), labels)}

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, *_):
            return None

    model = Model()
    callback = NormMonitorCallback(csv=tmp_path / "norms.csv")
    args = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=STEPS,
        logging_steps=2,
        per_device_train_batch_size=1,
        max_grad_norm=LIMIT,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = InOrder(
        model,
        args,
        train_dataset=[{"x": x, "labels": y} for x, y in zip(X, Y, strict=True)],
        callbacks=[callback],
        optimizers=(
            optimizer := torch.optim.SGD(model.parameters(), lr=LR),
            torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
        ),
    )
    trainer.train()
    check(callback.monitor.history)
    rows = [row for row in trainer.state.log_history if "norms/grad_norm" in row]
    assert [row["step"] for row in rows] == [2, 4, 6]
    with (tmp_path / "norms.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 3


@pytest.mark.filterwarnings("ignore")
def test_accelerate(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    model = net()
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=LR))
    with fastclip.NormMonitor(model, optimizer, every=2, max_norm=LIMIT) as monitor:
        for x, y in zip(X, Y, strict=True):
            optimizer.zero_grad()
            accelerator.backward(nn.functional.mse_loss(model(x[None]), y[None]))
            monitor.observe(accelerator.clip_grad_norm_(model.parameters(), LIMIT))
            optimizer.step()
    rows = monitor.history
    assert [row["grad_norm"] for row in rows] == pytest.approx([n for _, n, _ in expected_rows()])
