"""`fastclip export`: a checkpoint into an ONNX file or one of torch.export, checked."""

from __future__ import annotations

from typing import Any

import fastclip
from fastclip.transfuse.config.checks import image_size
from fastclip.transfuse.config.export import ExportConfig
from fastclip.transfuse.data.samples import Size, printable
from fastclip.transfuse.distributed.launch import require_alone
from fastclip.transfuse.errors import RunError, usage_errors
from fastclip.transfuse.export import formats
from fastclip.transfuse.export.program import LEAST, Segmenter, capture, largest_difference
from fastclip.transfuse.network.model import PATCH
from fastclip.transfuse.network.normalise import MEAN, STD
from fastclip.transfuse.storage.checkpoint import load_model, trained_config
from fastclip.transfuse.storage.files import write_file

# Probabilities; a trained network in float32 differs by some 1e-6 between implementations.
TOLERANCE = 1e-4


def run_export(config: ExportConfig) -> int:
    """`fastclip export`: write the file once it has given what the network gives."""
    formats.require_format(config.format)
    file = config.file()
    with usage_errors():
        require_alone()
        config.check()
        network, content = load_model(config.checkpoint, config.model)
        size = image_size(config.size or trained_config(content).size, content["model"])
        names = _class_names(config, network.num_classes)
        if file.exists() and not config.overwrite:
            raise ValueError(f"{printable(file)} is there already: --overwrite replaces it")
        file.parent.mkdir(parents=True, exist_ok=True)
    model = Segmenter(network)
    metadata = _metadata(config, content["model"], size, names)
    program = capture(model)
    if config.format == "onnx":
        written = formats.onnx_bytes(program, metadata)
        run = formats.run_onnx(written)
    else:
        written = formats.torch_bytes(program, metadata)
        run = formats.run_torch(written)
    said = "not compared with the network: that needs onnxruntime, " + formats.EXTRA
    if run is not None:
        worst = largest_difference(model, run, size)
        if not worst <= TOLERANCE:
            raise RunError(
                f"the {config.format} file gives probabilities that are up to {worst:.2g} from "
                "the network's, and is not written: another version of torch or onnxruntime may "
                "help"
            )
        said = f"on three sizes at most {worst:.1e} from the network's probabilities"
    write_file(file, lambda stream: stream.write(written))
    print(f"{printable(file)}, {len(written) / 1e6:.1f} MB: {said}")
    return 0


def _class_names(config: ExportConfig, count: int) -> list[str]:
    if not config.class_names:
        return ["object"] if count == 1 else [f"class {k + 1}" for k in range(count)]
    if len(set(config.class_names)) != count:
        given = ", ".join(config.class_names)
        raise ValueError(f"--class-names must be {count} different ones, got {given}")
    return list(config.class_names)


def _metadata(config: ExportConfig, model: str, size: Size, names: list[str]) -> dict[str, Any]:
    """What a user of the file needs to know."""
    least = LEAST * PATCH
    return {
        "size": list(size),
        "mean": list(MEAN),
        "std": list(STD),
        "threshold": config.threshold,
        "class_names": names,
        "input": f"images, float32 RGB [B, 3, H, W]: (value / 255 - mean) / std; H and W multiples "
        f"of {PATCH} from {least} up",
        "output": "probabilities, float32 [B, C, H, W]",
        "model": model,
        "fastclip": fastclip.__version__,
    }
