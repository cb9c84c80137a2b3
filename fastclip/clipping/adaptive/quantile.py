"""The quantile of a stream of numbers, all of them or the last few, at a logarithmic cost each."""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Iterable

_SPARE = 64  # numbers passed by, beside as many as the window has, that heaps may hold


class RunningQuantile:
    """An exact quantile, interpolated linearly between neighbours as ``torch.quantile`` does.

    Two heaps meet at the quantile: the smaller numbers, largest first, and the larger ones. A
    number that the window has passed is counted out at once and dropped when it comes to the top.

    Args:
        q: which quantile; in [0, 1].
        window: how many numbers count, the latest; None for all.
    """

    def __init__(self, q: float, window: int | None = None) -> None:
        self.q, self.window = q, window
        self.clear()

    def clear(self) -> None:
        """Forgets every number."""
        self._low: list[float] = []  # negated
        self._high: list[float] = []
        self._low_count = self._high_count = 0  # without those passed
        self._passed: Counter[float] = Counter()
        self._order: deque[float] = deque()  # of a window, oldest first

    def __len__(self) -> int:
        return self._low_count + self._high_count

    def add(self, x: float) -> None:
        """Counts a number in (not NaN), and the oldest out where the window is full."""
        if self.window is not None:
            self._order.append(x)
            if len(self._order) > self.window:
                self._forget(self._order.popleft())
            if len(self._low) + len(self._high) > 2 * self.window + _SPARE:
                # Norms that fall leave the old ones at the bottom of a heap, where none is dropped.
                self._rebuild()
                return
        if self._low and x <= -self._low[0]:
            heapq.heappush(self._low, -x)
            self._low_count += 1
        else:
            heapq.heappush(self._high, x)
            self._high_count += 1
        self._balance()

    def value(self) -> float:
        """The quantile of the numbers that count; there is at least one."""
        position = (len(self) - 1) * self.q
        low, weight = -self._low[0], position - int(position)
        return low if weight == 0 else low + (self._high[0] - low) * weight

    def numbers(self) -> list[float]:
        """The numbers that count: in a window oldest first, else in no order."""
        if self.window is not None:
            return list(self._order)
        return [-x for x in self._low] + self._high

    def extend(self, numbers: Iterable[float]) -> None:
        """Counts several in."""
        for x in numbers:
            self.add(float(x))

    def _forget(self, x: float) -> None:
        self._passed[x] += 1
        if self._low and x <= -self._low[0]:
            self._low_count -= 1
        else:
            self._high_count -= 1
        self._drop_passed()
        self._balance()

    def _rebuild(self) -> None:
        numbers = list(self._order)
        self.clear()
        self.extend(numbers)

    def _balance(self) -> None:
        """Keeps the quantile's lower neighbour on top of the smaller numbers."""
        wanted = int((len(self) - 1) * self.q) + 1 if len(self) else 0
        while self._low_count > wanted:
            heapq.heappush(self._high, -heapq.heappop(self._low))
            self._low_count, self._high_count = self._low_count - 1, self._high_count + 1
            self._drop_passed()
        while self._low_count < wanted:
            heapq.heappush(self._low, -heapq.heappop(self._high))
            self._low_count, self._high_count = self._low_count + 1, self._high_count - 1
            self._drop_passed()

    def _drop_passed(self) -> None:
        """Leaves no passed number on top of a heap."""
        for heap, sign in ((self._low, -1), (self._high, 1)):
            while heap and self._passed[x := sign * heap[0]]:
                heapq.heappop(heap)
                self._passed[x] -= 1
                if not self._passed[x]:
                    del self._passed[x]
