"""The `fastclip` command: what runs here, and the TransFuse trainer."""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
from collections.abc import Sequence

from fastclip.distribution import install_hint, overwritten

COMMANDS = {
    "train": "train a TransFuse on a folder of images and masks, or on synthetic ones",
    "evaluate": "loss, Dice, IoU and accuracy of a checkpoint",
    "predict": "masks and overlays for images",
    "info": "what a folder of images and masks is understood as, before anyone trains",
    "download": "fetch a public data set",
}
USAGE = "usage: fastclip [{}] [--help]\n\n{}\n\nWithout a command: {}".format(
    " | ".join(COMMANDS),
    "\n".join(f"  {name:10}{text}" for name, text in COMMANDS.items()),
    "versions, and which implementation of each op is in use.",
)
HINT = "fastclip --help lists the commands."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments; those of the process where None.

    Returns:
        0 where all went well, 1 where the work failed, 2 where the arguments or data are wrong,
        130 where it was interrupted. One line on stderr says why; only a fault of the program
        itself shows a traceback.
    """
    if problem := overwritten():
        return _fail(problem, 1)
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except KeyboardInterrupt:
        print("fastclip: interrupted", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        # The package itself needs torch only; all else belongs to the extra.
        hint = "" if "pip install" in str(error) else f": {install_hint('train')}"
        return _fail(f"{error}{hint}", 1)


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


def _run(command: str, arguments: list[str]) -> int:
    import tyro

    from fastclip.transfuse import config, config_data
    from fastclip.transfuse.files import RunError

    name = f"{command.capitalize()}Config"
    kind = getattr(config, name, None) or getattr(config_data, name)
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            parsed = tyro.cli(kind, prog=f"fastclip {command}", args=arguments)
    except SystemExit as stop:
        if stop.code in (0, None):
            return 0
        return _fail(_one_line(errors.getvalue()), 2)
    work = importlib.import_module(f"fastclip.transfuse.{command}")
    try:
        return getattr(work, f"run_{command}")(parsed)
    except config.UsageError as error:
        return _fail(str(error), 2)
    except RunError as error:
        return _fail(str(error), 1)


def _one_line(box: str) -> str:
    """The text of a tyro error box, without frame, title and the help text of the argument."""
    kept = []
    for line in box.splitlines():
        text = line.strip(" │|")
        if text.startswith(("Argument helptext", "For full helptext")):
            break
        if text and not text.startswith(("╭", "╰", "─")):
            kept.append(text)
    return " ".join(kept) or box
