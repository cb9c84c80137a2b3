"""How the CUDA kernels walk a list: which block, and which warp, has what of which tensor."""

from __future__ import annotations

import pytest
import torch
from cuda_on_host import DTYPES


def walked(kernels, numel, dtypes, grid, backwards=False) -> list[tuple[int, int]]:
    """Every element's address, as runs in the order of addresses, joined where they meet."""
    size = {(t + 1): dtype.itemsize for t, dtype in enumerate(dtypes)}
    runs: list[list[int]] = []
    for address, elements in sorted(kernels.pieces(numel, dtypes, grid, backwards)):
        end = address + elements * size[address >> 40]
        if runs and runs[-1][1] == address:
            runs[-1][1] = end
        else:
            runs.append([address, end])
    return [(begin, end) for begin, end in runs]


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("grid", [1, 2, 7, 64])
def test_a_walk_has_every_element_once(kernels, grid, backwards):
    sizes = [0, 1, 1023, 1024, 1025, 0, 0, 2048, 2049, 40_000, 5, 0]
    dtypes = [DTYPES[i % 4] for i in range(len(sizes))]
    at = [(t + 1) << 40 for t in range(len(sizes))]
    whole = [(a, a + n * d.itemsize) for a, n, d in zip(at, sizes, dtypes, strict=True) if n]
    assert walked(kernels, sizes, dtypes, grid, backwards) == whole


def test_long_tensors_take_a_piece_for_each_block_and_short_ones_a_warp(kernels):
    sizes, dtypes = [1_000_000, *[1000] * 200], [torch.float32] * 201
    pieces = kernels.pieces(sizes, dtypes, 8)
    assert len(pieces) == 201 + 7 - 1  # a share may end where a tensor does
    assert sum(n for _, n in pieces) == 1_200_000


def test_tensors_of_over_2_to_the_31_elements(kernels):
    numel = [5, (1 << 33) + 3, 0, 7]
    dtypes = [torch.float32, torch.bfloat16, torch.float32, torch.float64]
    pieces = kernels.pieces(numel, dtypes, 3)
    assert pieces[0] == (1 << 40, 5)
    assert pieces[-1] == (4 << 40, 7)
    assert sum(n for _, n in pieces) == sum(numel)
    whole = [(1 << 40, (1 << 40) + 20), (2 << 40, (2 << 40) + (1 << 34) + 6)]
    assert walked(kernels, numel, dtypes, 3)[:2] == whole
