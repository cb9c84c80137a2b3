"""Who holds a run's folder: a process of this machine, or of another that shares the folder."""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class Holder:
    """A process, told apart from a later one that gets the same number."""

    pid: int
    started: str  # ticks since the machine's start; empty where the system does not tell
    host: str
    machine: str  # a machine since it was started, and a container on it
    since: str  # local time
    token: str  # of one lock

    @classmethod
    def this_process(cls) -> Holder:
        """The one that asks."""
        return cls(
            pid=os.getpid(),
            started=_started(os.getpid()),
            host=socket.gethostname(),
            machine=_machine(),
            since=time.strftime("%Y-%m-%d %H:%M:%S"),
            token=secrets.token_hex(8),
        )

    @classmethod
    def parse(cls, text: str) -> Holder | None:
        """What `text` has written; None where that is nothing, or not whole."""
        try:
            values = json.loads(text)
            return cls(**{field.name: values[field.name] for field in fields(cls)})
        except (ValueError, KeyError, TypeError):
            return None

    def text(self) -> str:
        """For a file."""
        return json.dumps(asdict(self))

    def here(self) -> bool:
        """Whether its process number means a process of this machine and container."""
        return self.machine == _machine()

    def runs(self) -> bool:
        """Whether that process of this machine is still there."""
        started = _started(self.pid)
        if started or os.path.isdir("/proc/self"):
            return started == self.started
        if os.name == "nt":  # os.kill would end it; nothing else in the standard library looks
            return True
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return True

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (since {self.since})"


def _machine() -> str:
    """The start of this machine and, where there are containers, the space of its processes."""
    parts = [socket.gethostname()]
    try:
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    except OSError:  # no Linux: the name alone
        pass
    return " ".join(parts)


def _started(pid: int) -> str:
    """The start of a process in ticks (proc(5), field 22); empty where there is none to read."""
    try:
        # The second field is the program's name in brackets, which may hold spaces and brackets.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError, UnicodeDecodeError):
        return ""
