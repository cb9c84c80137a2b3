"""The command `fastclip bench`: its arguments, and what it prints and writes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch

from fastclip.benchmark import machine, operations, picture, step
from fastclip.benchmark.errors import BenchmarkError
from fastclip.benchmark.models import builtin, libraries, workload
from fastclip.benchmark.result import Result

DESCRIPTION = """Measures torch against fastclip on this machine, in a real training step.

Without arguments: a small GPT, two lists of gradients and the structure loss, in two minutes.
With --model, your own: what a clip is of its step, what fastclip changes, and whether it pays.
Nothing is downloaded, and no weights are needed.
"""
EPILOG = """examples:
  fastclip bench
  fastclip bench --model timm:resnet50 --batch-size 8
  fastclip bench --model hf:bert-base-uncased --sequence-length 128 --optimizer adamw
  fastclip bench --model my_package.my_module:build --json result.json --png result.png

build() takes no arguments and returns (model, batch), or (model, loss) with a function loss(model)
of the model alone; a bare model needs --input-shape.
"""
FINISHING_S = 15  # of the time asked for, for machine, model and single calls


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints.

    Args:
        argv: the arguments after `fastclip bench`; those of the process where None.

    Returns:
        0, or 2 where an argument or the model cannot be measured; one line on stderr says why.
    """
    try:
        parsed = parser().parse_args(argv)
        result = measured(parsed)
        print(result.text())
        if parsed.json:
            parsed.json.write_text(result.json() + "\n", encoding="utf-8")
        if parsed.png:
            picture.draw(result, parsed.png)
    except SystemExit:  # --help has been printed
        return 0
    except BrokenPipeError:  # no fault of the measurement: the command line knows whose pipe it is
        raise
    except (BenchmarkError, OSError) as error:
        print(f"fastclip: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


class Parser(argparse.ArgumentParser):
    """Raises for a wrong argument, where argparse prints its usage and exits."""

    def error(self, message: str) -> NoReturn:
        raise BenchmarkError(f"{message} (fastclip bench --help)")


def parser() -> Parser:
    """The command's arguments."""
    found = Parser(
        prog="fastclip bench",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = found.add_argument
    add("--model", default="", metavar="SPEC", help="timm:NAME, hf:NAME or my_package.module:build")
    add("--device", choices=("cpu", "cuda"), help="the GPU where torch finds one, by default")
    add("--dtype", default="float32", choices=tuple(workload.DTYPES), help="default: float32; "
        "autocast: float32 parameters, forward pass in bfloat16")  # fmt: skip
    add("--optimizer", default="adamw", metavar="NAME", help="any of torch.optim; default: adamw")
    add("--batch-size", type=_positive, default=0, metavar="N")
    add("--sequence-length", type=_positive, default=0, metavar="N", help="tokens; default: 128")
    add("--input-shape", type=_shape, default=(), metavar="CxHxW", help="of one input of the model")
    add("--seconds", type=_positive, default=120, metavar="S", help="about so long; default: 120")
    add("--json", type=Path, metavar="FILE", help="writes every figure")
    add("--png", type=Path, metavar="FILE", help="draws the parts of a step (needs matplotlib)")
    return found


def measured(parsed: argparse.Namespace) -> Result:
    """The run that the arguments ask for."""
    device = _device(parsed.device)
    for path in (parsed.json, parsed.png):
        if path is not None and not path.absolute().parent.is_dir():
            raise BenchmarkError(f"{path}: there is no folder {path.absolute().parent}")
    request = workload.Request(
        device, parsed.dtype, parsed.batch_size, parsed.sequence_length, parsed.input_shape
    )
    budget_s = max(parsed.seconds - FINISHING_S, parsed.seconds / 2)
    print(f"measuring on {device}, about {parsed.seconds} s ...", file=sys.stderr)
    try:
        work = _workload(parsed.model, request)
        optimizer = step.optimizer_of(parsed.optimizer, work.parameters())
        times = step.measured(work, optimizer, device, budget_s * 1e3)
    except torch.OutOfMemoryError as error:
        raise BenchmarkError(
            f"the GPU's memory does not hold the step: try a smaller --batch-size ({error})"
        ) from error
    return Result(
        machine.measured(device),
        work.name,
        work.batch,
        parsed.dtype,
        type(optimizer).__name__ + (", fused" if optimizer.defaults.get("fused") else ""),
        times,
        [] if parsed.model else operations.measured(device, parsed.dtype),
    )


def _workload(spec: str, request: workload.Request) -> workload.Workload:
    kind, _, name = spec.partition(":")
    if not spec:
        return builtin.small_gpt(request)
    if not name:
        raise BenchmarkError(
            f"--model {spec}: say where it is from, as timm:{spec}, hf:{spec} or "
            "my_package.my_module:build"
        )
    if kind == "timm":
        return libraries.timm_model(name, request)
    if kind == "hf":
        return libraries.transformers_model(name, request)
    return workload.of_function(spec, request)


def _device(asked: str | None) -> str:
    has_cuda = torch.cuda.is_available()
    if asked == "cuda" and not has_cuda:
        raise BenchmarkError(f"--device cuda: torch {torch.__version__} finds no CUDA device here")
    return asked or ("cuda" if has_cuda else "cpu")


def _positive(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text!r}")
    return value


def _shape(text: str) -> tuple[int, ...]:
    try:
        sides = tuple(int(side) for side in text.lower().split("x"))
    except ValueError:
        sides = ()
    if not sides or min(sides) < 1:
        raise argparse.ArgumentTypeError(f"must be like 3x224x224, got {text!r}")
    return sides


if __name__ == "__main__":
    sys.exit(main())
