// From a block's scores to its weights: the online softmax's step, and what backward makes of them.
#pragma once

#include "attention_operands.h"
#include "exponential.h"

namespace uk::UK_ISA {
namespace {

// One tile of queries against `keys` keys: the online softmax's step.  `top` follows the maximum of
// scores [keys, kTile], still to be multiplied by `scale`, at a distance, so that sums are seldom
// rescaled: returns whether they have to be multiplied by `shrink`.
template <class N>
bool raise(const float* scores, int64_t keys, int64_t lanes, float scale, const float* offset,
           float* top, float* total, float* shrink) {
  words moved = {};
  for (int64_t q = 0; q < lanes; q += L) {
    const vec<float> old = load(top + q);
    vec<float> most[kWord<N>];
    for (int64_t j = 0; j < kWord<N>; ++j) most[j] = old;
    for (int64_t i = 0; i < keys; i += kWord<N>)
      for (int64_t j = 0; j < kWord<N>; ++j)
        most[j] = maximum(most[j], load(scores + (i + j) * kTile<N> + q) * scale + offset[i + j]);
    vec<float> now = most[0];
    for (int64_t j = 1; j < kWord<N>; ++j) now = maximum(now, most[j]);
    now = now > old + kSlack ? now : old;
    const vec<float> factor = exp2<Exact<N>>(old - now);
    moved |= (words)(factor != 1.f);
    store(shrink + q, factor);
    store(top + q, now);
    store(total + q, load(total + q) * factor);
  }
  bool any = false;
  for (int64_t lane = 0; lane < L; ++lane) any |= moved[lane] != 0;
  return any;
}

// The first row of the step's word, and which of `across` vectors.
struct Word {
  int64_t row, vector;
};
template <class N>
UK_INLINE Word word_of(uint32_t step, uint32_t across) {
  const uint32_t word = step / across, within = word % kApart<N>;
  return {(word - within) * kWord<N> + within, step - word * across};
}

// Scores become weights exp2(score + offset - top).  `offset` is null where no score can leave the
// exponents, so that no maximum is sought and nothing is to be added.
template <class N>
struct Softmax {
  const float* scores;
  float scale;
  const float *offset, *top;
  float* sum;  // of the block's weights, zero at first
  const Right<N>& weights;

  // Those of the rows that share words with row i; returns their sum.
  [[gnu::always_inline]] vec<float> word(int64_t i, int64_t q) const {
    vec<float> p[kWord<N>], all = {};
#pragma GCC unroll 2
    for (int64_t j = 0; j < kWord<N>; ++j) {
      const int64_t key = i + j * kApart<N>;
      const vec<float> score = load(scores + key * kTile<N> + q);
      p[j] = offset ? exp2<Exact<N>>(score * scale + (offset[key] - load(top + q)))
                    : exp2_scaled<Exact<N>>(score, scale);
      all += p[j];
    }
    weights.store(i, q, p);
    return all;
  }

  // All keys of a vector of queries, or one word of them.
  [[gnu::always_inline]] void operator()(int64_t step, int64_t keys, int64_t lanes) const {
    if constexpr (kIdle<N>) {
      const auto [i, vector] = word_of<N>(step, lanes / L);
      const int64_t q = vector * L;
      store(sum + q, load(sum + q) + word(i, q));
    } else {
      vec<float> all = {};
      for (int64_t i = 0; i < keys; i += kWord<N>) all += word(i, step * L);
      store(sum + step * L, all);
    }
  }
  static int64_t steps(int64_t keys, int64_t lanes) {
    return (kIdle<N> ? keys / kWord<N> : 1) * lanes / L;
  }
};

// in [d, tile] *= factor.
void rescale(float* in, const float* factor, int64_t d, int64_t tile, int64_t lanes) {
  for (int64_t q = 0; q < lanes; q += L) {
    const vec<float> by = load(factor + q);
    for (int64_t i = q; i < d * tile; i += tile) store(in + i, load(in + i) * by);
  }
}

// Scores' own memory where their weights fit into it.
template <class N>
Right<N> weights_of(float* scores, Memory& memory) {
  if constexpr (std::is_same_v<N, Exact<N>>)
    return Right<N>((N*)scores, kTile<N>);
  else
    return Right<N>(memory, kKeys<N>, kTile<N>);
}

// Where backward keeps P and dS = P (dP - delta) of a block: on the left as rows [keys, queries],
// and dS on the right as well.  Rows lie where scores and dP were; dS's words too if they are floats.
template <class N>
struct Weights {
  float *scores, *gradient;
  Right<N> words;

  explicit Weights(Memory& memory)
      : scores(memory.take<float>(kKeys<N> * kTile<N>)),
        gradient(memory.take<float>(kKeys<N> * kTile<N>)),
        words(kWord<N> == 1 ? (N*)gradient : memory.take<N>(kKeys<N> * kTile<N>), kTile<N>) {}

  Left<N> p() const { return {(N*)scores, kTile<N> * kWord<N>, kWord<N>}; }
  Left<N> ds() const { return {(N*)gradient, kTile<N> * kWord<N>, kWord<N>}; }

  // From the scores, still to be multiplied by `scale`, and dP: all keys of a vector of queries.
  [[gnu::always_inline]] void soften(int64_t step, int64_t keys, int64_t, float scale,
                                     const float* offset, const float* lse,
                                     const float* delta) const {
    const int64_t q = step * L;
    const vec<float> top = load(lse + q), shift = load(delta + q);
    for (int64_t i = 0; i < keys; i += kWord<N>) {
      vec<float> ds[kWord<N>];
      for (int64_t j = 0; j < kWord<N>; ++j) {
        float* w = scores + (i + j) * kTile<N>;
        float* g = gradient + (i + j) * kTile<N>;
        const vec<float> p = exp2<N>(load(w + q) * scale + (offset[i + j] - top));
        ds[j] = p * (load(g + q) - shift);
        // Never ahead of what is still to be read: q numbers N end no later than q floats.
        store((N*)w + q, p);
        store((N*)g + q, ds[j]);
      }
      if constexpr (kWord<N> == 2) words.store(i, q, ds);
    }
  }
  static int64_t steps(int64_t, int64_t lanes) { return lanes / L; }
};

#if defined(__AMX_BF16__)
template <>
struct Weights<Split> {
  float *scores, *gradient;
  SplitRows p_rows, ds_rows;
  Right<Split> words;

  explicit Weights(Memory& memory)
      : scores(memory.take<float>(kSize)),
        gradient(memory.take<float>(kSize)),
        p_rows{memory.take<bf16>(kSplit * kSize), kSplit * kTile<Split>},
        ds_rows{memory.take<bf16>(kSplit * kSize), kSplit * kTile<Split>},
        words(memory, kKeys<Split>, kTile<Split>) {}

  Left<Split> p() const { return {p_rows}; }
  Left<Split> ds() const { return {ds_rows}; }

  // Two words of keys and as many vectors of queries.
  [[gnu::always_inline]] void soften(int64_t step, int64_t, int64_t lanes, float scale,
                                     const float* offset, const float* lse,
                                     const float* delta) const {
    const auto [i, pair] = word_of<Split>(step, lanes / (2 * L));
    const int64_t q = pair * 2 * L;
    Parts ds[2][2];  // of two keys, from q on and from q + L
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      const int64_t key = i + j * kApart<Split>;
      Parts p[2];
#pragma GCC unroll 2
      for (int k = 0; k < 2; ++k) {
        const int64_t lane = q + k * L, at = key * kTile<Split> + lane;
        const vec<float> score = load(scores + at) * scale;
        const vec<float> weight = exp2<float>(score + (offset[key] - load(lse + lane)));
        p[k] = Parts::of(weight);
        ds[j][k] = Parts::of(weight * (load(gradient + at) - load(delta + lane)));
      }
      store_split(p_rows.at(key, q), kTileSize, p[0], p[1]);
      store_split(ds_rows.at(key, q), kTileSize, ds[j][0], ds[j][1]);
    }
#pragma GCC unroll 2
    for (int k = 0; k < 2; ++k)
      store_split(words.at(i, q + k * L), kRightPart, ds[0][k], ds[1][k]);
  }
  static int64_t steps(int64_t keys, int64_t lanes) { return keys / 2 * (lanes / (2 * L)); }

 private:
  static constexpr int64_t kSize = kKeys<Split> * kTile<Split>;
};
#endif

}  // namespace
}  // namespace uk::UK_ISA
