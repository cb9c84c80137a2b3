"""Rows of training runs on real images: what each reached, epoch by epoch.

    fastclip train --config cpu-small --data isic2017 --seed 0 --out runs/s0    (and 1, 2)
    python bench/train_rows.py runs/train runs/s0 runs/s1 runs/s2

Writes results/train_isic2017.csv: a line for each epoch of each run, validated at the network's
size with the averaged weights. `own_size_dice` stands in a run's last line, where
`fastclip evaluate --checkpoint RUN/last.pt --data isic2017 --split val --json RUN/own.json` has
measured it at each image's own size.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import yaml

COLUMNS = (
    "recipe", "minutes", "seed", "epoch", "step", "seconds", "val_loss", "dice", "iou", "accuracy",
    "own_size_dice", "precision", "threads", "device", "torch",
)  # fmt: skip


def rows(run: Path) -> list[dict[str, object]]:
    """The lines of a run's folder."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    machine = json.loads((run / "report.json").read_text())["environment"]
    known = {
        "recipe": f"{config['model']} {config['size']}",
        "minutes": config["max_time"],
        "seed": config["seed"],
        "precision": config["provenance"]["precision"],
        "threads": machine["threads"],
        "device": machine["processor"],
        "torch": machine["torch"].partition("+")[0],
    }
    with (run / "metrics.csv").open(newline="") as file:
        found: list[dict[str, object]] = [{**known, **line} for line in csv.DictReader(file)]
    own = run / "own.json"
    if own.exists():
        score = json.loads(own.read_text())["all"]["own_size"]["dice"]["mean"]
        found[-1]["own_size_dice"] = f"{score:.6f}"
    return found


def main() -> None:
    if not sys.argv[1:]:
        sys.exit("bench/train_rows.py: name the folders of the runs")
    found = [row for run in sys.argv[1:] for row in rows(Path(run))]  # all, before a line is lost
    file = Path(__file__).parent / "results" / "train_isic2017.csv"
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)


if __name__ == "__main__":
    main()
