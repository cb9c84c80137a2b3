"""Errors that the command line shows as one line, each with the exit code of the process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UsageError(Exception):
    """Wrong arguments or data."""

    exit_code = 2


class RunError(RuntimeError):
    """The work cannot go on; what was written before stands."""

    exit_code = 1


class LostProcess(RunError):
    """Another process of the run has ended or does not answer: what happened there is not known."""


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turn what wrong arguments and files raise into UsageError; for set-up code only."""
    try:
        yield
    except RunError:
        raise
    except (ValueError, OSError, RuntimeError) as error:
        raise UsageError(str(error)) from error
