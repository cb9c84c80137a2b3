"""An optimizer's saved state, loaded by the names of parameters."""

from typing import Any, NamedTuple

from torch.optim import Optimizer

from fastclip.groups.arguments import token
from fastclip.groups.optimizers.check import params_of


class Loaded(NamedTuple):
    """Names on one side only."""

    missing: list[str]
    unexpected: list[str]


_NOT_SETTINGS = ("params", "param_names", "name")


def load(
    optimizer: Optimizer, state: dict[str, Any], names: dict[int, str], strict: bool
) -> Loaded:
    """`ParamGroups.load_state_dict`; `names` are those of parameters by their id."""
    saved = _saved(state)
    held = [[_name(p, names, group) for p in params_of(group)] for group in optimizer.param_groups]
    flat = [name for group in held for name in group]
    result = Loaded([n for n in flat if n not in saved], sorted(set(saved) - set(flat)))
    if strict and (result.missing or result.unexpected):
        raise ValueError(
            f"state: no saved state for {result.missing}, and nothing here for "
            f"{result.unexpected}; strict=False loads the rest"
        )
    made: dict[str, Any] = {"state": {}, "param_groups": []}
    for current, members in zip(optimizer.param_groups, held, strict=True):
        group = {k: v for k, v in current.items() if k != "params"}
        group |= _settings(current, [saved[n][1] for n in members if n in saved], strict)
        group["params"] = list(range(count := _count(made), count + len(members)))
        made["param_groups"].append(group)
    index = {name: i for i, name in enumerate(flat)}
    for name, (value, _) in saved.items():
        if name in index and value is not None:
            made["state"][index[name]] = value
    optimizer.load_state_dict(made)
    return result


def _count(made: dict[str, Any]) -> int:
    return sum(len(group["params"]) for group in made["param_groups"])


def _saved(state: dict[str, Any]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """name -> (its state, the saved group that held it)."""
    if not isinstance(state, dict) or not {"state", "param_groups"} <= set(state):
        raise TypeError("state must be what optimizer.state_dict() gives")
    found: dict[str, tuple[Any, dict[str, Any]]] = {}
    for i, group in enumerate(state["param_groups"]):
        if "param_names" not in group:
            raise ValueError(
                f"state: the saved group {i} has no param_names, so that its parameters are known "
                "by their order alone: use optimizer.load_state_dict with the same groups"
            )
        for key, name in zip(group["params"], group["param_names"], strict=True):
            found[name] = (state["state"].get(key), group)
    return found


def _name(param: Any, names: dict[int, str], group: dict[str, Any]) -> str:
    if id(param) not in names:
        raise ValueError(f"optimizer: a parameter of shape {list(param.shape)} is not of the model")
    return names[id(param)]


def _settings(current: dict[str, Any], saved: list[dict[str, Any]], strict: bool) -> dict[str, Any]:
    """The saved settings, where the saved groups of these parameters agree on them."""
    agreed = {}
    for key in current:
        if key in _NOT_SETTINGS or not saved or not all(key in group for group in saved):
            continue
        if len({token(group[key]) for group in saved}) == 1:
            agreed[key] = saved[0][key]
        elif strict:
            values = sorted({str(group[key]) for group in saved})
            raise ValueError(
                f"state: parameters of group {current.get('name')!r} were saved with {key} of "
                f"{' and '.join(values)}; strict=False keeps {current[key]!r}"
            )
    return agreed
