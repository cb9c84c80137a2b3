"""What few parameter groups save: AdamW's step against one group per parameter, on CPU.

    python bench/bench_groups.py [--repeats 9] [--cases transfuse_l bert_large vit_tiny]

Both optimizers hold the same parameters and gradients and take turns, so that they see the same
state of the machine. `ratio` is the time of one group per parameter over the time of
`param_groups`, with the same implementation of AdamW; `loop` is torch's default on CPU.
"""

import argparse
import csv
import datetime
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from fastclip import ParamGroups, param_groups

RESULTS = Path(__file__).parent / "results" / "groups_cpu.csv"
COLUMNS = ["bench", "case", "dtype", "variant", "median_ms", "ratio"]
COLUMNS += ["torch", "cpu", "threads", "date"]
IMPLEMENTATIONS = {
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}


def transfuse_l() -> nn.Module:
    from fastclip.transfuse import create_model

    return create_model("transfuse_l")


def bert_large() -> nn.Module:
    from transformers import BertConfig, BertModel

    size = {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096}
    return BertModel(BertConfig(num_hidden_layers=24, **size))


def vit_tiny() -> nn.Module:
    import timm

    return timm.create_model("vit_tiny_patch16_224")


def tiny_tensors() -> nn.Module:
    return nn.Sequential(*(nn.Linear(31, 31) for _ in range(500)))  # 1000 tensors, 0.5M values


CASES: dict[str, Callable[[], nn.Module]] = {
    "transfuse_l": transfuse_l,
    "bert_large": bert_large,
    "vit_tiny": vit_tiny,
    "tiny_tensors": tiny_tensors,
}


def one_group_each(groups: ParamGroups) -> list[dict]:
    """The same decisions, with a group for every parameter."""
    return [
        {**group, "params": [param], "param_names": [name]}
        for group in groups
        for param, name in zip(group["params"], group["param_names"], strict=True)
    ]


def interleaved_ms(steps: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median time of each step, taken in turns after one round that makes the states."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if repeat:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def bench_case(case: str, implementation: str, repeats: int) -> list[dict]:
    model = CASES[case]()
    for p in model.parameters():
        p.grad = torch.full_like(p, 1e-3)
    groups = param_groups(model, lr=1e-6, weight_decay=0.01)
    tensors = sum(len(group["params"]) for group in groups)
    values = sum(p.numel() for group in groups for p in group["params"])
    each = one_group_each(groups)
    few = f"{len(groups)} groups"
    kwargs = IMPLEMENTATIONS[implementation]
    steps = {
        few: torch.optim.AdamW(groups, **kwargs).step,
        f"{len(each)} groups": torch.optim.AdamW(each, **kwargs).step,
    }
    medians = interleaved_ms(steps, repeats)
    return [
        {
            "bench": "adamw_step",
            "case": f"{case} ({tensors} tensors, {values / 1e6:.1f}M)",
            "dtype": "float32",
            "variant": f"{name}, {implementation}",
            "median_ms": f"{median:.3f}",
            "ratio": f"{median / medians[few]:.3f}",
            "torch": torch.__version__,
            "cpu": cpu_name(),
            "threads": torch.get_num_threads(),
            "date": datetime.date.today().isoformat(),
        }
        for name, median in medians.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    args = parser.parse_args()
    rows = []
    for case in args.cases:
        for implementation in IMPLEMENTATIONS:
            try:
                rows += bench_case(case, implementation, args.repeats)
            except ImportError as error:
                print(f"{case}: skipped, {error}")
    for row in rows:
        print(*(row[key] for key in ("case", "variant", "median_ms", "ratio")), sep="  ")
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
