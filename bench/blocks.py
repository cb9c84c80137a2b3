"""What stands between the marks of README.md and docs/: tables and sentences, from the rows.

Each function is a block, named by itself; `tables.py` puts them into the pages.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Callable
from pathlib import Path

import cases

RESULTS = Path(__file__).parent / "results"
UNCLIPPED, CLIPPED = "not clipping", "clipping"
LOSS = "3 heads, 16x1x192x256"
BLOCKS: dict[str, Callable[[], str]] = {}


def block(make: Callable[[], str]) -> Callable[[], str]:
    """Registers what stands between the marks of this name."""
    BLOCKS[make.__name__.replace("_", "-")] = make
    return make


@functools.cache
def rows(name: str) -> list[dict[str, str]]:
    """All rows of results/NAME.csv."""
    with (RESULTS / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def row(name: str, bench: str, case: str, variant: str, dtype: str = "float32") -> dict[str, str]:
    """The one row of these keys."""
    wanted = {"bench": bench, "case": case, "variant": variant, "dtype": dtype}
    found = [r for r in rows(name) if all(r[key] == value for key, value in wanted.items())]
    if len(found) != 1:
        raise LookupError(f"results/{name}.csv has {len(found)} rows of {wanted}")
    return found[0]


def ms(found: dict[str, str]) -> float:
    return float(found["median_ms"])


def shown_ms(value: float) -> str:
    """Three digits, as figures of one run deserve."""
    return f"{value:,.0f} ms" if value >= 100 else f"{value:#.3g}".rstrip(".") + " ms"


def factor(slow: dict[str, str], fast: dict[str, str]) -> str:
    value = ms(slow) / ms(fast)
    return f"{value:.0f}x" if value >= 100 else f"{value:.1f}x" if value >= 10 else f"{value:.2f}x"


def table(head: tuple[str, ...], body: list[tuple[str, ...]]) -> str:
    """A table in markdown."""
    lines = [head, ("---",) * len(head), *body]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def pair(label: str, name: str, bench: str, case: str, ours: str = "fastclip") -> tuple[str, ...]:
    """A line of a table: torch against one of fastclip's variants."""
    baseline = "eager" if bench == "structure_loss" else "torch"
    slow, fast = row(name, bench, case, baseline), row(name, bench, case, ours)
    return (label, shown_ms(ms(slow)), shown_ms(ms(fast)), factor(slow, fast))


@block
def headline() -> str:
    """README's table."""
    s = cases.TRANSFUSE_S
    lines = [
        pair("clip TransFuse_S (382 tensors, 105 MB), nothing to clip", "clip_cpu", "clip",
             f"{s}, {UNCLIPPED}"),
        pair("the same, clipping", "clip_cpu", "clip", f"{s}, {CLIPPED}"),
        pair("clip 1000 tensors of 1000, nothing to clip", "clip_cpu", "clip",
             f"1000 x 1000, {UNCLIPPED}"),
        pair("clip 10,000 tensors of 100, nothing to clip", "clip_cpu", "clip",
             f"10000 x 100, {UNCLIPPED}"),
        pair("clip + AdamW(fused), TransFuse_S, clipping, in the step", "clip_cpu", "clip + adamw",
             f"transfuse_s, {CLIPPED}", "fastclip, in step"),
        pair("structure loss, 3 heads, 16x1x192x256, forward + backward", "structure_loss_cpu",
             "structure_loss", LOSS),
        pair("a step of the trainer, TransFuse_S, 16x192x256", "trainer_step", "trainer step",
             "transfuse_s 16x192x256, step"),
    ]  # fmt: skip
    slow, fast = (row("clip_cpu", "norm", "1 x 1e+08", v) for v in ("torch", "fastclip"))
    lines.append(("error of the norm of 1e8 elements", slow["error"], fast["error"], ""))
    known = rows("clip_cpu")[0]
    where = f"float32, {known['threads']} threads of {known['device']}"
    return table((where, "torch", "fastclip", ""), lines)


@block
def headline_notes() -> str:
    """README's sentences below the table."""
    read = row("clip_cpu", "clip", f"{cases.TRANSFUSE_S}, {UNCLIPPED}", "read")
    rewrite = row("structure_loss_cpu", "structure_loss", LOSS, "rewrite, compiled")
    ours = row("structure_loss_cpu", "structure_loss", LOSS, "fastclip")
    return (
        f"Medians, torch {read['torch'].partition('+')[0]}, variants interleaved. A read of as "
        f"many bytes as TransFuse_S's gradients\ntakes {shown_ms(ms(read))}; the best plain-torch "
        f"rewrite of the loss, under `torch.compile`, {shown_ms(ms(rewrite))} "
        f"({factor(rewrite, ours)} of ours). {busy_sentence()}"
    )


def busy_sentence() -> str:
    """The worst of the rows beside busy processes, against one thread of the same run."""
    found: dict[str, dict[str, float]] = {}
    for r in rows("busy_cpu"):
        if r["case"].endswith("median"):
            found.setdefault(r["case"], {})[r["variant"]] = ms(r)
    worst = {True: 0.0, False: 0.0}  # in a step, alone
    for case, variants in found.items():
        inside = "in a step" in case
        worst[inside] = max(worst[inside], variants["fastclip"] / variants["fastclip, 1 thread"])
    return (
        f"Beside busy processes, two threads take at most {worst[False]:.1f}x the time of one; "
        f"in a step, where torch's threads spin beside them, up to {worst[True]:.1f}x "
        "([rows](bench/results/busy_cpu.csv)).\n"
    )


@block
def trainer_busy() -> str:
    """Images per second of a step beside busy processes, by how OpenMP's threads wait."""
    batch = 16
    found: dict[str, list[str]] = {}
    for r in rows("trainer_busy_cpu"):
        found.setdefault(r["case"], []).append(f"{batch / ms(r) * 1e3:.1f}")
    variants = list(dict.fromkeys(r["variant"] for r in rows("trainer_busy_cpu")))
    head = ("images/s", *(f"`{v}`" if "=" in v else v for v in variants))
    return table(head, [(case, *rates) for case, rates in found.items()])


@block
def clip() -> str:
    """Every clip in float32, against all baselines."""
    known = {(r["case"], r["variant"]) for r in rows("clip_cpu") if r["bench"] == "clip"}
    names = ("torch", "rewrite", "torch, compiled", "fastclip")
    lines = []
    for name, dtype in cases.on_cpu("clip"):
        for mode in (UNCLIPPED, CLIPPED) if dtype == "float32" else ():
            case = f"{name}, {mode}"
            found = {n: row("clip_cpu", "clip", case, n) for n in names if (case, n) in known}
            floor = row("clip_cpu", "clip", case, "read" if mode == UNCLIPPED else "read + scale")
            times = [shown_ms(ms(found[n])) if n in found else "" for n in names]
            lines.append((case, *times, shown_ms(ms(floor))))
    return table(("float32", "torch", "rewrite", "compiled", "fastclip", "floor"), lines)


@block
def structure_loss() -> str:
    """The loss, against the published code and rewrites."""
    names = ("eager", "rewrite", "rewrite, compiled", "fastclip", "copy")
    lines = []
    for case in cases.LOSSES.values():
        for dtype in case.on_cpu:
            short = str(dtype).removeprefix("torch.")
            found = [
                row("structure_loss_cpu", "structure_loss", case.name, n, short) for n in names
            ]
            lines.append((f"{case.name}, {short}", *(shown_ms(ms(r)) for r in found)))
    return table(("forward + backward", *names), lines)


@block
def structure_loss_memory() -> str:
    """Bytes of a step of the loss."""
    said = {
        "eager": "the published code, once per head",
        "rewrite": "the best rewrite in plain torch",
        "fastclip": "`fastclip.structure_loss`",
    }
    lines = []
    for found in rows("structure_loss_memory"):
        sizes = (int(found[key]) for key in ("after_forward", "peak", "beyond_gradient"))
        lines.append((said[found["variant"]], *(_megabytes(size) for size in sizes)))
    return table(("", "kept by the forward pass", "peak", "beyond the gradient"), lines)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size:,} bytes"


@block
def agc() -> str:
    """Adaptive gradient clipping, against plain torch and timm."""
    names = ("torch", "rewrite", "timm", "fastclip")
    lines = []
    for name, _ in cases.on_cpu("agc"):
        for mode in (UNCLIPPED, CLIPPED):
            found = [row("unit_clip_cpu", "agc", f"{name}, {mode}", n) for n in names]
            lines.append((f"{name}, {mode}", *(shown_ms(ms(r)) for r in found)))
    return table(("float32", *names), lines)


@block
def groups() -> str:
    """AdamW's step with few groups, against one group for each parameter."""
    lines, found = [], [r for r in rows("groups_cpu") if r["bench"] == "adamw step"]
    for each, few in zip(found[::2], found[1::2], strict=True):
        implementation = each["variant"].rpartition(", ")[2]
        cells = (shown_ms(ms(each)), shown_ms(ms(few)), factor(each, few))
        lines.append((f"{each['case']}, {implementation}", *cells))
    return table(("AdamW's step", "one group each", "param_groups", ""), lines)


@block
def end_to_end() -> str:
    """Whole training steps, and how far their losses are from those of a norm in float64."""
    if not (RESULTS / "end_to_end_cpu.csv").exists():
        return "Not measured on this machine yet: `make bench-all`.\n"
    lines = []
    for case in dict.fromkeys(r["case"] for r in rows("end_to_end_cpu")):
        found = [
            row("end_to_end_cpu", "end to end", case, name)
            for name in ("torch", "fastclip", "fastclip, in the step")
        ]
        times = (shown_ms(ms(r)) for r in found)
        drift = f"{found[0]['error']}, {found[1]['error']}"
        lines.append((case, *times, factor(found[0], found[1]), drift))
    heads = ("a whole step, clipping", "torch", "fastclip", "in the step", "", "losses")
    picture = "![Where the time of a step goes](../bench/results/end_to_end_cpu.png)"
    return f"{table(heads, lines)}\n{picture}\n"


@block
def accuracy() -> str:
    """The error of the norm of one tensor."""
    lines = []
    for size in ("1e+06", "1e+07", "1e+08"):
        found = [row("clip_cpu", "norm", f"1 x {size}", v) for v in ("torch", "fastclip")]
        lines.append((size, *(r["error"] for r in found)))
    return table(("elements, float32", "torch", "fastclip"), lines)


@block
def instructions() -> str:
    """Instructions of the host's work."""
    found = rows("instructions")
    by_call: dict[str, list[str]] = {}
    for one in found:
        by_call.setdefault(one["call"], []).append(f"{int(one['instructions']):,}")
    heads = dict.fromkeys(f"{one['tensors']} tensors" for one in found)
    return table(("instructions of a call", *heads), [(f"`{c}`", *n) for c, n in by_call.items()])
