"""Which checkpoint is the best, and when waiting for a better one is over."""

from __future__ import annotations

import math
from typing import Any

LOWER_IS_BETTER = ("loss",)


class Best:
    """The best value of one metric so far.

    Args:
        metric: name of an attribute of validations.
        patience: validations in a row without a better value that end a run; None for never.
    """

    def __init__(self, metric: str, patience: int | None = None) -> None:
        self.metric, self.patience = metric, patience
        self.value: float | None = None
        self.since = 0  # validations after the best one

    def update(self, result: object) -> bool:
        """Take a validation in; True where it is the best so far. What is not finite never is."""
        value = float(getattr(result, self.metric))
        sign = -1 if self.metric in LOWER_IS_BETTER else 1
        better = self.value is None or sign * value > sign * self.value
        if not math.isfinite(value) or not better:
            self.since += 1
            return False
        self.value, self.since = value, 0
        return True

    def exhausted(self) -> bool:
        """True when `patience` validations in a row were no better."""
        return self.patience is not None and self.since >= self.patience

    def __str__(self) -> str:
        name = {"dice": "Dice", "iou": "IoU"}.get(self.metric, self.metric)
        return f"best {name} " + ("none" if self.value is None else f"{self.value:.4f}")

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"metric": self.metric, "value": self.value, "since": self.since}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        value = state["value"]
        self.value, self.since = None if value is None else float(value), int(state["since"])
