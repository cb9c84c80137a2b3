"""Hidden matrices apart from embeddings, heads and vectors, as Muon wants them.

Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.
"""

import re
from dataclasses import replace

from torch import nn

from fastclip.groups.decisions import Decision
from fastclip.groups.names import Entry, Source, read_modules
from fastclip.names import join, walk

_EMBEDDING = re.compile(r"embed|(^|[._])(wte|wpe|pos|position|token|tokens|cls|query)([._]|$)")
_HEAD = re.compile(
    r"(^|[._])(head|heads|lm_head|classifier|logits?|score|scorer|fc_out|output_projection|"
    r"text_projection|visual_projection|unembed|qa_outputs)([._]|$)|^(fc|cls|predictions)\."
)


def mark_muon(
    model: Source, entries: list[Entry], decisions: list[Decision], split: str
) -> list[Decision]:
    """The decisions with `use_muon` among their options; an option of that name is kept.

    Raises:
        ValueError: another split than "muon"; nothing says which layers are the head.
    """
    if split != "muon":
        raise ValueError(f"split must be 'muon' or None, got {split!r}")
    heads = _heads(model)
    hidden = [_is_hidden(entry, heads) for entry in entries]
    given = any("use_muon" in d.options for d in decisions)
    tied = any(
        _is_embedding(e) and any(isinstance(o, nn.Linear) for o in e.owners) for e in entries
    )
    found = heads is not None or tied or any(map(_is_head, entries))
    if not (found or given):
        last = [e.names[0] for e, h in zip(entries, hidden, strict=True) if h][-1:] or ["head"]
        raise ValueError(
            "split: no output layer is recognised by get_output_embeddings(), get_classifier() or "
            f"name. Say which it is, options={{{last[0]!r}: {{'use_muon': False}}}}, or that there "
            "is none with the value True"
        )
    return [_marked(d, h) for d, h in zip(decisions, hidden, strict=True)]


def _marked(decision: Decision, muon: bool) -> Decision:
    thawed = decision.as_trained and _marked(decision.as_trained, muon)
    return replace(decision, options={"use_muon": muon} | decision.options, as_trained=thawed)


def _is_hidden(entry: Entry, heads: set[str] | None) -> bool:
    """A matrix of two dimensions, as torch.optim.Muon takes them, that is no embedding or head."""
    if len(entry.shape) != 2 or _is_embedding(entry):
        return False
    if heads is not None:
        return heads.isdisjoint(entry.names)
    return not _is_head(entry)


def _is_embedding(entry: Entry) -> bool:
    for name, owner in zip(entry.names, entry.owners, strict=True):
        if isinstance(owner, (nn.Embedding, nn.EmbeddingBag)) or hasattr(owner, "num_embeddings"):
            return True
        # A table of its own, such as `pos_embed`, and a module that says so by name.
        if _EMBEDDING.search(name if owner is None else name.rpartition(".")[2]):
            return True
        if "embedding" in type(owner).__name__.lower():
            return True
    return False


def _is_head(entry: Entry) -> bool:
    return any(_HEAD.search(name) for name in entry.names)


def _heads(model: Source) -> set[str] | None:
    """The names of what the model itself calls its output layer; None where it does not say."""
    found: set[str] | None = None
    for top_path, top in read_modules(model) or []:
        for path, module in walk(top, top_path):
            methods = ("get_classifier", "get_output_embeddings")
            ask = next((m for n in methods if callable(m := getattr(module, n, None))), None)
            if ask is None:
                continue
            heads = ask()
            if isinstance(heads, nn.Module):
                owners = {id(m) for m in heads.modules()}
                inside = [(p, m) for p, m in walk(module, path) if id(m) in owners]
                names = {join(p, n) for p, m in inside for n in m._parameters}
                found = (found or set()) | names
    return found
