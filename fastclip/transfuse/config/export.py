"""`fastclip export`: which network, into what kind of file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fastclip.transfuse.config.checks import require


@dataclass(kw_only=True)
class ExportConfig:
    """Write a network into a file that runs without fastclip, for any batch and any size.

    It takes normalised images, float32 [B, 3, H, W] with H and W multiples of 16, and gives
    probabilities [B, C, H, W]. What a user needs besides is in the file's metadata: size, mean,
    std, threshold, class_names. The file is compared with the network before it is written.
    """

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """best.pt or last.pt of a run, or a state dict."""
    format: Literal["onnx", "torch"] = "onnx"
    """onnx: for onnxruntime and others. torch: torch.export, loaded by torch.export.load."""
    out: Path | None = None
    """The file; None is the checkpoint's name with .onnx or .pt2."""
    model: str | None = None
    """Name of the network, for a state dict that does not tell."""
    size: str | None = None
    """HxW that the metadata recommends; None is the size of training."""
    threshold: float = 0.5
    """Probability from which a pixel belongs to the mask, for the metadata."""
    class_names: tuple[str, ...] = ()
    """Names of the maps, for the metadata; else 'object', or 'class 1', 'class 2', ..."""
    overwrite: bool = False
    """Replace a file that is there already."""

    def check(self) -> None:
        """Raise ValueError with the flag, its value and what was expected."""
        require(self, "threshold", 0 < self.threshold < 1, "between 0 and 1")

    def file(self) -> Path:
        """Where it goes."""
        return self.out or self.checkpoint.with_suffix(".onnx" if self.format == "onnx" else ".pt2")
