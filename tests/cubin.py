"""What the assembler says of a kernel that Triton has compiled."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import triton

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class Usage(NamedTuple):
    """A thread's registers, and the bytes that it spills.

    A stack frame is no spill: float64 division is a function that is called.
    """

    registers: int
    spilled: int


def usage(compiled, folder: Path) -> Usage:
    """Assembles the kernel's PTX again, as Triton did, and reads the report."""
    ptx = compiled.asm["ptx"]
    target = re.search(r"\.target (sm_(\d+)\w*)", ptx)
    assert target
    tool = TOOLS / ("ptxas-blackwell" if int(target[2]) >= 100 else "ptxas")
    source = folder / "kernel.ptx"
    source.write_text(ptx)
    command = [tool if tool.exists() else TOOLS / "ptxas", "-v", f"--gpu-name={target[1]}"]
    command += [source, "-o", folder / "kernel.cubin"]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = re.search(r"Used (\d+) registers", report)
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert registers, report
    assert spills, report
    return Usage(int(registers[1]), int(spills[1]) + int(spills[2]))
