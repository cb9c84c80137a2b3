"""Models of timm and of transformers, made from their configurations: nothing is downloaded."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastclip.benchmark.errors import BenchmarkError
from fastclip.benchmark.models.workload import DTYPES, Request, Workload, of_model

LARGE = {
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
}
ROBERTA = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
# What differs from the defaults of the configuration's class, as the published config.json says.
PUBLISHED: dict[str, tuple[str, dict[str, int]]] = {
    "bert-base-uncased": ("bert", {}),
    "bert-base-cased": ("bert", {"vocab_size": 28996}),
    "bert-large-uncased": ("bert", LARGE),
    "distilbert-base-uncased": ("distilbert", {}),
    "roberta-base": ("roberta", ROBERTA),
    "roberta-large": ("roberta", {**ROBERTA, **LARGE}),
    "gpt2": ("gpt2", {}),
    "gpt2-medium": ("gpt2", {"n_embd": 1024, "n_layer": 24, "n_head": 16}),
    "gpt2-large": ("gpt2", {"n_embd": 1280, "n_layer": 36, "n_head": 20}),
    "t5-small": ("t5", {}),
    "opt-125m": ("opt", {}),
    "vit-base-patch16-224": ("vit", {}),
}
BATCH = {"cpu": 4, "cuda": 32}


def timm_model(name: str, request: Request) -> Workload:
    """`timm:NAME`: an image classifier without weights, on random images of its own size."""
    try:
        import timm
    except ImportError as error:
        raise BenchmarkError(f"--model timm:{name} needs timm: pip install timm") from error
    if name not in timm.list_models():
        near = _near(name, timm.list_models())
        raise BenchmarkError(f"--model timm:{name}: timm {timm.__version__} has none{near}")
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False)
    known: dict[str, Any] = model.default_cfg  # type: ignore[assignment]
    size = request.input_shape or tuple(known["input_size"])
    batch_size = request.batch_size or BATCH[request.device]
    images = request.placed(torch.randn(batch_size, *size))
    labels = torch.randint(0, known["num_classes"], (batch_size,), device=request.device)
    model = model.to(request.device, DTYPES[request.dtype]).train()

    def loss() -> Tensor:
        with request.context():
            return F.cross_entropy(model(images).float(), labels)

    words = f"{batch_size} x {'x'.join(map(str, size))}"
    return Workload(f"timm:{name}", model, loss, words)


def transformers_model(name: str, request: Request) -> Workload:
    """`hf:NAME`: a model of transformers with random weights, on random tokens or images.

    The configuration comes from the local cache where the model was loaded before, from the table
    above, or, where NAME is a model type such as `llama`, from the defaults of its class.
    """
    try:
        import transformers
    except ImportError as error:
        message = f"--model hf:{name} needs transformers: pip install transformers"
        raise BenchmarkError(message) from error
    config = _config(name, transformers)
    torch.manual_seed(0)
    batch, words = _batch(config, request)
    return of_model(f"hf:{name}", _with_head(name, config, transformers), batch, words, request)


def _config(name: str, transformers: Any) -> Any:
    try:
        return transformers.AutoConfig.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError):
        pass  # not in the cache
    short = name.rpartition("/")[2]
    kind, values = PUBLISHED.get(short, (name, {}))
    if kind not in transformers.CONFIG_MAPPING:
        near = _near(short, [*PUBLISHED, *transformers.CONFIG_MAPPING])
        raise BenchmarkError(
            f"--model hf:{name}: its configuration is not in the local cache, and nothing is "
            f"downloaded here{near}. Known without a cache: {', '.join(PUBLISHED)}, and every "
            "model type of transformers, with its defaults"
        )
    return transformers.CONFIG_MAPPING[kind](**values)


def _with_head(name: str, config: Any, transformers: Any) -> nn.Module:
    """The model with the head that it is trained with, so that it returns a loss."""
    for head in ("MaskedLM", "Seq2SeqLM", "CausalLM", "ImageClassification"):
        auto = getattr(transformers, f"AutoModelFor{head}")
        if type(config) in auto._model_mapping:
            return auto.from_config(config)
    raise BenchmarkError(
        f"--model hf:{name}: transformers has no language model or image classifier of type "
        f"{config.model_type!r}; write a build() and pass it as my_package.my_module:build"
    )


def _batch(config: Any, request: Request) -> tuple[dict[str, Tensor], str]:
    """Inputs with labels, and what they are in words."""
    batch_size = request.batch_size or BATCH[request.device]
    if hasattr(config, "image_size") or not hasattr(config, "vocab_size"):
        side = getattr(config, "image_size", 224)
        height, width = side if isinstance(side, (list, tuple)) else (side, side)
        shape = request.input_shape or (getattr(config, "num_channels", 3), height, width)
        labels = torch.randint(0, config.num_labels, (batch_size,))
        pixels = torch.randn(batch_size, *shape)
        return {"pixel_values": pixels, "labels": labels}, f"{batch_size} x {shape}"
    length = request.sequence_length or 128
    ids = torch.randint(0, config.vocab_size, (batch_size, length))
    return {"input_ids": ids, "labels": ids.clone()}, f"{batch_size} x {length} tokens"


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=3)
    return f"; nearest are {', '.join(near)}" if near else ""
