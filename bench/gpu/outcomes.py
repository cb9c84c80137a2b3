"""A pytest plugin: each test's start and end in a journal (gpu.supervise), as they happen."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from gpu import supervise

_reasons: dict[str, str] = {}
_skipped: dict[str, str] = {}
_journal: list[Path] = []


def pytest_addoption(parser: Any) -> None:
    parser.addoption("--journal", type=Path, help="the file that gets each test's outcome")


def pytest_configure(config: Any) -> None:
    journal = config.getoption("--journal")
    if journal is not None:
        _journal.append(journal)


def pytest_runtest_logstart(nodeid: str) -> None:
    for journal in _journal:
        supervise.write(journal, {"start": nodeid})


def pytest_runtest_logreport(report: Any) -> None:
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        text = str(report.longrepr) if crash is None else crash.message
        _reasons[report.nodeid] = " ".join(text.split())[:300] or "failed"
    elif report.skipped:
        _skipped[report.nodeid] = str(report.longrepr)[:300]


def pytest_runtest_logfinish(nodeid: str) -> None:
    failed = _reasons.get(nodeid, "")
    for journal in _journal:
        supervise.write(
            journal, {"done": nodeid, "failed": failed, "skipped": _skipped.get(nodeid, "")}
        )
        if failed and supervise.device_is_lost():
            os._exit(supervise.DEVICE_LOST)
