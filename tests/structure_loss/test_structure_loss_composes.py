"""The structure loss inside a training step: autocast, scaler, checkpoints, DDP, modules."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from test_structure_loss import scene
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastclip

pytestmark = pytest.mark.core

BF16, F16 = torch.bfloat16, torch.float16
grads = torch.autograd.grad


class Net(nn.Module):
    """Three heads over one image, as deep supervision has them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.heads = nn.ModuleList(nn.Conv2d(4, 1, 3, padding=1) for _ in range(3))

    def forward(self, image):
        x = self.stem(image).relu()
        return [head(x) for head in self.heads]


def batch(count=4):
    (image,), mask = scene((count, 3, 20, 24))
    return image, mask[:, :1]


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_autocast_gives_half_logits_and_a_float32_loss(dtype):
    model, (image, mask) = Net(), batch()
    with torch.autocast("cpu", dtype):
        logits = model(image)
        loss = fastclip.structure_loss(logits, mask)
    assert {x.dtype for x in logits} == {dtype}
    assert loss.dtype == torch.float32
    assert torch.equal(loss, fastclip.structure_loss(logits, mask))  # autocast leaves it alone
    assert {g.dtype for g in grads(loss, logits)} == {dtype}


def test_grad_scaler_saves_half_gradients_from_underflow():
    (x,), m = scene((16, 1, 64, 256), F16)  # 4e-6 a pixel; half holds steps of 6e-8 there
    single = x.float().requires_grad_()
    x.requires_grad_()
    (true,) = grads(fastclip.structure_loss(single, m), single)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)

    def error(factor):
        (grad,) = grads(fastclip.structure_loss(x, m) * factor, x)
        return ((grad.float() / factor - true).norm() / true.norm()).item()

    scale = scaler.scale(torch.ones(())).item()
    assert error(scale) < 1e-3
    assert error(1) > 10 * error(scale)


def test_grad_scaler_skips_the_step_of_an_infinite_logit():
    weight = torch.ones(1, 1, 8, 8, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=1e6)
    scaler = torch.amp.GradScaler("cpu")
    mask = torch.ones(1, 1, 8, 8)
    image = torch.full((1, 1, 8, 8), 2.0, dtype=F16)
    for pixel, moves in ((float("nan"), False), (1.0, True)):
        image[0, 0, 3, 3] = pixel
        before = weight.detach().clone()
        scaler.scale(fastclip.structure_loss(weight.half() * image, mask)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert torch.equal(weight, before) != moves


def test_checkpointing_recomputes_the_loss_and_keeps_the_gradient():
    model, (image, mask) = Net(), batch()
    calls = []

    def step(image):
        calls.append(1)
        return fastclip.structure_loss(model(image), mask)

    expected = grads(step(image), list(model.parameters()))
    loss = torch.utils.checkpoint.checkpoint(step, image, use_reentrant=False)
    got = grads(loss, list(model.parameters()))
    assert len(calls) == 3
    torch.testing.assert_close(got, expected)


def test_gradients_of_a_kept_graph_are_fresh_and_scaled_by_their_own_upstream():
    xs, m = scene((2, 1, 12, 14), heads=2)
    xs = [x.requires_grad_() for x in xs]
    loss = fastclip.structure_loss(xs, m)
    once = [g.clone() for g in grads(loss, xs, retain_graph=True)]
    for factor in (2.0, 0.5):
        got = grads(loss, xs, torch.tensor(factor), retain_graph=True)
        torch.testing.assert_close(got, tuple(factor * g for g in once))
        for g in got:
            g.fill_(7)  # what a user does with a gradient must not reach the graph


def test_gradients_accumulate_over_two_losses_of_the_same_logits():
    (x,), m = scene((2, 1, 12, 14))
    x.requires_grad_()
    one, two = (fastclip.structure_loss(x, mask) for mask in (m, 1 - m))
    expected = grads(one, x, retain_graph=True)[0] + grads(two, x, retain_graph=True)[0]
    (one + two).backward()
    torch.testing.assert_close(x.grad, expected)


def test_autograd_grad_for_some_heads_only():
    xs, m = scene((2, 1, 12, 14), heads=3)
    xs = [x.requires_grad_() for x in xs]
    loss = fastclip.structure_loss(xs, m)
    (got,) = grads(loss, xs[1])
    assert torch.equal(got, grads(fastclip.structure_loss(xs, m), xs)[1])


def test_each_image_has_its_own_upstream_gradient():
    (x,), m = scene((3, 1, 12, 14))
    x.requires_grad_()
    each = fastclip.structure_loss(x, m, reduction="none")
    (got,) = grads(each[1].sum(), x)
    alone = x.detach()[1:2].clone().requires_grad_()
    (expected,) = grads(fastclip.structure_loss(alone, m[1:2]), alone)
    assert got[0].count_nonzero() == got[2].count_nonzero() == 0
    torch.testing.assert_close(got[1:2], expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_no_graph_where_none_is_recorded(mode):
    (x,), m = scene((2, 1, 12, 14))
    x.requires_grad_()
    expected = fastclip.structure_loss(x, m)
    with mode():
        loss = fastclip.structure_loss(x, m)
    assert torch.equal(loss, expected)
    assert not loss.requires_grad
    assert expected.requires_grad


def test_deterministic_mode_allows_it_and_changes_no_bit():
    (x,), m = scene((2, 1, 40, 30))
    x.requires_grad_()
    loss = fastclip.structure_loss(x, m)
    torch.use_deterministic_algorithms(True)
    try:
        again = fastclip.structure_loss(x, m)
        assert torch.equal(again, loss)
        assert torch.equal(*grads(again, x), *grads(loss, x))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copied_module_is_the_same_loss(copied):
    xs, m = scene((2, 1, 12, 14), heads=2)
    options = {"window": 5, "boundary_weight": 2.0, "smooth": 0.5, "bce": "mean"}
    module = fastclip.StructureLoss(**options, head_weights=(0.5, 2.0))
    other = copied(module)
    assert torch.equal(other(xs, m), module(xs, m))
    assert not torch.equal(other(xs, m), fastclip.StructureLoss()(xs, m))
    assert repr(other) == repr(module)


def test_a_module_adds_nothing_to_a_checkpoint():
    weights = Net().state_dict()
    model = Net()
    model.loss = fastclip.StructureLoss()
    model.load_state_dict(weights, strict=True)
    assert model.state_dict().keys() == weights.keys()


def ddp_rank(rank, meeting, out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    model = nn.parallel.DistributedDataParallel(Net())
    image, mask = (tensor[2 * rank : 2 * rank + 2] for tensor in batch(4))
    fastclip.structure_loss(model(image), mask).backward()
    if rank == 0:
        torch.save([p.grad for p in model.module.parameters()], out)
    dist.barrier()  # neither leaves while the other's threads still talk to it
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")
def test_two_ddp_ranks_have_the_gradient_of_the_whole_batch(tmp_path):
    model, (image, mask) = Net(), batch(4)
    expected = grads(fastclip.structure_loss(model(image), mask), list(model.parameters()))
    arguments = (str(tmp_path / "meeting"), str(tmp_path / "grads.pt"))
    torch.multiprocessing.spawn(ddp_rank, arguments, nprocs=2)
    torch.testing.assert_close(torch.load(tmp_path / "grads.pt"), list(expected))


class Names(TorchDispatchMode):
    """Notes the ops of torch that run; the eager path on the CPU, which has none, stands aside."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(function.name())
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("head_weights", [None, (0.5, 0.3)])
def test_head_weights_are_no_tensor_that_a_graph_would_have_to_copy(head_weights):
    xs, m = scene((2, 1, 8, 8), heads=2)
    with Names() as names:
        fastclip.structure_loss(xs, m, head_weights=head_weights)
    assert "aten::sum" in {name.partition(".")[0] for name in names.seen}
    assert not [name for name in names.seen if "copy" in name or "lift" in name]


def test_bce_mean_is_what_the_legacy_argument_computes():
    """PraNet and F3Net pass reduce='none', which torch takes for true: the BCE is one mean."""
    (x,), m = scene((2, 1, 40, 36), torch.float64, torch.float64)
    w = 1 + 5 * (F.avg_pool2d(m, 31, stride=1, padding=15) - m).abs()
    with pytest.warns(UserWarning, match="reduce"):
        bce = F.binary_cross_entropy_with_logits(x, m, reduce="none")
    s, pixels = x.sigmoid(), (2, 3)
    both = (w * s * m).sum(pixels)
    either = (w * (s + m)).sum(pixels) - both
    expected = ((w * bce).sum(pixels) / w.sum(pixels) + 1 - (both + 1) / (either + 1)).mean()
    torch.testing.assert_close(fastclip.structure_loss(x, m, bce="mean"), expected)
    assert abs(fastclip.structure_loss(x, m) - expected) > 1e-3  # the other meaning


def test_calls_of_published_scripts_need_no_change():
    """They call structure_loss(pred, mask), one head after another."""
    xs, m = scene((2, 1, 20, 22), heads=3)
    one_by_one = sum(fastclip.structure_loss(pred, m) for pred in xs)
    torch.testing.assert_close(one_by_one, fastclip.structure_loss(xs, m))
