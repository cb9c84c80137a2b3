"""What the measurements mean, in words."""

from __future__ import annotations

from fastclip.benchmark.operations import Operation
from fastclip.benchmark.step import FASTCLIP, IN_STEP, TORCH, Step
from fastclip.benchmark.timing import Time

SMALL, WORTH = 0.01, 0.05  # of a step that gets shorter
FELT = 1e-4  # relative error of a norm from which a limit is another limit


def of_step(step: Step) -> list[str]:
    """Sentences on the share of a step, on what a change saves, and on the norm."""
    sentences = [_share(step, mode) for mode in step.modes]
    sentences += [_saving(step), *_in_step(step), _accuracy(step.errors)]
    return sentences


def step_ms(step: Step, mode: str, name: str) -> float:
    """Milliseconds of a whole step that clips by this variant."""
    if name == IN_STEP:
        return step.forward_backward.median_ms + step.modes[mode].with_optimizer[name].median_ms
    clip = step.modes[mode].alone[name].median_ms
    return step.forward_backward.median_ms + clip + step.optimizer.median_ms


def saved(step: Step, mode: str, name: str) -> float:
    """The part of torch's step that this variant saves; negative where it is slower."""
    return 1 - step_ms(step, mode, name) / step_ms(step, mode, TORCH)


def differ(one: Time, other: Time) -> bool:
    """Whether the middle halves of the measurements of two variants lie apart."""
    return one.high_ms < other.low_ms or other.high_ms < one.low_ms


def _share(step: Step, mode: str) -> str:
    shares = {
        name: time.median_ms / step_ms(step, mode, name)
        for name, time in step.modes[mode].alone.items()
    }
    what = {"not clipping": "nothing to clip", "clipping": "every step clipped"}[mode]
    return (
        f"With {what}, your clip takes {percent(shares[TORCH])} of a step; "
        f"with fastclip {percent(shares[FASTCLIP])}."
    )


def _saving(step: Step) -> str:
    clips = [times.alone for times in step.modes.values()]
    if all(not differ(times[TORCH], times[FASTCLIP]) for times in clips):
        return "The two are no further apart than single measurements here: no speed to gain."
    least = min(saved(step, mode, FASTCLIP) for mode in step.modes)
    most = max(saved(step, mode, FASTCLIP) for mode in step.modes)
    if least < 0 and any(
        differ(t[TORCH], t[FASTCLIP]) and t[FASTCLIP].median_ms > t[TORCH].median_ms for t in clips
    ):
        return (
            f"fastclip is slower here in at least one case (a step takes {percent(-least)} more): "
            "keep torch's clip for the speed."
        )
    if most < SMALL:
        return f"A step gets {percent(most)} shorter: not worth changing for the speed alone."
    if most < WORTH:
        return f"A step gets up to {percent(most)} shorter: a small gain for one changed import."
    return f"A step gets up to {percent(most)} shorter: worth changing the import."


def _in_step(step: Step) -> list[str]:
    found = []
    for mode, times in step.modes.items():
        both = times.with_optimizer
        if IN_STEP not in both or not differ(both[IN_STEP], both[FASTCLIP]):
            continue
        gain = both[FASTCLIP].median_ms / both[IN_STEP].median_ms - 1
        if gain > SMALL:
            found.append(
                f"clip_grads_in_step_ makes clip and optimizer together {percent(gain)} faster "
                f"again ({mode})."
            )
        elif gain < -SMALL:
            found.append(
                f"clip_grads_in_step_ is slower than clip and step() here ({mode}): "
                "use clip_grad_norm_."
            )
    return found


def _accuracy(errors: dict[str, float]) -> str:
    text = (
        f"The norm is {errors[TORCH]:.0e} from float64 by torch and {errors[FASTCLIP]:.0e} by "
        "fastclip"
    )
    if errors[TORCH] > FELT and errors[TORCH] > 2 * errors[FASTCLIP]:
        return f"{text}: torch clips to another limit than the one you set."
    return f"{text}: no difference that training feels."


def of_operations(operations: list[Operation]) -> list[str]:
    """A sentence for each call that was measured outside a step."""
    found = []
    for operation in operations:
        torch_time, ours = operation.times[TORCH], operation.times[FASTCLIP]
        if not differ(torch_time, ours):
            found.append(f"{operation.name}: no difference that this machine lets one see.")
            continue
        ratio = torch_time.median_ms / ours.median_ms
        words = f"{ratio:.1f}x faster" if ratio > 1 else f"{1 / ratio:.1f}x slower"
        found.append(f"{operation.name}: fastclip is {words}.")
    return found


def percent(share: float) -> str:
    """A share as people say it: 12 %, 1.9 %, 0.04 %."""
    value = 100 * share
    digits = 0 if abs(value) >= 10 else 1 if abs(value) >= 1 else 2
    return f"{value:.{digits}f} %"
