"""The command line of a part's workers: which items, on which device, into which journal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from gpu import device, supervise

Items = dict[str, Callable[[], supervise.Entry]]


def run(items_of: Callable[[device.Device], Items]) -> None:
    """Does the items named, in their order; with --list prints the names of all instead."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=["cuda", "host"], default="cuda")
    parser.add_argument("--journal", type=Path)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("items", nargs="*")
    args = parser.parse_args()
    items = items_of(device.of(args.device))
    if args.list:
        print("\n".join(items))
        return
    chosen = {name: items[name] for name in args.items}
    supervise.work(chosen, args.journal, supervise.device_is_lost)
    sys.stdout.flush()


def command(module: str, on: str, journal: Path) -> Callable[[list[str]], list[str]]:
    """The command line of a worker of `module` for some items."""
    start = [sys.executable, "-m", module, "--device", on, "--journal", str(journal)]
    return lambda rest: [*start, *rest]
