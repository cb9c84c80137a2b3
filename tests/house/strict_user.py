"""A user's file that calls every public function: `mypy --strict` accepts it (test_types.py)."""

import torch
from torch import Tensor, nn

import fastclip
from fastclip import (
    AGC,
    AutoClip,
    NormMonitor,
    NormReport,
    ParamGroups,
    StructureLoss,
    TensorStats,
    ZClip,
)

model = nn.Linear(2, 2)
parameters = list(model.parameters())

norm: Tensor = fastclip.clip_grad_norm_(parameters, 1.0)
norm = fastclip.clip_grad_norm_(model.parameters(), 1, norm_type=float("inf"))
norm = fastclip.clip_grad_norm_(parameters[0], 1.0, 2.0, True, False)
norm = fastclip.get_total_norm([p.grad for p in parameters if p.grad is not None])
fastclip.clip_grads_with_norm_(parameters, 1.0, norm)
fastclip.clip_grad_value_(parameters, 0.5)
norm = fastclip.distributed.clip_grad_norm_(parameters, 1.0, groups=None, shared=[])
norm = fastclip.distributed.get_total_norm(parameters, 2.0)
norm = fastclip.clip_tensors_([torch.ones(2), torch.ones(3)], 1.0)

fastclip.patch_torch()
fastclip.unpatch_torch()
with fastclip.patched_torch():
    pass

groups: ParamGroups = fastclip.param_groups(model, lr=1e-3, weight_decay=0.1)
optimizer = torch.optim.AdamW(groups, fused=True)
print(groups.explain())
norms: Tensor = fastclip.clip_groups_(optimizer, 1.0)
norm = fastclip.clip_grads_in_step_(optimizer, 1.0)
scaler = torch.amp.GradScaler("cpu")
norm = fastclip.unscale_and_clip_grad_norm_(scaler, optimizer, 1.0)

for clipper in (AutoClip(10.0, history=100), ZClip(threshold=2.5)):
    norm = clipper.clip_(parameters)
    clipper.load_state_dict(clipper.state_dict())
agc = AGC(0.01)
agc.clip_(parameters)

report: NormReport = fastclip.grad_norms(model)
report = fastclip.grad_norms(model.named_parameters(), float("inf"), stats=True)
report = fastclip.param_norms(model, 1)
one, two = fastclip.grad_norms(model, (1.0, 2.0))
several: tuple[NormReport, ...] = fastclip.param_norms(model, [1.0, 2.0], stats=True)
total: float = report.total + one.total + two.total
numbers: dict[str, float] = report.per_parameter
stats: dict[str, TensorStats] = several[0].stats
print(report.table(), report.nonfinite(), report.per_group(groups), report.skipped)
print(report.per_group(optimizer.param_groups), stats["weight"].mean, stats["weight"].abs_max)

with NormMonitor(model, optimizer, every=50, max_norm=1.0, csv="norms.csv", by="depth") as monitor:
    monitor.observe(norm)
    monitor.observe(1.5)
    monitor.flush()
    logged: dict[str, float] = monitor.log_dict()
    monitor.load_state_dict(monitor.state_dict())
    print(monitor.history, monitor.is_measuring, monitor.log_rows(3))
NormMonitor(list(model.named_parameters()), optimizer, by=lambda name: name[:3]).close()

logits, mask = torch.randn(1, 1, 8, 8), torch.ones(1, 1, 8, 8)
loss: Tensor = fastclip.structure_loss(logits, mask)
loss = fastclip.structure_loss([logits, logits], mask, window=31, head_weights=[0.5, 1.0])
loss = StructureLoss(bce="mean")(logits, mask)
print(fastclip.__version__)
