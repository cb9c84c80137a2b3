"""BERT's parameter groups with frozen embeddings: the classic idiom and `param_groups`.

pip install transformers
python examples/bert_groups.py
"""

import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

import fastclip

LR, DECAY = 5e-5, 0.01


def classic(model: nn.Module) -> list[dict]:
    """As in countless scripts; a LayerNorm of any other name would decay in silence."""
    for name, parameter in model.named_parameters():
        if name.startswith("bert.embeddings"):
            parameter.requires_grad = False
    no_decay = ["bias", "LayerNorm.bias", "LayerNorm.weight"]
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    decaying = [p for n, p in named if not any(nd in n for nd in no_decay)]
    others = [p for n, p in named if any(nd in n for nd in no_decay)]
    return [
        {"params": decaying, "weight_decay": DECAY, "lr": LR},
        {"params": others, "weight_decay": 0.0, "lr": LR},
    ]


def by_fastclip(model: nn.Module) -> fastclip.ParamGroups:
    """The same groups; a pattern that matches nothing is an error."""
    return fastclip.param_groups(model, lr=LR, weight_decay=DECAY, frozen="bert.embeddings")


def build() -> nn.Module:
    """A small BERT from a configuration: nothing is downloaded."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
    )
    return BertForSequenceClassification(config)


def main() -> None:
    """Show that the groups are the same, and what fastclip tells about them."""
    one, other = build(), build()
    old, new = classic(one), by_fastclip(other)
    names = [{id(p): n for n, p in model.named_parameters()} for model in (one, other)]
    for before, after in zip(old, new, strict=True):
        assert before["weight_decay"] == after["weight_decay"]
        ours = {names[1][id(p)] for p in after["params"]}
        assert {names[0][id(p)] for p in before["params"]} == ours
        print(f"weight decay {after['weight_decay']}: {len(ours)} parameters, the same in both")
    frozen = [n for n, p in other.named_parameters() if not p.requires_grad]
    print(f"frozen: {', '.join(frozen)}")
    print(new.explain())
    # The learning rate falls by a tenth with each layer below the top, in one more argument.
    layered = fastclip.param_groups(build(), lr=LR, weight_decay=DECAY, layer_decay=0.9)
    torch.optim.AdamW(layered, fused=True)
    print(layered.summary())


if __name__ == "__main__":
    main()
