"""The `fastclip` command: what runs here, the TransFuse trainer, and the benchmark."""

from __future__ import annotations

import importlib
import os
import select
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from fastclip.distribution import install_hint, overwritten
from fastclip.openmp import restart_with_short_spin


class Command(NamedTuple):
    """A command: its line of help, and `module:name` of its configuration and of its work.

    Without a configuration the work takes the arguments themselves. `trains`: torch computes for
    long, so that it matters how its threads wait.
    """

    summary: str
    config: str
    run: str
    trains: bool = False


TRANSFUSE = "fastclip.transfuse"
# A configuration is a dataclass; the work takes one and returns the exit code. Modules are imported
# only when their command runs.
COMMANDS = {
    "train": Command(
        "train a TransFuse on a folder of images and masks, or on synthetic ones",
        f"{TRANSFUSE}.config.train:TrainConfig",
        f"{TRANSFUSE}.training.trainer:run_train",
        trains=True,
    ),
    "evaluate": Command(
        "Dice, IoU, distances and more of checkpoints, with intervals",
        f"{TRANSFUSE}.config.evaluation:EvaluateConfig",
        f"{TRANSFUSE}.measuring.command:run_evaluate",
    ),
    "predict": Command(
        "masks and overlays for images",
        f"{TRANSFUSE}.config.prediction:PredictConfig",
        f"{TRANSFUSE}.prediction.predict:run_predict",
    ),
    "report": Command(
        "make report.html of a run again, of a stopped one too",
        f"{TRANSFUSE}.config.recording:ReportConfig",
        f"{TRANSFUSE}.recording.report.write:run_report",
    ),
    "export": Command(
        "an ONNX file, or one of torch.export, of a checkpoint",
        f"{TRANSFUSE}.config.export:ExportConfig",
        f"{TRANSFUSE}.export.command:run_export",
    ),
    "info": Command(
        "what a folder of images and masks is understood as, before anyone trains",
        f"{TRANSFUSE}.config.preparation:InfoConfig",
        f"{TRANSFUSE}.preparation.info:run_info",
    ),
    "download": Command(
        "fetch a public data set",
        f"{TRANSFUSE}.config.preparation:DownloadConfig",
        f"{TRANSFUSE}.preparation.download:run_download",
    ),
    "bench": Command(
        "torch against fastclip on this machine, in a training step of your model",
        "",
        "fastclip.benchmark.run:main",
    ),
}
USAGE = "usage: fastclip [{}] [--help]\n\n{}\n\nWithout a command: {}".format(
    " | ".join(COMMANDS),
    "\n".join(f"  {name:10}{command.summary}" for name, command in COMMANDS.items()),
    "versions, and which implementation of each op is in use.",
)
HINT = "fastclip --help lists the commands."
UNREAD = 141  # 128 + SIGPIPE: what a shell says of any command whose reader left


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments; those of the process where None.

    Returns:
        0 where all went well, 1 where the work failed, 2 where the arguments or data are wrong,
        130 where it was interrupted, 141 where the reader of its output left, as `head` does. One
        line on stderr says why, but for the last; only a fault of the program itself shows a
        traceback.
    """
    if problem := overwritten():
        return _fail(problem, 1)
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is None and _trains(arguments):
        restart_with_short_spin()  # before anything is read or said
    try:
        code = _dispatch(arguments)
        if sys.stdout is not None:  # as it is where the process was started with it closed
            sys.stdout.flush()  # what fails as Python ends, nobody can catch
        return code
    except BrokenPipeError:
        if not _reader_left():
            raise
        return UNREAD
    except OSError as error:
        if not _unwritable():
            raise
        return _fail(f"the output: {error.strerror}", 1)
    except KeyboardInterrupt:
        print("fastclip: interrupted", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        # The package itself needs torch only; all else belongs to the extra.
        hint = "" if "pip install" in str(error) else f": {install_hint('train')}"
        return _fail(f"{error}{hint}", 1)


def _trains(arguments: list[str]) -> bool:
    command = COMMANDS.get(arguments[0]) if arguments else None
    return command is not None and command.trains and not {"-h", "--help"}.intersection(arguments)


def _reader_left() -> bool:
    """Whether stdout or stderr is a pipe that nobody reads; what is still to come is dropped then.

    The pipe that broke may be another, of a worker that died, say.
    """
    left = False
    for stream in (sys.stdout, sys.stderr):
        try:
            descriptor = stream.fileno()
            poll = select.poll()
        except (AttributeError, OSError, ValueError):  # no stream, or no file; or Windows
            continue
        poll.register(descriptor, 0)  # an error is told unasked
        if poll.poll(0):
            _drop(descriptor)
            left = True
    return left


def _unwritable() -> bool:
    """Whether stdout takes no more, as on a full disk; what is still to come is dropped then."""
    if sys.stdout is None:
        return False
    try:
        print(flush=True)
    except OSError:
        _drop(sys.stdout.fileno())
        return True
    return False


def _drop(descriptor: int) -> None:
    """Let what is still written to it vanish: Python writes once more as it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _fail(text: str, code: int) -> int:
    print(f"fastclip: error: {' '.join(text.split())}", file=sys.stderr)
    return code


def _dispatch(arguments: list[str]) -> int:
    if not arguments:
        from fastclip.report import report

        print(report())
        print(HINT)
        return 0
    command = arguments[0]
    if command in ("-h", "--help"):
        print(USAGE)
        return 0
    if command not in COMMANDS:
        return _fail(f"unknown command {command!r}: choose from {', '.join(COMMANDS)}", 2)
    return _run(command, arguments[1:])


def _run(name: str, arguments: list[str]) -> int:
    command = COMMANDS[name]
    try:
        if not command.config:
            return int(_load(command.run)(arguments))
        return _configured(name, command, arguments)
    except Exception as error:
        # Errors that are the user's to mend say which exit code they mean.
        code = getattr(error, "exit_code", None)
        if code is None:
            raise
        return _fail(str(error), code)


def _configured(name: str, command: Command, arguments: list[str]) -> int:
    from fastclip.arguments.flags import HelpShown
    from fastclip.arguments.parse import parse

    try:
        config = parse(_load(command.config), name, arguments)
    except HelpShown:
        return 0
    return int(_load(command.run)(config))


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
