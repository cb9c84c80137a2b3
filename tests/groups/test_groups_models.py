"""param_groups against timm and transformers: equal, or different for the reason named."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fastclip import ParamGroups, param_groups

TIMM = [
    "vit_tiny_patch16_224",
    "resnet18",
    "convnext_atto",
    "swin_tiny_patch4_window7_224",
    "tiny_vit_5m_224",
]


def by_name(model: nn.Module, groups: list[dict], key: str) -> dict[str, float]:
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: group[key] for group in groups for p in group["params"]}


@pytest.fixture(scope="module")
def timm():
    pytest.importorskip("timm.optim")
    import timm as package

    return package


@pytest.fixture(params=TIMM)
def timm_model(request, timm):
    with torch.device("meta"):
        return timm.create_model(request.param)


def listed(model: nn.Module) -> set[str]:
    return model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()


def test_timm_weight_decay(timm, timm_model):
    theirs = timm.optim.param_groups_weight_decay(
        timm_model, 0.05, no_weight_decay_list=listed(timm_model)
    )
    ours = param_groups(timm_model, weight_decay=0.05)
    assert len(ours) == len(theirs) == 2
    key = "weight_decay"
    assert by_name(timm_model, ours, key) == by_name(timm_model, theirs, key)


def test_timm_layer_decay(timm, timm_model):
    theirs = timm.optim.param_groups_layer_decay(
        timm_model, 0.05, no_weight_decay_list=listed(timm_model), layer_decay=0.75
    )
    ours = param_groups(timm_model, lr=1.0, weight_decay=0.05, layer_decay=0.75)
    assert len(ours) == len(theirs)
    scales = by_name(timm_model, theirs, "lr_scale")
    assert by_name(timm_model, ours, "lr") == pytest.approx(scales, rel=1e-12)
    decays = by_name(timm_model, theirs, "weight_decay")
    assert by_name(timm_model, ours, "weight_decay") == decays


def test_timm_backbone_inside_a_module(timm):
    """timm's function falls back to one layer here; ours finds the backbone's own numbering."""
    model = nn.Module()
    model.stem = nn.Conv2d(3, 3, 1)
    model.net = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=2)
    model.head = nn.Linear(192, 2)
    groups = param_groups(torch.compile(model), lr=1.0, layer_decay=0.5)
    ids = {d.name: d.layer for d in groups.decisions}
    assert [ids["stem.weight"], ids["net.cls_token"], ids["net.blocks.0.norm1.weight"]] == [0, 1, 2]
    assert ids["net.norm.weight"] == ids["net.blocks.1.norm1.weight"] == 3
    assert ids["head.weight"] == 4


def test_two_timm_backbones_need_a_function(timm):
    with torch.device("meta"):
        model = nn.ModuleList(timm.create_model("resnet18") for _ in range(2))
    with pytest.raises(ValueError, match="several towers"):
        param_groups(model, lr=1.0, layer_decay=0.5)


def test_a_timm_backbone_beside_other_blocks_needs_a_function(timm):
    with torch.device("meta"):
        model = nn.ModuleDict({"cnn": timm.create_model("resnet18")})
        layer = nn.TransformerEncoderLayer(8, 2, 8)
        model["vit"] = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    with pytest.raises(ValueError, match=r"several towers .*'cnn', 'vit.layers'"):
        param_groups(model, lr=1.0, layer_decay=0.5)


def test_timm_asks_only_the_root_for_no_weight_decay(timm):
    """XCiT's attention lists its own temperatures; timm's optimizer never hears of them."""
    with torch.device("meta"):
        model = timm.create_model("xcit_nano_12_p16_224")
    root_only = timm.optim.param_groups_weight_decay(
        model, 0.05, no_weight_decay_list=model.no_weight_decay()
    )
    theirs = by_name(model, root_only, "weight_decay")
    ours = by_name(model, param_groups(model, weight_decay=0.05), "weight_decay")
    different = {name for name in theirs if theirs[name] != ours[name]}
    assert different == {f"blocks.{i}.attn.temperature" for i in range(12)}


SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 64}


def hf_model(kind: str) -> nn.Module:
    hf = pytest.importorskip("transformers")
    small = {**SMALL, "intermediate_size": 64}
    gpt = {"n_embd": 32, "n_layer": 3, "n_head": 2, "vocab_size": 64, "n_positions": 16}
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    t5 = {"d_model": 32, "num_layers": 2, "num_heads": 2, "d_ff": 64, "vocab_size": 64, "d_kv": 16}
    make = {
        "bert": lambda: hf.BertForSequenceClassification(hf.BertConfig(**small)),
        "bert-mlm": lambda: hf.BertForMaskedLM(hf.BertConfig(**small)),
        "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**gpt, **ends)),
        "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**small)),
        "t5": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**t5)),
    }
    return make[kind]()


def decaying(groups: ParamGroups) -> set[str]:
    return {name for d in groups.decisions if d.weight_decay for name in (d.name, *d.aliases)}


def trainer_decays(model: nn.Module) -> set[str]:
    from transformers import Trainer

    return set(Trainer.get_decay_parameter_names(SimpleNamespace(), model))


@pytest.mark.parametrize("kind", ["bert", "bert-mlm", "gpt2", "llama"])
def test_transformers_trainer_decay(kind):
    model = hf_model(kind)
    assert decaying(param_groups(model, weight_decay=0.1)) == trainer_decays(model)


def test_t5_relative_attention_bias_does_not_decay():
    model = hf_model("t5")
    assert decaying(param_groups(model, weight_decay=0.1)) == trainer_decays(model)
    rules = {d.name: d.rule for d in param_groups(model, weight_decay=0.1).decisions}
    name = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    assert rules[f"encoder.{name}"] == rules[f"decoder.{name}"] == "relative position bias"


@pytest.mark.parametrize(
    ("kind", "embedding", "block", "head"),
    [
        ("bert", "bert.embeddings.LayerNorm.bias", "bert.encoder.layer.{}.", "classifier.weight"),
        ("gpt2", "transformer.wpe.weight", "transformer.h.{}.", "transformer.ln_f.weight"),
        ("llama", "model.embed_tokens.weight", "model.layers.{}.", "lm_head.weight"),
    ],
)
def test_transformers_layers_are_numbered_as_electra_does(kind, embedding, block, head):
    groups = param_groups(hf_model(kind), lr=1.0, layer_decay=0.9)
    ids = {d.name: d.layer for d in groups.decisions}
    assert ids[embedding] == 0
    for i in range(3):
        assert {ids[name] for name in ids if name.startswith(block.format(i))} == {i + 1}
    assert ids[head] == 4


def test_t5_numbers_the_encoder_before_the_decoder():
    groups = param_groups(hf_model("t5"), lr=1.0, layer_decay=0.9)
    ids = {d.name: d.layer for d in groups.decisions}
    blocks = [
        f"{end}.block.{i}.layer.0.layer_norm.weight"
        for end in ("encoder", "decoder")
        for i in range(2)
    ]
    assert [ids["shared.weight"], *(ids[name] for name in blocks)] == [0, 1, 2, 3, 4]


class Coder(nn.Module):
    """A model that holds a BERT as many text papers do: its pieces under names of its own."""

    def __init__(self) -> None:
        super().__init__()
        bert = hf_model("bert").bert
        self.bert_ebd = bert.embeddings
        self.bert = bert.encoder
        self.out = nn.Linear(32, 2)


NO_DECAY = ["bias", "LayerNorm.bias", "LayerNorm.weight"]
FROZEN = [
    "bert_ebd.word_embeddings.weight",
    "bert_ebd.position_embeddings.weight",
    "bert_ebd.token_type_embeddings.weight",
]


@pytest.mark.parametrize("rules", [("norm", "bias", "ndim", "model"), ()], ids=["rules", "alone"])
def test_the_bert_idiom_equals_the_list_by_hand(rules):
    coder = Coder()
    named = [(n, p) for n, p in coder.named_parameters() if not any(f in n for f in FROZEN)]
    by_hand = [
        {
            "params": [p for n, p in named if not any(nd in n for nd in NO_DECAY)],
            "weight_decay": 0.01,
        },
        {"params": [p for n, p in named if any(nd in n for nd in NO_DECAY)], "weight_decay": 0.0},
    ]
    groups = param_groups(
        coder, lr=2e-5, weight_decay=0.01, no_decay=NO_DECAY, frozen=FROZEN, rules=rules
    )
    assert len(groups) == len(by_hand)
    for ours, theirs in zip(groups, by_hand, strict=True):
        assert list(map(id, ours["params"])) == list(map(id, theirs["params"]))
        assert ours["weight_decay"] == theirs["weight_decay"]
        assert ours["lr"] == 2e-5
    frozen = {n for n, p in coder.named_parameters() if not p.requires_grad}
    assert frozen == set(FROZEN)


def test_an_embedding_is_frozen_only_if_a_pattern_says_so():
    coder = Coder()
    groups = param_groups(coder, weight_decay=0.01, no_decay=NO_DECAY)
    assert all(p.requires_grad for p in coder.parameters())
    assert set(FROZEN) <= set(groups[0]["param_names"])
