"""report.html of a run: its best checkpoint measured image by image, then all of it as a page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastclip.transfuse.config.recording import ReportConfig
from fastclip.transfuse.data.samples import Samples, printable
from fastclip.transfuse.distributed.launch import require_alone
from fastclip.transfuse.errors import usage_errors
from fastclip.transfuse.measuring.evaluate import Evaluation, evaluate
from fastclip.transfuse.network.model import TransFuse
from fastclip.transfuse.recording.environment import environment
from fastclip.transfuse.recording.pictures import overlays, write_png
from fastclip.transfuse.recording.report.cases import Chosen, choose
from fastclip.transfuse.recording.report.collect import read_report
from fastclip.transfuse.recording.report.render import render
from fastclip.transfuse.safety.run_files import CASES, pictures, remove
from fastclip.transfuse.storage.checkpoint import load_model
from fastclip.transfuse.storage.files import write_csv, write_file


def write_cases(
    out: Path,
    samples: Samples,
    device: torch.device,
    batch_size: int,
    about: list[str],
    stop: Callable[[], bool],
) -> None:
    """Measure best.pt on every image, and keep what a report needs of it.

    Args:
        out: folder of the run; gets images.csv, cases/ and report.json.
        samples: those of the validation.
        device: to predict on.
        batch_size: images at a time.
        about: what stands below the title of the report.
        stop: asked before each batch; where it says True, nothing is written.
    """
    model, content = load_model(out / "best.pt")
    model.to(device)
    result = evaluate(model, samples, batch_size, stop)
    if result is None:
        return
    rows = image_rows(samples, result)
    chosen = choose([row["dice"] for row in rows])
    for row in rows:
        row["case"] = ""
    _write_pictures(out / CASES, model, samples, chosen)
    for kind, numbers in chosen._asdict().items():
        for place, number in enumerate(numbers, 1):
            rows[number]["case"] = f"{kind}-{place}"
    write_csv(out / "images.csv", rows)
    summary = {"best_step": content["step"], "about": about, "environment": environment(device)}
    text = json.dumps(summary, indent=2).encode()
    write_file(out / "report.json", lambda stream: stream.write(text))


def image_rows(samples: Samples, result: Evaluation) -> list[dict[str, Any]]:
    """A row of scores per image, means over classes; of several classes the Dice of each too."""
    rows = []
    for index, name in enumerate(samples.names):
        row: dict[str, Any] = {"image": name}
        if samples.sets:
            row["set"] = samples.sets[index]
        scores = {key: values[index] for key, values in result.per_image._asdict().items()}
        row |= {key: float(values.mean()) for key, values in scores.items()}
        if len(scores["dice"]) > 1:
            row |= {f"dice_{k}": value for k, value in enumerate(scores["dice"].tolist(), 1)}
        rows.append(row)
    return rows


def write_report(out: Path) -> Path:
    """Write report.html from what is in the folder of a run; its path."""
    file = out / "report.html"
    page = render(read_report(out)).encode("utf-8", "backslashreplace")
    write_file(file, lambda stream: stream.write(page))
    return file


def run_report(config: ReportConfig) -> int:
    """`fastclip report`: make the report of a run again, of a run that was stopped too."""
    with usage_errors():
        require_alone()
        config.check()
        file = write_report(config.run)
    print(printable(f"{file}: open it in any browser, it needs no network"))
    return 0


def _write_pictures(folder: Path, model: TransFuse, samples: Samples, chosen: Chosen) -> None:
    remove(pictures(folder.parent))  # and the folder, where nothing else is in it
    folder.mkdir(exist_ok=True)
    for kind, numbers in chosen._asdict().items():
        drawn: list[np.ndarray] = overlays(model, samples.subset(numbers)) if numbers else []
        for place, pixels in enumerate(drawn, 1):
            write_png(folder / f"{kind}-{place}.png", pixels)
