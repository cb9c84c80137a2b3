"""What a step is made of: accumulation, average of weights, rates of groups, frozen parts."""

from __future__ import annotations

from pathlib import Path

import needs_train  # noqa: F401
import pytest
import torch
from tiny import batch, learner, one_thread, tiny  # noqa: F401
from torch import nn

from fastclip.transfuse.network.factory import create_model
from fastclip.transfuse.optimization.groups import set_lr
from fastclip.transfuse.optimization.selection import Best
from fastclip.transfuse.training.schedule import Schedule


def rates(made: object) -> dict[str, float]:
    groups = made.optimizer.param_groups  # type: ignore[attr-defined]
    return {name: group["lr"] for group in groups for name in group["param_names"]}


def test_accumulated_batches_step_as_one_large_batch(tmp_path: Path) -> None:
    options = {"optimizer": "sgd", "lr": 0.1}
    parts = learner(tmp_path, batch_size=2, accumulate=3, **options)
    whole = learner(tmp_path, batch_size=6, **options)
    sizes: list[int] = []
    parts.model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    for made in (parts, whole):
        made.model.eval()  # batch norm would see other batches
    results = [made.step(*batch(6), 0) for made in (parts, whole)]
    assert sizes == [2, 2, 2]
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, rtol=1e-4)
    pairs = zip(parts.model.parameters(), whole.model.parameters(), strict=True)
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in pairs)
    start = learner(tmp_path).model.final_x[2].conv.weight
    assert not torch.allclose(parts.model.final_x[2].conv.weight, start, atol=1e-6)


def test_a_smaller_last_batch_counts_by_its_images(tmp_path: Path) -> None:
    parts = learner(tmp_path, batch_size=4, accumulate=2)
    whole = learner(tmp_path, batch_size=6)
    for made in (parts, whole):
        made.model.eval()
    (one, _), (other, _) = (made.step(*batch(6), 0) for made in (parts, whole))
    assert torch.allclose(one, other, rtol=1e-4)


@pytest.mark.parametrize("warm", [True, False])
def test_the_average_of_weights(tmp_path: Path, warm: bool) -> None:
    made = learner(tmp_path, ema=0.9, ema_warmup=warm)
    expected: torch.Tensor | None = None
    for number in range(4):
        made.step(*batch(seed=number), number)
        weight = made.model.final_2[1].conv.weight.detach().clone()
        decay = 1 - (1 + number) ** (-2 / 3) if warm else 0.9
        if expected is None:
            expected = weight
        else:
            expected = min(decay, 0.9) * expected + (1 - min(decay, 0.9)) * weight
    averaged = made.evaluated.final_2[1].conv.weight
    assert made.evaluated is not made.model
    assert torch.allclose(averaged, expected, atol=1e-7)
    assert not torch.allclose(averaged, made.model.final_2[1].conv.weight, atol=1e-7)
    batches = made.evaluated.resnet.bn1
    assert not torch.equal(batches.running_mean, torch.zeros_like(batches.running_mean))


def test_layer_decay_and_a_factor_for_the_backbones(tmp_path: Path) -> None:
    made = learner(tmp_path, layer_decay=0.5, backbone_lr_scale=0.1, lr=1.0)
    found = rates(made)
    assert found["up_c.residual.conv1.conv.weight"] == 1.0
    assert found["transformer.blocks.3.mlp.fc1.weight"] == pytest.approx(0.1 * 0.5)
    assert found["transformer.blocks.0.mlp.fc1.weight"] == pytest.approx(0.1 * 0.5**4)
    assert found["resnet.layer3.0.conv1.weight"] == pytest.approx(0.1 * 0.5**2)
    set_lr(made.optimizer, 0.5)  # a schedule keeps the ratios
    assert rates(made) == pytest.approx({name: 0.5 * rate for name, rate in found.items()})


def test_frozen_parts_stay_until_their_epoch(tmp_path: Path) -> None:
    made = learner(tmp_path, freeze=("resnet.*",), freeze_epochs=2)
    assert "resnet.conv1.weight" not in rates(made)
    start = {k: v.clone() for k, v in made.model.state_dict().items()}

    def changed() -> set[str]:
        now = made.model.state_dict()
        return {key.partition(".")[0] for key in now if not torch.equal(now[key], start[key])}

    for epoch in (0, 1):
        made.begin_epoch(epoch)
        made.step(*batch(), epoch)
    assert "resnet" not in changed()  # its batch norms neither
    assert {"transformer", "final_2", "up1"} <= changed()
    made.begin_epoch(2)
    set_lr(made.optimizer, 0.5)
    made.step(*batch(), 2)
    assert "resnet" in changed()
    found = rates(made)
    assert found["resnet.conv1.weight"] == found["final_2.1.conv.weight"] == 0.5e-3
    cls_token = made.model.transformer.cls_token
    assert not cls_token.requires_grad
    batch_norms = [m for m in made.model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(module.training for module in batch_norms)


def test_a_wrong_pattern_to_freeze_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"resnte.*resnet"):
        learner(tmp_path, freeze=("resnte.*",))
    with pytest.raises(ValueError, match="--freeze-epochs needs --freeze"):
        tiny(tmp_path, freeze_epochs=2).check()


def test_gradient_checkpointing_keeps_less_and_computes_the_same(tmp_path: Path) -> None:
    results, kept = [], []
    for checkpointing in (False, True):
        made = learner(tmp_path, grad_checkpointing=checkpointing)
        sizes: list[int] = []

        def note(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            made._accumulate(*batch(), share=1.0)
        kept.append(len(sizes))
        results.append([p.grad for p in made.parameters])
    assert kept[1] < kept[0]
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("constant", [1.0, 1.0, 1.0]),
        ("linear", [1.0, 0.55, 0.1]),
        ("cosine", [1.0, 0.55, 0.1]),
        ("poly", [1.0, 0.1 + 0.9 * 0.5**0.9, 0.1]),
        ("step", [1.0, 0.1 + 0.9 * 0.1, 0.1 + 0.9 * 0.01]),
        ("one-cycle", [0.04, 0.1 + 0.9 * 0.8117449, 0.1]),
    ],
)
def test_schedules(kind: str, expected: list[float]) -> None:
    schedule = Schedule(kind, floor=0.1, decay_steps=50, decay_rate=0.1)
    got = [schedule.factor(step, step / 100) for step in (0, 50, 100)]
    assert got == pytest.approx(expected, abs=1e-6)


def test_one_cycle_and_warm_up_rise() -> None:
    assert Schedule("one-cycle").factor(30, 0.3) == pytest.approx(1.0)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, total_steps=101, final_div_factor=1e9
    )
    for step in range(101):
        factor = Schedule("one-cycle").factor(step, step / 100)
        assert factor == pytest.approx(theirs.get_last_lr()[0], abs=0.03), step
        optimizer.step()
        theirs.step()
    assert [Schedule("constant", 4).factor(i, 0.0) for i in range(5)] == [0.25, 0.5, 0.75, 1, 1]


def test_the_best_by_a_metric_and_patience() -> None:
    class Result:
        def __init__(self, loss: float) -> None:
            self.loss, self.dice = loss, loss

    best = Best("loss", patience=2)
    taken = [best.update(Result(loss)) for loss in (0.9, float("nan"), 0.8, 0.85)]
    assert taken == [True, False, True, False]
    assert not best.exhausted()
    other = Best("loss", patience=2)
    other.load_state_dict(best.state_dict())
    assert not other.update(Result(0.8))
    assert other.exhausted()
    assert other.value == 0.8
    highest = Best("dice")
    assert [highest.update(Result(value)) for value in (0.5, 0.4, 0.6)] == [True, False, True]


def test_create_model_has_no_checkpointing_by_itself() -> None:
    assert not create_model("transfuse_t").transformer.checkpointing


def test_frozen_parameters_train_later_with_momentum_too(tmp_path: Path) -> None:
    made = learner(tmp_path, optimizer="sgd", freeze=("resnet",), freeze_epochs=1)
    weight = made.model.resnet.conv1.weight
    before = weight.detach().clone()
    for epoch in range(2):
        made.begin_epoch(epoch)
        assert torch.equal(weight, before)
        made.step(*batch(), epoch)
    assert not torch.equal(weight, before)
    gradient = made.optimizer.state[weight]["momentum_buffer"]
    assert torch.allclose(before - weight, gradient * made.config.lr, rtol=1e-3, atol=1e-8)
