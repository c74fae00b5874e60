// Attention's forward pass on AMX's tiles, for bfloat16 and for float32 in parts.
//
// 16 queries meet 32 keys in a step.  Tiles 0 to 3 hold the sums of their channels from the first
// key to the last, so that only a step's scores and weights go through memory; while the tiles
// multiply other steps' keys and values, the vector registers make weights of this one's scores.
#pragma once

#include "attention_operands.h"
#include "exponential.h"

namespace uk::UK_ISA {
namespace {

constexpr int64_t kRows = 2 * kEdge;  // keys in a step
constexpr int64_t kEarly = 2;         // steps from a step's scores to its weights

// Parts of a number.
template <class N>
constexpr int64_t kParts = 1;
template <>
constexpr int64_t kParts<Split> = kSplit;
// Operands lie tile behind tile, the parts of one together, as [keys / 16, channels / 32],
// [keys / 32, channels / 16] and [channels / 32].
template <class N>
constexpr int64_t kPiece = kParts<N> * kTileSize;
constexpr int64_t kLine = 64;  // bytes in a row of a tile

// From rows [32, width] of keys, and of values.
UK_INLINE void pack_keys_tiles(const bf16* rows, int64_t width, bf16* out) {
  for (int64_t r = 0; r < kRows; r += kEdge)
    for (int64_t c = 0; c < width; c += kRows, out += kTileSize)
      for (int64_t i = 0; i < kEdge; ++i)
        __builtin_memcpy(out + i * kRows, rows + (r + i) * width + c, kRows * sizeof(bf16));
}
UK_INLINE void pack_keys_tiles(const float* rows, int64_t width, bf16* out) {
  split_rows(rows, width, kRows, width, {out, kSplit * width});
}
UK_INLINE void pack_values_tiles(const bf16* rows, int64_t width, bf16* pairs, bf16* out) {
  pair_rows(rows, kRows, width, pairs);
  transpose(pairs, width, kEdge, width, out, kEdge);
}
UK_INLINE void pack_values_tiles(const float* rows, int64_t width, float*, bf16* out) {
  split_turned(rows, width, kRows, width, {out, kSplit * kRows});
}
// From rows [16, width] of queries; `turned` has room for as many.
UK_INLINE void pack_queries_tiles(const bf16* rows, int64_t width, bf16*, bf16* out) {
  transpose(rows, width / 2, kEdge, width / 2, out, kEdge);
}
UK_INLINE void pack_queries_tiles(const float* rows, int64_t width, float* turned, bf16* out) {
  transpose(rows, width, kEdge, width, turned, kEdge);
  for (int64_t c = 0; c < width; c += kRows, out += kPiece<Split>)
    for (int64_t i = 0; i < kEdge; ++i)
      store_split(out + i * kRows, kTileSize, load(turned + (c + i) * kEdge),
                  load(turned + (c + i + kEdge) * kEdge));
}

// Calls add(other) for each product of parts that float32 can tell, small ones first: with a part
// on the right in tile 6, and where the other one lies on the left.
template <class N, class Add>
UK_INLINE void for_parts(const bf16* right, const Add& add) {
#pragma GCC unroll 3
  for (int64_t part = kParts<N> - 1; part >= 0; --part) {
    _tile_loadd(6, right + part * kTileSize, kLine);
#pragma GCC unroll 3
    for (int64_t other = kParts<N> - 1 - part; other >= 0; --other) add(other * kTileSize);
  }
}

// Scores of 32 keys and 16 queries, in tiles 4 and 5.
template <class N, int64_t WIDTH, class Meanwhile>
UK_INLINE void multiply_keys(const bf16* keys, const bf16* queries, Meanwhile& meanwhile) {
  constexpr int64_t kLower = WIDTH / kRows * kPiece<N>;
  _tile_zero(4);
  _tile_zero(5);
#pragma GCC unroll 2
  for (int64_t c = 0; c < WIDTH; c += kRows, keys += kPiece<N>, queries += kPiece<N>)
    for_parts<N>(queries, [&](int64_t part) __attribute__((always_inline)) {
      _tile_loadd(7, keys + part, kLine);
      _tile_dpbf16ps(4, 7, 6);
      meanwhile.at();
      _tile_loadd(7, keys + kLower + part, kLine);
      _tile_dpbf16ps(5, 7, 6);
      meanwhile.at();
    });
}
UK_INLINE void store_scores(float* scores) {
  _tile_stored(4, scores, kLine);
  _tile_stored(5, scores + kTileSize / 2, kLine);
}

// Adds to the sums of 32 or 64 channels and 16 queries, in tiles 0 to 3.
template <class N, int64_t WIDTH, class Meanwhile>
UK_INLINE void multiply_values(const bf16* values, const bf16* weights, Meanwhile& meanwhile) {
  for_parts<N>(weights, [&](int64_t part) __attribute__((always_inline)) {
    const bf16* left = values + part;
    _tile_loadd(7, left, kLine);
    _tile_dpbf16ps(0, 7, 6);
    meanwhile.at();
    _tile_loadd(7, left + kPiece<N>, kLine);
    _tile_dpbf16ps(1, 7, 6);
    meanwhile.at();
    if constexpr (WIDTH > kRows) {
      _tile_loadd(7, left + 2 * kPiece<N>, kLine);
      _tile_dpbf16ps(2, 7, 6);
      meanwhile.at();
      _tile_loadd(7, left + 3 * kPiece<N>, kLine);
      _tile_dpbf16ps(3, 7, 6);
      meanwhile.at();
    }
  });
}
UK_INLINE void clear_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}
template <int64_t WIDTH>
UK_INLINE void load_sums(const float* sums) {
  constexpr int64_t kSize = kEdge * kEdge;
  remember(sums);
  _tile_loadd(0, sums, kLine);
  _tile_loadd(1, sums + kSize, kLine);
  if constexpr (WIDTH <= kRows) return;
  _tile_loadd(2, sums + 2 * kSize, kLine);
  _tile_loadd(3, sums + 3 * kSize, kLine);
}
template <int64_t WIDTH>
UK_INLINE void store_sums(float* sums) {
  constexpr int64_t kSize = kEdge * kEdge;
  _tile_stored(0, sums, kLine);
  _tile_stored(1, sums + kSize, kLine);
  if constexpr (WIDTH <= kRows) return;
  _tile_stored(2, sums + 2 * kSize, kLine);
  _tile_stored(3, sums + 3 * kSize, kLine);
}

// Makes weights of a step's scores, exp2(score * scale + offset - top), in words on the right of
// products with values.  `PLAIN` steps lack offset and top, as they are zero.
template <class N, bool PLAIN>
struct Softening {
  const float *scores, *offset;
  bf16* weights;
  float scale;
  vec<float> top, sum[2];

  // Those of the rows that share word i.
  [[gnu::always_inline]] void word(int64_t i) {
    if constexpr (std::is_same_v<N, bf16>) {
      const words low = cut_power(exponent(2 * i)) >> 16, high = cut_power(exponent(2 * i + 1));
      const __m512i both = _mm512_mask_blend_epi16(0xaaaaaaaa, (__m512i)low, (__m512i)high);
      const __m512i ones = _mm512_set1_epi16(0x3f80);
      sum[i % 2] = (vec<float>)_mm512_dpbf16_ps((__m512)sum[i % 2], (__m512bh)both, (__m512bh)ones);
      _mm512_store_si512(weights + i * kRows, both);
    } else {
      vec<float> p[2];
#pragma GCC unroll 2
      for (int64_t j = 0; j < 2; ++j) {
        const int64_t key = i + j * kEdge;
        p[j] = PLAIN ? exp2_scaled<float>(load(scores + key * kEdge), scale)
                     : exp2<float>(exponent(key));
        sum[j] += p[j];
      }
      store_split(weights + i * kRows, kTileSize, p[0], p[1]);
    }
  }

 private:
  [[gnu::always_inline]] vec<float> exponent(int64_t key) const {
    const vec<float> score = load(scores + key * kEdge) * scale;
    return PLAIN ? score : maximum(score + (offset[key] - top), -100.f - vec<float>{});
  }
};

// Spreads a step's words over `CALLS` products; the next scores leave the tiles on the way.
template <class Softening, int64_t CALLS>
struct Spread {
  Softening soften;
  float* scores;
  int64_t call = 0;

  [[gnu::always_inline]] void at() {
#pragma GCC unroll 16
    for (int64_t i = call * kEdge / CALLS; i < (call + 1) * kEdge / CALLS; ++i) soften.word(i);
    if (++call == CALLS * 3 / 4) store_scores(scores);
  }
};
struct Idle {
  void at() const {}
};

// The online softmax's step: `top` follows the maximum of the scores at a distance, so that sums
// are seldom rescaled; returns by how much.
UK_INLINE vec<float> raise_top(const float* scores, float scale, const float* offset,
                               vec<float>& top) {
  vec<float> most[4] = {top, top, top, top};
#pragma GCC unroll 32
  for (int64_t i = 0; i < kRows; ++i)
    most[i % 4] = maximum(most[i % 4], load(scores + i * kEdge) * scale + offset[i]);
  const vec<float> now = maximum(maximum(most[0], most[1]), maximum(most[2], most[3]));
  const vec<float> old = top;
  top = now > old + kSlack ? now : old;
  return exp2<float>(old - top);
}

// Returns whether it did: parts of infinity come to NaN.  The keys and values may lie packed in the
// thread's working memory already, from the task before.
template <class S, int64_t WIDTH>
bool forward_tiles(const AttentionShape& s, const S* qkv, const S* bias, S* out, float* lse,
                   int64_t index, bool packed) {
  using N = typename operand<S>::type;
  using Row = std::conditional_t<std::is_same_v<N, bf16>, bf16, float>;
  constexpr int64_t kCalls = kParts<N> * (kParts<N> + 1) / 2 * (WIDTH / kEdge * 2);
  const TileRegisters registers;
  const Task<N> t(s, index);
  const int64_t all = t.padded + t.tokens;
  Memory memory(t);
  bf16* k = memory.take<bf16>(kParts<N> * t.keys * WIDTH);
  bf16* v = memory.take<bf16>(kParts<N> * t.keys * WIDTH);
  bf16* q = memory.take<bf16>(kParts<N> * kEdge * WIDTH);
  Row* lines = memory.take<Row>(kRows * WIDTH);
  Row* turned = memory.take<Row>(kRows * WIDTH);
  float* sums = memory.take<float>(kEdge * WIDTH);
  float* rows = memory.take<float>(kEdge * WIDTH);
  float* scores = memory.take<float>((kEarly + 1) * kRows * kEdge);
  bf16* weights = memory.take<bf16>(2 * kPiece<N>);
  const float* offset = pack_offsets(t, memory);
  float* most = memory.take<float>(2);  // the largest square of a key's length, and of a value's
  for (int third = 1; third <= 2 && !packed; ++third) {
    most[third - 1] = 0.f;
    for (int64_t key = 0; key < t.keys; key += kRows) {
      const int64_t count = min(kRows, all - key), at = kParts<N> * key * WIDTH;
      pack_keys(s, t, qkv, bias, third, key, count, lines);
      __builtin_memset(lines + count * WIDTH, 0, (kRows - count) * WIDTH * sizeof(Row));
      most[third - 1] = longest(lines, count, WIDTH, most[third - 1]);
      third == 1 ? pack_keys_tiles(lines, WIDTH, k + at)
                 : pack_values_tiles(lines, WIDTH, turned, v + at);
    }
  }
  const float scale = s.scale * kLog2e, widest = most[0] * scale * scale;
  const bool small = most[1] < kSmall;
  if (std::is_same_v<N, Split> && !(small && widest < __builtin_inff())) return false;
  const int64_t steps = t.keys / kRows;
  const auto slot = [&](int64_t step) { return scores + step % (kEarly + 1) * kRows * kEdge; };
  const auto word = [&](int64_t step) { return weights + step % 2 * kPiece<N>; };
  const auto keys = [&](int64_t step) {
    return k + kParts<N> * min(step, steps - 1) * kRows * WIDTH;
  };
  const auto values = [&](int64_t step) { return v + kParts<N> * step * kRows * WIDTH; };
  for (int64_t first = t.begin; first < t.end; first += kEdge) {
    const int64_t count = min(kEdge, t.end - first);
    pack_tokens(s, t, qkv + t.sample + t.head, s.token_stride, first, count, lines);
    __builtin_memset(lines + count * WIDTH, 0, (kEdge - count) * WIDTH * sizeof(Row));
    pack_queries_tiles(lines, WIDTH, turned, q);
    // |q k| <= |q| |k|
    const bool calm = small && longest(lines, count, WIDTH) * widest < kCalm * kCalm;
    vec<float> top = (calm ? 0.f : -__builtin_inff()) - vec<float>{}, total = {};
    remember(q);
    const Idle idle;
    for (int64_t step = 0; step < kEarly; ++step) {
      multiply_keys<N, WIDTH>(keys(step), q, idle);
      store_scores(slot(step));
    }
    const auto soften = [&](auto plain, int64_t step)
                            __attribute__((always_inline)) -> vec<float> {
      using Work = Softening<N, decltype(plain)::value>;
      Spread<Work, kCalls> spread = {
          {slot(step), offset + step * kRows, word(step), scale, top, {}}, slot(step + kEarly)};
      multiply_keys<N, WIDTH>(keys(step + kEarly), q, spread);
      multiply_values<N, WIDTH>(values(max(step - 1, 0)), word(step + 1), spread);
      remember(weights);
      return spread.soften.sum[0] + spread.soften.sum[1];
    };
    for (int64_t step = 0; step < steps; ++step) {
      vec<float> factor = 1.f - vec<float>{};
      if (!calm) factor = raise_top(slot(step), scale, offset + step * kRows, top);
      const bool plain = calm && !t.padded && (step + 1) * kRows <= t.tokens;
      const vec<float> sum =
          plain ? soften(std::true_type(), step) : soften(std::false_type(), step);
      total = total * factor + sum;
      if (step == 0) clear_sums();  // there was nothing to gather yet
      if (_mm512_cmp_ps_mask((__m512)factor, _mm512_set1_ps(1.f), _CMP_NEQ_UQ) != 0) {
        store_sums<WIDTH>(sums);
        for (int64_t i = 0; i < WIDTH * kEdge; i += L) store(sums + i, load(sums + i) * factor);
        load_sums<WIDTH>(sums);
      }
    }
    multiply_values<N, WIDTH>(values(steps - 1), word(steps - 1), idle);
    store_sums<WIDTH>(sums);
    alignas(64) float tops[L], totals[L];
    store(tops, top);
    store(totals, total);
    transpose(sums, kEdge, WIDTH, kEdge, rows, WIDTH);
    store_attended(s, t, first, count, rows, tops, totals, out, lse);
  }
  return true;
}

}  // namespace
}  // namespace uk::UK_ISA
