"""The two files that a graph is written to, as bytes, and how each is run again."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

Run = Callable[[Tensor], Tensor]
METADATA = "metadata.json"  # the name of the extra file in the format of torch.export
EXTRA = "pip install 'fastclip-torch[export]'"


def require_format(kind: str) -> None:
    """Raise ModuleNotFoundError, with the command that installs it, for what a format needs."""
    for name in ("onnx", "onnxscript") if kind == "onnx" else ():
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"--format onnx needs {name}: {EXTRA}", name=name)


def onnx_bytes(program: ExportedProgram, metadata: Mapping[str, Any]) -> bytes:
    """An ONNX file; its metadata are strings of JSON by name."""
    with _quiet():
        made = torch.onnx.export(
            program,
            dynamo=True,
            input_names=["images"],
            output_names=["probabilities"],
            verbose=False,
        )
    assert made is not None
    model = made.model_proto
    for key, value in metadata.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, json.dumps(value)
    return model.SerializeToString()


def run_onnx(content: bytes) -> Run | None:
    """Runs an ONNX file in onnxruntime; None where that is not installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def torch_bytes(program: ExportedProgram, metadata: Mapping[str, Any]) -> bytes:
    """A file of torch.export; its metadata are the extra file metadata.json."""
    stream = io.BytesIO()
    torch.export.save(program, stream, extra_files={METADATA: json.dumps(metadata)})
    return stream.getvalue()


def run_torch(content: bytes) -> Run:
    """Runs a file of torch.export."""
    return torch.export.load(io.BytesIO(content)).module()


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter logs and warns of its own inner deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
