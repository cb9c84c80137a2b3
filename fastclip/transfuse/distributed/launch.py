"""What torchrun, or another launcher, has told this process in its environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

HOW = "start it by torchrun; or clear WORLD_SIZE where it is left over"


@dataclass(frozen=True)
class Launch:
    """One of the processes that were started together.

    Args:
        rank, world: of all processes.
        local_rank, local_world: of those on this machine.
        host, port: where the processes find each other.
        agent: torchrun itself listens there, and outlives the processes; else process 0 does.
        restarts: how often torchrun has started the processes again.
    """

    rank: int
    world: int
    local_rank: int
    local_world: int
    host: str
    port: int
    agent: bool
    restarts: int


def read_launch(environment: Mapping[str, str] = os.environ) -> Launch | None:
    """The launch that this process is part of; None where it was started alone.

    Raises:
        ValueError: there is a part of such an environment, or a variable holds nonsense.
    """
    world = _number(environment, "WORLD_SIZE", "1", least=1)
    if world == 1 and "TORCHELASTIC_RUN_ID" not in environment:
        return None
    names = ("RANK", "MASTER_ADDR", "MASTER_PORT")
    if absent := [name for name in names if not environment.get(name, "").strip()]:
        raise ValueError(
            f"WORLD_SIZE={world} in the environment, as torchrun sets it, without "
            f"{', '.join(absent)}: {HOW}"
        )
    rank = _number(environment, "RANK", "0", most=world - 1)
    local_world = _number(environment, "LOCAL_WORLD_SIZE", str(world), least=1, most=world)
    local = str(rank % local_world)
    return Launch(
        rank=rank,
        world=world,
        local_rank=_number(environment, "LOCAL_RANK", local, most=local_world - 1),
        local_world=local_world,
        host=environment["MASTER_ADDR"].strip(),
        port=_number(environment, "MASTER_PORT", "0", least=1, most=2**16 - 1),
        agent=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        restarts=_number(environment, "TORCHELASTIC_RESTART_COUNT", "0"),
    )


def require_alone() -> None:
    """Raise ValueError where several processes were started that each would do the whole work."""
    launch = read_launch()
    if launch is not None and launch.world > 1:
        raise ValueError(
            f"WORLD_SIZE={launch.world} in the environment, as torchrun sets it: each process "
            "would do the whole work, which only `fastclip train` divides. Start it without "
            "torchrun; or clear WORLD_SIZE where it is left over"
        )


def _number(
    environment: Mapping[str, str], name: str, default: str, least: int = 0, most: int | None = None
) -> int:
    text = environment.get(name, "").strip() or default
    value = int(text) if text.isascii() and text.isdigit() else -1
    if value < least or (most is not None and value > most):
        expected = f"{least} or more" if most is None else f"in {least}..{most}"
        raise ValueError(f"{name}={text} in the environment is no number {expected}: {HOW}")
    return value
