# mypy: allow-untyped-defs
"""How programs of grad_norm's Triton kernels walk a table of tensors.

A row of the table is (address, elements, dtype, chunks up to and with this tensor). A program has a
run of chunks: it finds their first tensor by one search, and steps from tensor to tensor then.
"""

import triton
import triton.language as tl


@triton.jit
def share(chunks, program):
    """The chunk where a program's run begins; that of program `num_programs` is the end of all."""
    return (chunks.to(tl.int64) * program // tl.num_programs(0)).to(tl.int32)


@triton.jit
def program_of(chunks, chunk, programs):
    """The program whose run has this chunk."""
    return (((chunk + 1).to(tl.int64) * programs - 1) // chunks).to(tl.int32)


@triton.jit
def row_of(table, tensors, chunk):
    """The tensor that has this chunk."""
    low = tl.full((), 0, tl.int32)
    high = tl.full((), 0, tl.int32) + tensors - 1
    while low < high:
        middle = (low + high) // 2
        below = chunk < tl.load(table + middle * 4 + 3)
        high = tl.where(below, middle, high)
        low = tl.where(below, low, middle + 1)
    return low


@triton.jit
def tensor_at(table, row, CHUNK: tl.constexpr):
    """(address, elements, dtype, its first chunk, the one after its last)"""
    at = table + row * 4
    numel = tl.load(at + 1)
    end = tl.load(at + 3).to(tl.int32)
    begin = end - ((numel + CHUNK - 1) // CHUNK).to(tl.int32)
    return tl.load(at), numel, tl.load(at + 2).to(tl.int32), begin, end
