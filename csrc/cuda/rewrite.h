// Changing the elements of a piece in place, from its end to its beginning.
#pragma once

#include "cuda/numbers.h"
#include "cuda/walk.h"

namespace fastclip::cuda {

// Changes of 16 bytes and of one element; each returns whether it is to be written.
template <class Number>
struct Scale {
  typename Number::Real factor;
  __device__ bool vector(Vector& v) const {
#pragma unroll
    for (int n = 0; n < Number::kItems; ++n) Number::scale(v.word, n, factor);
    return true;
  }
  __device__ bool single(typename Number::Bits& x) const {
    x = Number::bits(Number::real(x) * factor);
    return true;
  }
};

template <class Number, class Change>
__device__ void rewrite(const Piece& piece, Team team, Change change) {
  const Split<Number> x(piece.data, piece.numel);
  uint4* body = x.body();
  const uint32_t step = team.threads * kInFlight;
  auto* edge = x.edge(team.thread);
  if (edge != nullptr) {
    auto value = *edge;
    if (change.single(value)) *edge = value;
  }
#pragma unroll 1
  for (uint32_t round = (x.vectors + step - 1) / step; round > 0; --round) {
    const uint32_t i = (round - 1) * step + team.thread;
    Vector v[kInFlight] = {};
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      if (i + k * team.threads < x.vectors) v[k] = Vector::load(body + i + k * team.threads);
    }
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      const bool changed = change.vector(v[k]);
      if (changed && i + k * team.threads < x.vectors) v[k].store(body + i + k * team.threads);
    }
  }
}

}  // namespace fastclip::cuda
