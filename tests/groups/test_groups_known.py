"""Layers of timm's features_only networks, TransFuse, and transformers with a recipe."""

import re

import pytest
import torch
from torch import nn

from fastclip import param_groups


def layers(model: nn.Module, **kwargs) -> dict[str, int]:
    decisions = param_groups(model, lr=1.0, layer_decay=0.75, **kwargs).decisions
    return {d.name: d.layer for d in decisions}


@pytest.mark.parametrize(
    "name",
    [
        "convnext_atto",
        "resnet18",
        "efficientnet_b0",
        "vgg11_bn",
        "xception41",
        "vit_tiny_patch16_224",
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_features_only_has_the_order_of_the_whole_model(name, inside):
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        full, features = (timm.create_model(name, features_only=f) for f in (False, True))
    model = nn.ModuleDict({"encoder": features, "decoder": nn.Conv2d(3, 3, 3)})
    ids = layers(model if inside else features)
    whole = timm.models.group_parameters(full, full.group_matcher(coarse=False), reverse=True)
    right = {n.replace(".", "_"): layer for n, layer in whole.items()}
    prefix = re.compile(r"^(encoder\.)?(model\.)?")
    pairs = sorted(
        (right[prefix.sub("", n).replace(".", "_")], layer)
        for n, layer in ids.items()
        if not n.startswith("decoder")
    )
    assert len(pairs) > 30
    rank = {layer: i for i, layer in enumerate(sorted({a for a, _ in pairs}))}
    assert all(rank[a] == b for a, b in pairs)
    if inside:
        assert ids["decoder.weight"] == max(ids.values()) == len(rank)


@pytest.mark.parametrize("name", ["transfuse_t", "transfuse_s", "transfuse_l"])
def test_each_backbone_of_transfuse_is_counted_from_its_input(name):
    pytest.importorskip("timm")
    from fastclip.transfuse import create_model

    with torch.device("meta"):
        model = create_model(name)
    ids = layers(model)
    blocks = model.arch.blocks
    cnn = [ids[f"resnet.{n}.weight"] for n in ("conv1", "layer1.0.conv1", "layer3.0.bn1")]
    vit = [ids[f"transformer.blocks.{i}.norm1.weight"] for i in range(blocks)]
    assert cnn == [0, 1, 3]
    assert vit == list(range(1, blocks + 1))
    assert ids["transformer.pos_embed"] == 0
    assert {layer for n, layer in ids.items() if n.startswith(("up", "final"))} == {blocks + 1}


SMALL = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}


def config(kind: str, **kwargs):
    hf = pytest.importorskip("transformers")
    made = hf.AutoConfig.for_model(kind, **kwargs)
    for key in ("num_hidden_layers", "encoder_layers", "decoder_layers"):
        if isinstance(getattr(made, key, None), int):
            setattr(made, key, 3)
    return made


def hf_layers(kind: str, **kwargs) -> dict[str, int]:
    made = config(kind, **kwargs)
    from transformers import AutoModel

    with torch.device("meta"):
        return layers(AutoModel.from_config(made))


@pytest.mark.parametrize(
    ("kind", "order"),
    [
        ("opt", "decoder.embed_tokens decoder.layers.0.fc1 decoder.layers.2.fc1 "
         "decoder.final_layer_norm"),
        ("bart", "encoder.layernorm_embedding encoder.layers.2.fc1 decoder.layers.0.fc1 "
         "decoder.layers.2.fc1"),
        ("mbart", "shared encoder.layers.2.fc1 encoder.layer_norm decoder.layers.0.fc1 "
         "decoder.layer_norm"),
        ("albert", "encoder.embedding_hidden_mapping_in "
         "encoder.albert_layer_groups.0.albert_layers.0.ffn pooler"),
        ("deberta-v2", "embeddings.LayerNorm encoder.layer.0.output.dense "
         "encoder.layer.2.output.dense"),
        ("wav2vec2", "feature_projection.projection encoder.layer_norm "
         "encoder.layers.0.layer_norm encoder.layers.2.layer_norm"),
        ("wavlm", "feature_projection.projection encoder.layers.0.layer_norm "
         "encoder.layers.2.layer_norm"),
        ("detr", "backbone.model.conv1 backbone.model.layer4.0.conv1 input_projection "
         "encoder.layers.2.mlp.fc1 decoder.layers.0.mlp.fc1 decoder.layernorm"),
        ("pvt", "encoder.patch_embeddings.0.projection encoder.block.0.0.layer_norm_1 "
         "encoder.patch_embeddings.1.projection encoder.block.1.0.layer_norm_1 "
         "encoder.block.3.1.layer_norm_1 encoder.layer_norm"),
        ("glpn", "encoder.patch_embeddings.0.proj encoder.block.0.1.layer_norm_1 "
         "encoder.layer_norm.0 encoder.patch_embeddings.1.proj encoder.layer_norm.3"),
        ("poolformer", "encoder.patch_embeddings.0.projection "
         "encoder.patch_embeddings.1.projection encoder.patch_embeddings.3.projection"),
        ("llava", "vision_tower.embeddings.patch_embedding vision_tower.encoder.layers.0.mlp.fc1 "
         "multi_modal_projector.linear_1 language_model.layers.2.mlp.up_proj language_model.norm"),
        ("sam", "vision_encoder.patch_embed.projection vision_encoder.layers.0.mlp.lin1 "
         "vision_encoder.neck.conv1 mask_decoder.transformer.layers.1.mlp.lin1 "
         "mask_decoder.upscale_conv1"),
    ],
)  # fmt: skip
def test_recipes_rise_along_the_forward_pass(kind, order):
    ids = hf_layers(kind)
    names = [n if n in ids else f"{n}.weight" for n in order.split()]
    missing = [n for n in names if n not in ids]
    assert not missing, f"{missing} of {list(ids)}"
    found = [ids[name] for name in names]
    assert found == sorted(found)
    assert found[0] < found[-1]


def test_the_norm_of_a_speech_encoder_follows_its_configuration():
    stable = hf_layers("wav2vec2", do_stable_layer_norm=True)
    assert stable["encoder.layer_norm.weight"] == max(stable.values())
    assert hf_layers("wav2vec2")["encoder.layer_norm.weight"] == 0


def test_relative_embeddings_of_deberta_are_at_the_input():
    ids = hf_layers("deberta-v2", relative_attention=True, norm_rel_ebd="layer_norm")
    assert ids["encoder.rel_embeddings.weight"] == ids["encoder.LayerNorm.weight"] == 0


@pytest.mark.parametrize(
    ("kind", "one", "other"),
    [
        ("clip", "vision_model.encoder.layers.{}.mlp.fc1", "text_model.encoder.layers.{}.mlp.fc1"),
        ("lxmert", "encoder.layer.{}.output.dense", "encoder.r_layers.{}.output.dense"),
        (
            "blip",
            "vision_model.encoder.layers.{}.mlp.fc1",
            "text_model.encoder.layer.{}.output.dense",
        ),
    ],
)
def test_towers_side_by_side_get_a_depth_each(kind, one, other):
    ids = hf_layers(kind)
    for i in range(3):
        assert ids[f"{one.format(i)}.weight"] == ids[f"{other.format(i)}.weight"] == i + 1
    if kind == "lxmert":
        cross = min(layer for name, layer in ids.items() if ".x_layers.0" in name)
        assert cross > max(layer for name, layer in ids.items() if ".r_layers." in name)
    else:
        assert ids["logit_scale"] == ids["visual_projection.weight"] == max(ids.values())


@pytest.mark.parametrize("kind", ["bert", "opt", "albert", "mpnet"])
def test_a_traced_pass_agrees_with_names_and_recipes(kind):
    from fastclip.groups.layers.trace import traced
    from fastclip.groups.names import read_entries

    made = config(kind)
    from transformers import AutoModel

    with torch.device("meta"):
        model = AutoModel.from_config(made).eval()
    by_pass = traced(model, read_entries(model), model.dummy_inputs)
    own = layers(model)
    assert own == by_pass


def test_torchvision_names_of_the_input_side_are_known():
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        vit, maxvit = layers(models.vit_b_16()), layers(models.maxvit_t())
    assert vit["class_token"] == vit["conv_proj.weight"] == vit["encoder.pos_embedding"] == 0
    assert vit["encoder.layers.encoder_layer_0.mlp.0.weight"] == 1
    assert vit["heads.head.weight"] == vit["encoder.ln.weight"] == 13
    assert maxvit["stem.1.0.weight"] == 0
    assert maxvit["classifier.5.weight"] == max(maxvit.values()) == 5
