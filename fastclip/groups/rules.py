"""The rules that spare a parameter from weight decay."""

import fnmatch
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from fastclip.groups.names import Entry, Source, read_modules, shape_of
from fastclip.names import attribute_of, join, strip_wrappers, walk

RULES = ("norm", "bias", "ndim", "model")

_NORM_NAME = re.compile(r"norm|^GRN$", re.IGNORECASE)
_NORM_TYPES = (
    nn.modules.batchnorm._NormBase,  # every BatchNorm, SyncBatchNorm and InstanceNorm
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)
# What a matrix says of itself: `NormalizedLinear`, `CosineHead` and `WSConv2d` are no norms.
_MATRIX_TYPES = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd, nn.Embedding, nn.EmbeddingBag)
_MATRIX_NAME = re.compile(
    r"linear|conv|dense|embed|head|proj|classifi|attention|mlp|lora|fullyconnected|^fc",
    re.IGNORECASE,
)
_MATRIX_ATTRIBUTES = ("in_features", "out_features", "in_channels", "kernel_size", "num_embeddings")
_EPSILONS = ("eps", "epsilon", "variance_epsilon")

_BIAS = re.compile(r"(^|_)bias(es)?$|^bias_")
# T5, MPNet, LayoutLMv3, Swin, LeViT, CLAP, Conformer, WavLM; and the networks of Swin V2 that
# compute such a bias.
_POSITION_BIAS = re.compile(
    r"(^|\.)("
    r"\w*(rel|relative|pos|position|attention|attn)\w*_bias(es)?\.weight"
    r"|\w*(rel|relative|pos|position|attention|attn)\w*_bias(es)?(_table)?"
    r"|\w*pos_bias_[uv]|rel_attn_embed\.weight"
    r"|(cpb_mlp|continuous_position_bias_mlp)\..*"
    r")$"
)
_BIAS_PARTS = ("bias", "rel_attn_embed", "cpb_mlp")


def is_norm(module: nn.Module | None) -> bool:
    """Whether `module` is a normalisation layer: torch's by type, look-alikes by duck type.

    A look-alike says so by its class name (`LlamaRMSNorm`, `LayerNorm2d`, `GRN`) or by an epsilon,
    holds no other module, and its parameters vary along one dimension at most. What is a linear
    layer, a convolution or an embedding by type, by name or by its attributes is none.
    """
    if module is None or isinstance(module, _NORM_TYPES):
        return module is not None
    if module._modules or isinstance(module, _MATRIX_TYPES):
        return False
    kind = type(module).__name__
    if _MATRIX_NAME.search(kind) or any(hasattr(module, a) for a in _MATRIX_ATTRIBUTES):
        return False
    named = _NORM_NAME.search(kind) is not None
    if not named and not any(hasattr(module, e) for e in _EPSILONS):
        return False  # before the shapes: each of a module's parameters asks, and it may hold many
    shapes = [shape_of(p) for p in module._parameters.values() if p is not None]
    if any(math.prod(shape) != max(shape, default=1) for shape in shapes):
        return False
    # An epsilon alone says little of a 1 x n matrix: cosine classifiers have one too.
    return named or all(len(s) != 2 for s in shapes)


@dataclass
class Listed:
    """What models list as free of weight decay, as full names."""

    names: set[str] = field(default_factory=set)
    globs: list[Any] = field(default_factory=list)
    keywords: dict[str, set[str]] = field(default_factory=dict)  # path -> parts of names below it

    def rule(self, name: str) -> str | None:
        """Which of the lists holds `name`."""
        if name in self.names or any(match(name) for match in self.globs):
            return "no_weight_decay()"
        for path, keywords in self.keywords.items():
            if not path or name.startswith(f"{path}."):
                below = name[len(path) :]
                if any(keyword in below for keyword in keywords):
                    return "no_weight_decay_keywords()"
        return None


def read_listed(model: Source) -> Listed:
    """What `no_weight_decay()` and `no_weight_decay_keywords()` of every module list."""
    listed = Listed()
    for top_path, top in read_modules(model) or []:
        for path, module in walk(top, top_path):
            for name in _ask(module, "no_weight_decay"):
                full = join(path, strip_wrappers(name))
                if any(c in full for c in "*?["):
                    listed.globs.append(re.compile(fnmatch.translate(full)).match)
                listed.names.add(full)
            if keywords := _ask(module, "no_weight_decay_keywords"):
                listed.keywords[path] = keywords
    return listed


def _ask(module: nn.Module, method: str) -> set[str]:
    asked = attribute_of(module, method)
    return set(asked() or ()) if callable(asked) else set()


def _bias(name: str) -> str | None:
    if not any(part in name for part in _BIAS_PARTS):  # sooner than the patterns say it
        return None
    if _BIAS.search(name.rpartition(".")[2]):
        return "bias"
    return "relative position bias" if _POSITION_BIAS.search(name) else None


def no_decay_rule(entry: Entry, rules: Iterable[str], listed: Listed) -> str | None:
    """The first of `rules` that spares a parameter, under any of its names, from decay."""
    for rule in rules:
        for name, owner in zip(entry.names, entry.owners, strict=True):
            if rule == "norm" and is_norm(owner):
                return f"norm layer ({type(owner).__name__})"
            if rule == "bias" and (found := _bias(name)):
                return found
            if rule == "ndim" and len(entry.shape) <= 1:
                return f"ndim {len(entry.shape)}"
            if rule == "model" and getattr(entry.param, "_no_weight_decay", False):
                return "_no_weight_decay"
            if rule == "model" and (found := listed.rule(name)):
                return found
    return None
