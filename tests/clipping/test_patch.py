"""patch_torch inside real trainers: fastclip's function is the one they call."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn
from torch.nn import utils

import fastclip
from fastclip.clipping import patch

NAMES = ("clip_grad_norm_", "get_total_norm", "clip_grads_with_norm_", "clip_grad_value_")


@pytest.fixture(autouse=True)
def restored():
    before = [getattr(utils, name) for name in NAMES]
    yield
    assert [getattr(utils, name) for name in NAMES] == before
    assert patch._depth == 0


@pytest.fixture
def calls(monkeypatch):
    """Every call that reaches fastclip's clip_grad_norm_ through torch.nn.utils."""
    seen = []

    def counted(*args, **kwargs):
        seen.append((args, kwargs))
        return fastclip.clip_grad_norm_(*args, **kwargs)

    monkeypatch.setitem(patch._ours, "clip_grad_norm_", counted)
    return seen


@pytest.mark.core
def test_nesting_and_exceptions_restore_everything():
    original = utils.clip_grad_norm_
    with fastclip.patched_torch():
        assert utils.clip_grad_norm_ is fastclip.clip_grad_norm_
        assert utils.clip_grad.clip_grad_norm_ is fastclip.clip_grad_norm_
        with pytest.raises(OSError, match="inside"), fastclip.patched_torch():
            raise OSError("inside")
        assert utils.clip_grad_norm_ is fastclip.clip_grad_norm_
    assert utils.clip_grad_norm_ is original
    with pytest.raises(RuntimeError, match="without a patch_torch"):
        fastclip.unpatch_torch()


@pytest.mark.core
def test_the_reference_road_does_not_call_itself():
    with fastclip.patched_torch():
        p = nn.Parameter(torch.zeros(3, dtype=torch.complex64))
        p.grad = torch.ones(3, dtype=torch.complex64)
        assert utils.clip_grad_norm_([p], 1.0).item() == pytest.approx(3**0.5)


@pytest.mark.core
def test_threads_may_patch_at_once():
    def work():
        for _ in range(200):
            with fastclip.patched_torch():
                assert utils.clip_grad_norm_ is fastclip.clip_grad_norm_

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def batches() -> torch.utils.data.DataLoader:
    data = torch.utils.data.TensorDataset(torch.randn(24, 4), torch.randn(24, 1))
    return torch.utils.data.DataLoader(data, batch_size=8)


def test_lightning(calls, tmp_path):
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(4, 1)

        def training_step(self, batch, _):
            return nn.functional.mse_loss(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    with fastclip.patched_torch():
        trainer = lightning.Trainer(
            max_steps=3,
            gradient_clip_val=0.1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(Module(), batches())
    assert len(calls) == 3


def test_accelerate(calls):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    net = nn.Linear(4, 1)
    net, optimizer, data = accelerator.prepare(
        net, torch.optim.SGD(net.parameters(), 0.1), batches()
    )
    with fastclip.patched_torch():
        for x, y in data:
            optimizer.zero_grad()
            accelerator.backward(nn.functional.mse_loss(net(x), y))
            norm = accelerator.clip_grad_norm_(net.parameters(), 0.1)
            optimizer.step()
            assert norm.item() > 0
    assert len(calls) == 3


def test_timm(calls):
    clip_grad = pytest.importorskip("timm.utils.clip_grad")
    net = nn.Linear(4, 1)
    net(torch.ones(2, 4)).sum().backward()
    with fastclip.patched_torch():
        clip_grad.dispatch_clip_grad(net.parameters(), 0.1, mode="norm")
    assert len(calls) == 1
    norm = fastclip.get_total_norm([p.grad for p in net.parameters()])
    assert norm.item() == pytest.approx(0.1, rel=1e-3)


def test_transformers_trainer(calls, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=2,
    )
    data = [{"input_ids": [i % 50] * 6, "labels": i % 2} for i in range(24)]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=3,
        per_device_train_batch_size=8,
        max_grad_norm=0.1,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(
        transformers.BertForSequenceClassification(config), arguments, train_dataset=data
    )
    with fastclip.patched_torch():
        trainer.train()
    assert len(calls) == 3
