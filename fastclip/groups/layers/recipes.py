"""Architectures of transformers whose layers have an order that names and modules do not show.

Each follows the model's own forward pass and, for the speech models, the recipes that count
transformer layers alone. What a recipe does not name is placed as in any other model.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import nn

from fastclip.groups.layers.stacks import Tower
from fastclip.names import attribute_of


@dataclass(frozen=True)
class Recipe:
    """Stages in order, each of towers that stand side by side.

    A tower is a regular expression: its group is a layer's number, 0 where the group is empty;
    a group named `end` marks what comes with the tower's last layer. `start` and `end` say which
    names outside the towers lie below and above their own tower.
    """

    stages: tuple[tuple[str, ...], ...]
    start: str = "embed"
    end: str = "(?!)"

    def towers(self, names: list[str]) -> list[Tower]:
        """One for each regular expression, empty where the model lacks it."""
        return [_tower(pattern, names) for stage in self.stages for pattern in stage]


def _tower(pattern: str, names: list[str]) -> Tower:
    match = re.compile(rf"(?:^|\.)(?:{pattern})").search
    found = {name: m for name in names if (m := match(name))}
    last = [name for name, m in found.items() if m.lastgroup == "end"]
    ids = {name: 1 + int(m[1] or 0) for name, m in found.items() if name not in set(last)}
    ids |= dict.fromkeys(last, max(ids.values(), default=1))
    numbered = [name for name, m in found.items() if m[1]]
    path = numbered[0][: found[numbered[0]].start(1)].rstrip(".") if numbered else pattern
    return Tower(path, ids)


_ONE = ((r"encoder\.layer\.(\d+)\.",),)
_BART = Recipe(
    ((r"encoder\.layers\.(\d+)\.",), (r"decoder\.layers\.(\d+)\.",)), "embed|encoder.conv"
)
_SPEECH = Recipe(
    ((r"encoder\.layers\.(\d+)\.",),),
    r"feature_extractor|feature_projection|pos_conv_embed|masked_spec_embed",
    r"lm_head|project_|quantizer|adapter|projector|classifier",
)
_DEBERTA = Recipe(
    ((r"encoder\.(?:layer\.(\d+)|conv)\.",),), r"embed|encoder\.LayerNorm\.", r"cls\.|pooler"
)
_DETR = Recipe(
    (
        (r"backbone\.(?:.*\.)?(?:layer|stages\.)(\d+)\.",),
        (r"(?:encoder\.layers\.(\d+)|input_projection)\.",),
        (r"(?:decoder\.layers\.(\d+)|query_position_embeddings)\.",),
    ),
    r"backbone\.(?:.*\.)?(?:conv1|bn1|embedder)\.",
    r"bbox|mask_head|classifier",
)


def _side_by_side(vision: str, text: str) -> Recipe:
    end = r"projection|logit_scale|logit_bias|post_layernorm|final_layer_norm|pooler|head"
    return Recipe(((vision, text),), r"embed|pre_layrnorm|pre_layernorm|pre_LN", end)


_VISION = r"vision_model\.encoder\.layers\.(\d+)\."
_CLIP = _side_by_side(_VISION, r"text_model\.encoder\.layers\.(\d+)\.")
_BLIP = Recipe(
    (
        (_VISION, r"text_model\.encoder\.layer\.(\d+)\."),
        (r"text_encoder\.encoder\.layer\.(\d+)\.",),
        (r"text_decoder\.bert\.encoder\.layer\.(\d+)\.",),
    ),
    "embed",
    r"projection|logit_scale|post_layernorm|pooler|cls\.|_proj\.|itm_head",
)
_BLIP2 = Recipe(
    (
        (_VISION,),
        (r"qformer\.encoder\.layer\.(\d+)\.|query_tokens|qformer\.layernorm\.",),
        (
            r"language_projection\."
            r"|language_model\.(?:encoder\.block|model\.decoder\.layers|model\.layers)\.(\d+)\.",
        ),
        (r"language_model\.decoder\.block\.(\d+)\.",),
    ),
    r"embed|language_model\.shared",
    "post_layernorm",
)
_LLAVA = Recipe(
    (
        (r"vision_tower\.(?:vision_model\.)?encoder\.layers\.(\d+)\.",),
        (r"(?:multi_modal_projector|language_model\.(?:model\.)?layers\.(\d+))\.",),
    ),
    r"embed|pre_layrnorm|image_newline",
    r"post_layernorm|vision_model\.head|vision_tower\.head",
)
_SAM = Recipe(
    (
        (r"vision_encoder\.layers\.(\d+)\.",),
        (r"mask_decoder\.(?:transformer\.layers\.(\d+)|iou_token|mask_tokens)\.",),
    ),
    r"vision_encoder\.(?:patch_embed|pos_embed)|prompt_encoder|shared_image_embedding",
    r"vision_encoder\.neck|mask_decoder",
)
_LXMERT = Recipe(
    (
        (r"encoder\.layer\.(\d+)\.", r"encoder\.r_layers\.(\d+)\."),
        (r"encoder\.x_layers\.(\d+)\.",),
    ),
    r"embed|visn_fc",
    r"pooler|cls\.|answer_head|obj_predict_head",
)
_PYRAMID = Recipe(
    tuple(
        (rf"patch_embeddings\.{i}\.|block\.{i}\.(\d+)\.|(?P<end>encoder\.layer_norm\.{i}\.)",)
        for i in range(8)
    ),
    "(?!)",
    "decoder|head|classifier",
)
_FLAVA = Recipe(
    (
        (r"text_model\.encoder\.layer\.(\d+)\.", r"image_model\.encoder\.layer\.(\d+)\."),
        (r"multimodal_model\.(?:encoder\.layer\.(\d+)|cls_token)",),
    ),
    "embed",
    "pooler|projection|logit|layernorm|head",
)

_FAMILIES: Mapping[str, Recipe] = {
    "albert": Recipe(((r"albert_layer_groups\.(\d+)\.",),), "embed"),
    "mpnet": Recipe(_ONE, r"embed|relative_attention_bias"),
    "xlnet": Recipe(((r"layer\.(\d+)\.",),), r"embed|mask_emb"),
    "layoutlmv3": Recipe(_ONE, r"embed|cls_token|rel_pos|^(layoutlmv3\.)?(LayerNorm|norm)\."),
    "levit": Recipe(((r"encoder\.stages\.(\d+)\.",),), "patch_embeddings", "classifier"),
    "mobilevit": Recipe(_ONE, "conv_stem", "conv_1x1_exp"),
    "lxmert": _LXMERT,
    "flava": _FLAVA,
    "sam": _SAM,
    "blip": _BLIP,
    "blip-2": _BLIP2,
    "git": Recipe(
        (
            (r"image_encoder\.vision_model\.encoder\.layers\.(\d+)\.",),
            (r"(?:^|git\.)(?:encoder\.layer\.(\d+)|visual_projection)\.",),
        ),
        r"embed|pre_layrnorm",
        r"post_layernorm|output\.",
    ),
    "clap": _side_by_side(
        r"audio_model\.audio_encoder\.layers\.(\d+)\.", r"text_model\.encoder\.layer\.(\d+)\."
    ),
    "chinese_clip": _side_by_side(_VISION, r"text_model\.encoder\.layer\.(\d+)\."),
    **dict.fromkeys(("clip", "siglip", "owlvit", "x-clip"), _CLIP),
    **dict.fromkeys(("llava", "llava_next", "vipllava", "video_llava"), _LLAVA),
    **dict.fromkeys(("detr", "table-transformer"), _DETR),
    **dict.fromkeys(("pvt", "glpn", "poolformer"), _PYRAMID),
    **dict.fromkeys(("deberta", "deberta-v2"), _DEBERTA),
    **dict.fromkeys(("bart", "mbart", "led", "plbart", "bigbird_pegasus"), _BART),
    **dict.fromkeys(("m2m_100", "prophetnet", "whisper", "blenderbot-small"), _BART),
    **dict.fromkeys(("wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat"), _SPEECH),
    **dict.fromkeys(("data2vec-audio", "wav2vec2-conformer"), _SPEECH),
}


def recipe_of(module: nn.Module) -> Recipe | None:
    """The recipe of a transformers model, by its configuration's `model_type`."""
    config = attribute_of(module, "config")
    kind = getattr(config, "model_type", None)
    recipe = _FAMILIES.get(kind) if isinstance(kind, str) else None
    if recipe is _SPEECH:  # its norm stands before the layers, or behind them
        norm = r"|encoder\.layer_norm\."
        if getattr(config, "do_stable_layer_norm", kind == "wav2vec2-conformer"):
            return replace(recipe, end=recipe.end + norm)
        return replace(recipe, start=recipe.start + norm)
    return recipe
