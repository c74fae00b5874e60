// A row's channels in vectors, for sources compiled once per instruction set.
#pragma once

#include "vector.h"

namespace uk::UK_ISA {
namespace {

// Calls visit(first channel, number of channels) for every vector of channels; the
// last one is a part of a vector where C is no multiple.
template <class A, class Visit>
UK_INLINE void channels(int64_t C, Visit visit) {
  constexpr int64_t L = lanes_of<A>;
  int64_t c = 0;
  for (; c + L <= C; c += L) visit(c, L);
  if (c < C) visit(c, C - c);
}

template <class A, class S>
UK_INLINE vec<A> load_part(const S* p, int64_t count) {
  return count == lanes_of<A> ? load(p) : load_some<A>(p, count, 1);
}

template <class A, class S>
UK_INLINE void store_part(S* p, vec<A> v, int64_t count) {
  if (count == lanes_of<A>)
    store(p, v);
  else
    store_some<A>(p, v, count);
}

}  // namespace
}  // namespace uk::UK_ISA
