"""patch_torch inside real trainers: fastclip's function is the one they call."""

from __future__ import annotations

import contextlib
import sys
import threading
import types

import pytest
import torch
from torch import nn
from torch.nn import utils

import fastclip
from fastclip.clipping import patch

NAMES = ("clip_grad_norm_", "get_total_norm", "clip_grads_with_norm_", "clip_grad_value_")
PRIVATE = {"_get_total_norm": "get_total_norm", "_clip_grads_with_norm_": "clip_grads_with_norm_"}


def held() -> list:
    """What torch holds now, under every name that it has for these functions."""
    found = [(home, name) for home in (utils, utils.clip_grad) for name in (*NAMES, *PRIVATE)]
    return [getattr(home, name, None) for home, name in found]


@pytest.fixture(autouse=True)
def restored():
    before = held()
    yield
    assert held() == before
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
@pytest.mark.parametrize("everywhere", [False, True])
def test_the_names_of_recipes_are_fastclips_too(everywhere):
    with fastclip.patched_torch(everywhere):
        for name, public in PRIVATE.items():
            assert getattr(utils.clip_grad, name) is getattr(fastclip, public)
        p = nn.Parameter(torch.zeros(4))
        p.grad = torch.ones(4)
        total = utils.clip_grad._get_total_norm([p.grad], 2.0)
        utils.clip_grad._clip_grads_with_norm_([p], 1.0, total)
        assert total.item() == 2.0
        assert p.grad.norm().item() == pytest.approx(1.0, rel=1e-5)


ODD = {
    "complex": lambda: torch.ones(4, dtype=torch.complex64),
    "sparse": lambda: torch.ones(4).to_sparse(),
    "meta": lambda: torch.ones(4, device="meta"),
    "float8": lambda: torch.ones(4).to(torch.float8_e4m3fn),
    "strides": lambda: torch.ones(2, 4).t()[::2],
    "subclass": lambda: torch.ones(4).as_subclass(type("Odd", (torch.Tensor,), {})),
}


@pytest.mark.core
@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("foreach", [None, True, False])
@pytest.mark.parametrize("everywhere", [False, True])
def test_no_fallback_comes_back_to_a_patched_function(monkeypatch, kind, foreach, everywhere):
    """Each public call enters fastclip once: torch's own halves are not looked up where we are."""
    entered = []
    for name in NAMES:
        original = patch._ours[name]

        def counted(*args, name=name, original=original, **kwargs):
            entered.append(name)
            return original(*args, **kwargs)

        monkeypatch.setitem(patch._ours, name, counted)
    grad = ODD[kind]()
    holder = type("Holder", (), {"grad": grad})()
    calls = {
        "clip_grad_norm_": lambda: utils.clip_grad_norm_([holder], 1.0, 3.0, foreach=foreach),
        "get_total_norm": lambda: utils.get_total_norm([grad], 3.0, foreach=foreach),
        "clip_grads_with_norm_": lambda: utils.clip_grads_with_norm_(
            [holder], 1.0, torch.tensor(2.0), foreach=foreach
        ),
        "clip_grad_value_": lambda: utils.clip_grad_value_([holder], 1.0, foreach=foreach),
    }
    for name, call in calls.items():
        outcomes = []
        for patched in (False, True):
            entered.clear()
            with fastclip.patched_torch(everywhere) if patched else contextlib.nullcontext():
                try:
                    call()
                    outcomes.append(None)
                except RecursionError:
                    raise
                except (RuntimeError, NotImplementedError) as error:
                    outcomes.append(type(error))
        assert entered == [name]
        assert outcomes[0] == outcomes[1]


@pytest.fixture
def module_with_copies(monkeypatch):
    module = types.ModuleType("a_trainer")
    exec("from torch.nn.utils import clip_grad_norm_, get_total_norm as norm_of", vars(module))
    exec("from torch.nn.utils.clip_grad import _clip_grads_with_norm_ as scale", vars(module))
    monkeypatch.setitem(sys.modules, "a_trainer", module)
    return module


@pytest.mark.core
def test_everywhere_replaces_copies_and_puts_them_back(module_with_copies):
    module = module_with_copies
    names = ("clip_grad_norm_", "norm_of", "scale")
    before = [getattr(module, name) for name in names]
    ours = [fastclip.clip_grad_norm_, fastclip.get_total_norm, fastclip.clip_grads_with_norm_]
    with fastclip.patched_torch():
        assert [getattr(module, name) for name in names] == before
        with fastclip.patched_torch(everywhere=True):
            assert [getattr(module, name) for name in names] == ours
            p = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
            p.grad = torch.ones(2, dtype=torch.complex64)
            module.clip_grad_norm_([p], 1.0)
            assert p.grad.abs().norm().item() == pytest.approx(1.0, rel=1e-5)
    assert [getattr(module, name) for name in names] == before
    with pytest.raises(OSError, match="inside"), fastclip.patched_torch(everywhere=True):
        raise OSError("inside")
    assert [getattr(module, name) for name in names] == before


@pytest.mark.core
def test_what_others_put_in_meanwhile_stays(module_with_copies):
    with fastclip.patched_torch(everywhere=True):
        module_with_copies.norm_of = other = object()
    assert module_with_copies.norm_of is other


@pytest.mark.core
def test_everywhere_leaves_fastclip_its_reference():
    from fastclip.ops.grad_norm import dispatch

    before = dispatch._total_norm, dispatch._scale_
    with fastclip.patched_torch(everywhere=True):
        assert (dispatch._total_norm, dispatch._scale_) == before


@pytest.mark.core
def test_the_old_name_of_torch_runs_ours(calls):
    p = nn.Parameter(torch.zeros(4))
    p.grad = torch.ones(4)
    with fastclip.patched_torch(), pytest.warns(FutureWarning):
        utils.clip_grad_norm([p], 1.0)
    assert len(calls) == 1


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
