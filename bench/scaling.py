"""What one clip costs on paper at 8, 512 and 16,384 ranks: the tables of docs/scaling.md.

    python bench/scaling.py

The alpha-beta model: an all_reduce of n bytes by a tree over p ranks takes
base + 2 ceil(log2 p) (alpha + n / beta), inside nodes first and then over them. Of a few bytes
alpha alone counts, and a tree beats a ring. Links are published figures; the host's time for a
DTensor is that of the measured rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

MESSAGE_BYTES = 16  # of an all_reduce: a float64 sum and a float64 that tells of errors


class Link(NamedTuple):
    """One step of a message: its latency in microseconds, and bytes in a microsecond."""

    alpha_us: float
    beta: float


# NVLink 4: 450 GB/s a direction; ConnectX-7: 400 Gbit/s. Latencies are those of NCCL's own model
# (src/graph/tuning.cc, baseLat and hwLat of Tree and LL, the protocol of few bytes).
BASE_US = 6.8
NVLINK = Link(0.6, 450e3)
INFINIBAND = Link(5.0, 50e3)
PER_NODE = 8  # ranks joined by NVLink


@dataclass(frozen=True)
class Model:
    """What a rank holds, when all is sharded over all ranks."""

    name: str
    parameters: float
    tensors: int
    dimensions: int  # of meshes: all_reduces of one clip


# Llama 2 7B: 32 blocks of 9 tensors, embedding, head, norm. The other: 1e12 parameters in 61
# blocks of 8 tensors that hold all experts together, and 4 of attention; experts on a second mesh.
MODELS = (Model("7B dense", 6.74e9, 291, 1), Model("1T experts", 1.0e12, 61 * 12 + 3, 2))
RANKS = (8, 512, 16_384)
READ = 3.35e6 * 0.9  # bytes in a microsecond of an H100's memory: 90 % of 3.35 TB/s


def tree_us(ranks: int, size: float, link: Link) -> float:
    return 2 * math.ceil(math.log2(ranks)) * (link.alpha_us + size / link.beta)


def all_reduce_us(ranks: int, size: float = MESSAGE_BYTES) -> float:
    """Of one number: inside nodes, then over them."""
    inside, nodes = min(ranks, PER_NODE), math.ceil(ranks / PER_NODE)
    over = tree_us(nodes, size, INFINIBAND) if nodes > 1 else 0.0
    return BASE_US + tree_us(inside, size, NVLINK) + over


def steps(ranks: int) -> int:
    """Messages of one all_reduce that follow one another: up a tree of all ranks, and down."""
    return 2 * math.ceil(math.log2(ranks))


class Cost(NamedTuple):
    """Microseconds of one clip on each rank, by what they go to."""

    read: float  # the gradients, once; where it clips, twice that again
    network: float
    host_fastclip: float
    host_torch: float


def cost(model: Model, ranks: int, host_us: tuple[float, float], element_bytes: int = 4) -> Cost:
    """One clip that clips nothing, gradients float32.

    Args:
        host_us: microseconds for a DTensor: fastclip's, torch's.
    """
    read = model.parameters * element_bytes / ranks / READ
    network = model.dimensions * all_reduce_us(ranks)
    return Cost(read, network, *(model.tensors * each for each in host_us))


def shown(microseconds: float) -> str:
    if microseconds >= 1000:
        return f"{microseconds / 1000:.3g} ms"
    return f"{microseconds:.3g} µs"


def table(host_us: tuple[float, float]) -> list[tuple[str, ...]]:
    """The rows of the page's table: model, ranks, messages in a row, times."""
    found = []
    for model in MODELS:
        for ranks in RANKS:
            of = cost(model, ranks, host_us)
            found.append(
                (
                    model.name,
                    f"{ranks:,}",
                    f"{model.dimensions * steps(ranks)} x {MESSAGE_BYTES} B",
                    *map(shown, of),
                )
            )
    return found


def per_dtensor_us() -> tuple[float, float]:
    """fastclip's and torch's, from the committed rows: the slope from 400 to 1600 DTensors."""
    import bench_sharded
    import blocks

    def ms(count: int, variant: str) -> float:
        case = bench_sharded.case_of(count, "not clipping")
        return blocks.ms(blocks.row(bench_sharded.NAME, bench_sharded.BENCH, case, variant))

    one, other = ((ms(1600, v) - ms(400, v)) / 1200 * 1e3 for v in ("fastclip", "torch"))
    return one, other


if __name__ == "__main__":
    for row in table(per_dtensor_us()):
        print("  ".join(row))
