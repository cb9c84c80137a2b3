"""What param_groups decides for timm's architectures and many transformers families.

    PYTHONPATH=. python tests/groups/sweep.py

writes the tables under tests/groups/expected: a row where the result is not the library's own, with
the rule that made it so. Models are built on the meta device: names, shapes and types alone. All of
timm takes ten minutes or more; the test takes the first architecture of each of its modules.
"""

from __future__ import annotations

import csv
import importlib.metadata
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from fastclip import param_groups

EXPECTED = Path(__file__).parent / "expected"
HEAD = ("model", "question", "ours", "count", "rule", "names")

_FAMILIES = """
albert align altclip audio-spectrogram-transformer bart beit bert big_bird blenderbot blip
blip-2 bloom camembert canine chinese_clip clap clip codegen convbert convnext convnextv2 ctrl
cvt data2vec-audio data2vec-text data2vec-vision deberta deberta-v2 deit detr dinov2 distilbert
dpt electra encodec falcon flava fnet focalnet gemma git glpn gpt2 gpt_neo gpt_neox gptj hiera
hubert ibert layoutlm layoutlmv3 led levit llama llava longformer longt5 lxmert mamba marian
mbart mistral mobilebert mobilevit mpnet mpt mt5 nystromformer opt owlvit pegasus phi poolformer
prophetnet pvt pvt_v2 qwen2 regnet rembert resnet roberta roformer rwkv sam segformer siglip
speech_to_text squeezebert swin swinv2 switch_transformers t5 timesformer umt5 unispeech
videomae vilt vit vit_mae vivit wav2vec2 wavlm whisper xlm-roberta xlnet yolos yoso
"""
FAMILIES = _FAMILIES.split()

Row = tuple[str, str, str, int, str, str]


def wildcard(name: str) -> str:
    """A name without its numbers, so that the blocks of a network are one row."""
    return re.sub(r"(?<=[._])\d+(?=\.)|\d+(?=\.)", "#", name)


def by_rule(model: str, ours: str, found: Iterable[tuple[str, str]]) -> Iterator[Row]:
    """Rows of (name, rule) pairs, one for each rule."""
    rules: dict[str, list[str]] = {}
    for name, rule in found:
        rules.setdefault(rule, []).append(name)
    for rule, names in sorted(rules.items()):
        kinds = sorted(set(map(wildcard, names)))
        yield model, "decay", ours, len(names), rule, " ".join(kinds[:6])


def decay_rows(name: str, model: nn.Module, theirs: set[str]) -> Iterator[Row]:
    """Where a parameter decays for one side and not for the other."""
    decisions = param_groups(model, weight_decay=0.05).decisions
    trained = [d for d in decisions if not d.frozen]
    spared = [(d.name, d.rule) for d in trained if not d.decays and d.name in theirs]
    decaying = [(d.name, d.rule) for d in trained if d.decays and d.name not in theirs]
    yield from by_rule(name, "no", spared)
    yield from by_rule(name, "decays", decaying)


def layer_row(name: str, model: nn.Module, theirs: dict[str, int] | None) -> Iterator[Row]:
    """Where layers are refused, or stand in another order than the library's own."""
    try:
        decisions = param_groups(model, lr=1.0, layer_decay=0.75).decisions
    except ValueError as error:
        yield name, "layers", "refused", 0, str(error).partition(":")[2].strip()[:80], ""
        return
    top = max(d.layer or 0 for d in decisions)
    if theirs is None:
        yield name, "layers", f"0 to {top}", len(decisions), "no numbering of its own", ""
        return
    rank = {layer: i for i, layer in enumerate(sorted(set(theirs.values())))}
    other = [d.name for d in decisions if rank[theirs[d.name]] != d.layer]
    if other:
        names = " ".join(sorted(set(map(wildcard, other)))[:6])
        yield name, "layers", f"0 to {top}", len(other), "another order", names


def timm_models() -> list[str]:
    import timm

    return timm.list_models()


def timm_sample() -> list[str]:
    """The first architecture of each module, in the order of them all."""
    import timm

    modules = [timm.list_models(module=m) for m in timm.list_modules()]
    firsts = {names[0] for names in modules if names}
    return [name for name in timm_models() if name in firsts]


def timm_rows(names: Iterable[str]) -> Iterator[Row]:
    import timm
    from timm.models import group_parameters
    from timm.optim import param_groups_weight_decay

    for name in names:
        with torch.device("meta"):
            model = timm.create_model(name, pretrained=False)
        listed = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
        groups = param_groups_weight_decay(model, 0.05, no_weight_decay_list=listed)
        ids = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
        yield from decay_rows(name, model, {n for n, p in model.named_parameters() if id(p) in ids})
        matcher = getattr(model, "group_matcher", None)
        own = group_parameters(model, matcher(coarse=False), reverse=True) if matcher else None
        yield from layer_row(name, model, own)


def tiny(kind: str) -> nn.Module:
    """A family's model of two layers, on the meta device."""
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.for_model(kind)
    for part in (config, *(v for v in vars(config).values() if hasattr(v, "model_type"))):
        for key in (
            "num_hidden_layers",
            "encoder_layers",
            "decoder_layers",
            "n_layer",
            "num_layers",
        ):
            if isinstance(vars(part).get(key), int):
                setattr(part, key, 2)
    with torch.device("meta"):
        return AutoModel.from_config(config)


def transformers_rows(kinds: Iterable[str]) -> Iterator[Row]:
    from transformers import Trainer

    for kind in kinds:
        model = tiny(kind)
        theirs = set(Trainer.get_decay_parameter_names(SimpleNamespace(), model))
        yield from decay_rows(kind, model, theirs)
        yield from layer_row(kind, model, None)


SWEEPS: dict[str, Callable[[Iterable[str]], Iterator[Row]]] = {
    "timm": timm_rows,
    "transformers": transformers_rows,
}


def rows(library: str, models: Iterable[str]) -> list[list[str]]:
    """The rows of these models, as they are read back from a table."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [[str(cell) for cell in row] for row in SWEEPS[library](models)]


def committed(library: str) -> list[list[str]]:
    """The rows of the repository."""
    with (EXPECTED / f"{library}.csv").open(newline="") as file:
        return list(csv.reader(file))[2:]  # below the version and the head


def main() -> None:
    for library, models in (("timm", timm_models()), ("transformers", FAMILIES)):
        found = rows(library, models)
        with (EXPECTED / f"{library}.csv").open("w", newline="") as file:
            file.write(f"# {library} {importlib.metadata.version(library)}, {len(models)} models\n")
            csv.writer(file, lineterminator="\n").writerows([HEAD, *found])


if __name__ == "__main__":
    main()
