"""What last.pt holds of a run, and a run that goes on from it."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fastclip.transfuse.optimization.selection import Best
from fastclip.transfuse.safety import continuation
from fastclip.transfuse.storage.checkpoint import load_weights
from fastclip.transfuse.training import setup
from fastclip.transfuse.training.schedule import changed_rates

if TYPE_CHECKING:
    from fastclip.transfuse.training.trainer import Trainer

# Attributes of a trainer that are numbers, and go into the checkpoint under their names. `batch`
# counts steps of all processes together: another number of them goes on at the same image.
COUNTERS = ("step", "epoch", "batch", "validated", "best_step")


def content_of(trainer: Trainer) -> dict[str, Any]:
    """What last.pt holds, and best.pt a part of it; whole in the main process. All call it."""
    processes = trainer.processes
    config = asdict(trainer.config)
    cuda = trainer.device.type == "cuda"
    return {
        "model": trainer.config.model,
        "weights": processes.whole(trainer.learner.evaluated.state_dict()),
        "config": {k: str(v) if isinstance(v, Path) else v for k, v in config.items()},
        **{name: getattr(trainer, name) for name in COUNTERS},
        **trainer.scores,
        "best": trainer.best.state_dict(),
        **processes.whole(trainer.learner.state_dict()),
        "seconds": trainer.seconds(),
        "rng": torch.get_rng_state(),
        "rng_cuda": torch.cuda.get_rng_state(trainer.device) if cuda else None,
        "record": trainer.record.state(),
        "bad_steps": trainer.bad_steps.state(),
        "data": trainer.data,
    }


def restore(trainer: Trainer, content: dict[str, Any], best_gone: bool) -> None:
    """The inverse of `content_of`, for a trainer of the same flags and data.

    Args:
        trainer: at its start.
        content: of a last.pt, on the CPU.
        best_gone: whether there is no best.pt beside it.
    """
    learner = trainer.learner
    weights = trainer.processes.parts(content["weights"], learner.evaluated)
    load_weights(learner.evaluated, {**content, "weights": weights}, trainer.saver.last)
    learner.load_state_dict(content)
    trainer.best.load_state_dict(content["best"])
    for name in COUNTERS:
        setattr(trainer, name, int(content.get(name, getattr(trainer, name))))
    trainer.scores = {name: content[name] for name in ("dice", "loss") if name in content}
    trainer.seconds_before = float(content["seconds"])
    trainer.record.restore(content["record"])
    trainer.bad_steps.restore(content.get("bad_steps", trainer.bad_steps.state()))
    torch.set_rng_state(content["rng"])
    if content["rng_cuda"] is not None and trainer.device.type == "cuda":
        torch.cuda.set_rng_state(content["rng_cuda"], trainer.device)
    _say_changes(trainer, content["config"])
    trainer.processes.on_main(lambda: trainer.saver.complete(content))
    if best_gone and 0 <= trainer.best_step != trainer.step:
        trainer.record.say(f"{trainer.saver.best} is gone: the best from here on takes its place")
        trainer.best = Best(trainer.config.best_by, trainer.config.patience)
        trainer.best_step = -1


def _say_changes(trainer: Trainer, before: dict[str, Any]) -> None:
    """Another budget under a decay is another learning rate, from the first step on."""
    config, budget = trainer.config, trainer.budget
    flags = continuation.budget_flags(before)
    old = setup.budget_of(replace(config, **flags), trainer.per_epoch)
    step = trainer.step
    if rates := changed_rates(trainer.schedule, (old, budget), step, trainer.seconds_before):
        was, now = (config.lr * rate for rate in rates)
        trainer.record.say(
            f"the budget was {old} and is {budget}: under --schedule {config.schedule} the "
            f"learning rate at step {step} is {now:.2e}, where it was {was:.2e}"
        )
