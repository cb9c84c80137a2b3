"""A limit for each group or parameter, against torch's clip of one group after the other."""

from __future__ import annotations

import math

import pytest
import torch
from gpu_backend import needs_cuda_build
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import fastclip
from fastclip import native

pytestmark = pytest.mark.core

SHAPES = [[(3, 4), (5,)], [(), (2, 3, 3), (0, 4)], [(7,)], []]
LIMITS = [0.5, 1e9, 0.0, 1.0]


def parameter(grad: torch.Tensor | None, dtype: torch.dtype | None = None) -> nn.Parameter:
    shape = () if grad is None else grad.shape
    p = nn.Parameter(torch.zeros(shape, dtype=dtype if grad is None else grad.dtype))
    if grad is not None:
        p.grad = grad
    return p


def groups(dtype=torch.float32, layout=lambda g: g) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for shapes, limit in zip(SHAPES, LIMITS, strict=True):
        grads = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
        params = [parameter(layout(grad.to(dtype))) for grad in grads]
        made.append({"params": [*params, parameter(None, dtype)], "max_norm": limit})
    return made


def strided(grad: torch.Tensor) -> torch.Tensor:
    return grad if grad.ndim < 2 else torch.stack([grad, grad], -1)[..., 0]


def by_torch(made: list[dict], per_parameter: bool, p: float) -> list[torch.Tensor]:
    norms = []
    for group in made:
        for unit in [[q] for q in group["params"]] if per_parameter else [group["params"]]:
            norms.append(nn.utils.clip_grad_norm_(unit, group["max_norm"], p))
    return norms


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("layout", [lambda g: g, strided], ids=["dense", "strided"])
@pytest.mark.parametrize("per_parameter", [False, True])
@pytest.mark.parametrize("p", [2.0, 1.0, 3.0])
def test_each_is_clipped_as_by_torch_alone(dtype, layout, per_parameter, p):
    made, others = groups(dtype, layout), groups(dtype, layout)
    got = fastclip.clip_groups_(made, norm_type=p, per_parameter=per_parameter)
    expected = by_torch(others, per_parameter, p)
    tolerance = {torch.float64: 1e-10, torch.bfloat16: 2e-2}.get(dtype, 1e-5)
    torch.testing.assert_close(
        got.double(), torch.stack([n.double() for n in expected]), rtol=tolerance, atol=0
    )
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for group, other in zip(made, others, strict=True):
        for q, r in zip(group["params"], other["params"], strict=True):
            torch.testing.assert_close(q.grad, r.grad, rtol=tolerance, atol=0)


def test_lists_for_several_threads_of_many_dtypes():
    made = []
    for seed, dtype in enumerate((torch.float32, torch.float64, torch.bfloat16, torch.float16)):
        grads = [torch.ones(n, dtype=dtype) for n in (1_100_000, 33, 700_001)]
        made.append({"params": [parameter(grad) for grad in grads], "max_norm": 10.0 * seed})
    fastclip.clip_groups_(made)
    size = math.sqrt(1_100_000 + 33 + 700_001)
    for seed, group in enumerate(made):
        for q in group["params"]:
            right = torch.full_like(q.grad, 10.0 * seed / size)
            torch.testing.assert_close(q.grad, right)


@pytest.mark.skipif(native.core is None, reason=f"no core: {native.why_missing}")
def test_only_what_is_over_its_limit_is_written():
    over, within = parameter(torch.ones(4)), parameter(torch.full((4,), 0.1))
    versions = over.grad._version, within.grad._version
    fastclip.clip_groups_([{"params": [over, within]}], 1.0, per_parameter=True)
    assert over.grad._version > versions[0]
    assert within.grad._version == versions[1]
    assert over.grad.norm().item() == pytest.approx(1.0, rel=1e-5)


def test_an_optimizer_its_wrapper_and_the_default_limit():
    made = groups()
    del made[0]["max_norm"]
    made[1]["max_norm"] = None
    made[2]["max_norm"] = math.inf
    optimizer = torch.optim.SGD(made, lr=0.1)
    norms = fastclip.clip_groups_(optimizer, 0.25)
    assert norms.shape == (4,)

    class Wrapper:
        def __init__(self, inner):
            self.optimizer = inner

        def __getattr__(self, name):
            return getattr(self.__dict__["optimizer"], name)

    again = fastclip.clip_groups_(Wrapper(optimizer), 0.25)
    assert again[:2].tolist() == pytest.approx([0.25, 0.25], rel=1e-5)
    assert again[2] == norms[2] > 0.25
    assert again[3] == 0


def test_an_infinite_limit_leaves_even_infinities_alone():
    for per_parameter in (False, True):
        p = parameter(torch.tensor([1.0, math.inf]))
        fastclip.clip_groups_([{"params": p, "max_norm": math.inf}], per_parameter=per_parameter)
        assert p.grad.tolist() == [1.0, math.inf]


@pytest.mark.parametrize("per_parameter", [False, True])
def test_a_norm_that_is_not_finite_names_its_parameters_before_anything_changes(per_parameter):
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    for p in net.parameters():
        p.grad = torch.full_like(p, 5.0)
    net[1].weight.grad[0, 0] = math.nan
    before = [p.grad.clone() for p in net.parameters()]
    made = [
        {"params": list(net[0].named_parameters(prefix="0")), "max_norm": 1.0},
        {"params": list(net[1].named_parameters(prefix="1")), "max_norm": 1.0},
    ]
    with pytest.raises(RuntimeError, match=r"non-finite.*gradients of 1\.weight \(1 of 4\)"):
        fastclip.clip_groups_(made, per_parameter=per_parameter, error_if_nonfinite=True)
    after = [p.grad for p in net.parameters()]
    torch.testing.assert_close(after, before, rtol=0, atol=0, equal_nan=True)
    norms = fastclip.clip_groups_(made, per_parameter=per_parameter)
    assert net[0].weight.grad.isfinite().all()
    assert norms.isnan().sum() == 1


def test_nothing_to_clip():
    assert fastclip.clip_groups_([]).shape == (0,)
    assert fastclip.clip_groups_([{"params": []}], 1.0).tolist() == [0.0]
    made = [{"params": [parameter(None), parameter(None)]}]
    assert fastclip.clip_groups_(made, 1.0, per_parameter=True).tolist() == [0.0, 0.0]


P = nn.Parameter(torch.zeros(2))


@pytest.mark.parametrize(
    ("given", "limit", "error", "named"),
    [
        ([{"params": [P]}], None, ValueError, "group 0 has no 'max_norm'"),
        ([{"params": [P], "max_norm": -1.0}], None, ValueError, "max_norm of group 0.*-1.0"),
        ([{"params": [P], "max_norm": math.nan}], None, ValueError, "max_norm of group 0.*nan"),
        ([{"params": [P]}], "x", ValueError, "max_norm of group 0"),
        ([{"params": [P]}, {"params": [P]}], 1.0, ValueError, "listed twice"),
        ([{"params": [P, P]}], 1.0, ValueError, "listed twice"),
        ([P], 1.0, TypeError, "group 0 must be a dict with 'params', got a Parameter"),
        ({"params": [P]}, 1.0, TypeError, "a list of groups, got a dict"),
        (nn.Linear(1, 1), 1.0, TypeError, "a list of groups, got a Linear"),
        ([{"params": iter([P])}], 1.0, TypeError, "'params' of group 0 is a list_iterator"),
        ([{"params": {P}}], 1.0, TypeError, "'params' of group 0 is a set"),
        ([{"params": ["weight"]}], 1.0, TypeError, "'params' of group 0 holds a str"),
    ],
)
def test_wrong_arguments_are_named(given, limit, error, named):
    with pytest.raises(error, match=named):
        fastclip.clip_groups_(given, limit)


@needs_cuda_build
@pytest.mark.parametrize("per_parameter", [False, True])
def test_a_gpu_is_not_waited_for(per_parameter):
    """On fake tensors, which have a device and no values: reading one would raise."""
    with FakeTensorMode():
        made = []
        for limit in LIMITS:
            ps = [nn.Parameter(torch.ones(s, device="cuda")) for s in [(3, 4), (5,)]]
            for p in ps:
                p.grad = torch.ones_like(p)
            made.append({"params": ps, "max_norm": limit})
        norms = fastclip.clip_groups_(made, per_parameter=per_parameter)
        assert norms.device.type == "cuda"
        with pytest.raises(DataDependentOutputException):
            norms[0].item()


@pytest.mark.parametrize("per_parameter", [False, True])
def test_dtensors(per_parameter):
    dist = pytest.importorskip("torch.distributed")
    if not dist.is_available() or dist.is_initialized():
        pytest.skip("needs torch.distributed, not in use")
    from torch.distributed.tensor import Shard, distribute_tensor

    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        mesh = dist.init_device_mesh("cpu", (1,))
        made, others = groups(), groups()
        for group in made:
            for i, q in enumerate(group["params"]):
                if q.grad is not None and q.ndim:
                    whole = distribute_tensor(q.detach(), mesh, [Shard(0)])
                    group["params"][i] = nn.Parameter(whole)
                    group["params"][i].grad = distribute_tensor(q.grad, mesh, [Shard(0)])
        got = fastclip.clip_groups_(made, per_parameter=per_parameter)
        expected = by_torch(others, per_parameter, 2.0)
        torch.testing.assert_close(got, torch.stack(expected), rtol=1e-5, atol=0)
        for group, other in zip(made, others, strict=True):
            for q, r in zip(group["params"], other["params"], strict=True):
                whole = q.grad if q.grad is None or not q.ndim else q.grad.full_tensor()
                torch.testing.assert_close(whole, r.grad, rtol=1e-5, atol=0)
    finally:
        dist.destroy_process_group()
