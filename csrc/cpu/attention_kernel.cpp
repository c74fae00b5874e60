// Joint and window attention in one pass over the keys (online softmax), forward and backward.
//
// Scores are kept transposed, [keys, queries]: the vector axis is the queries', so that maxima,
// sums and rescaling are vertical, keys and values are read as single words, and every matrix
// product of both passes is one small kernel, `product`, or its kind for AMX's split float32.

#if defined(__AMX_BF16__)
#include "attention_tiles.h"
#else
#include "attention_operands.h"
#include "exponential.h"
#endif

namespace uk::UK_ISA {
namespace {

// Blocks of a window's keys, one after another: `raw` makes scores of them, `soften` weights of these
// and `gather` the sums.  Where vector registers idle in products, a block is softened while the
// tiles multiply those beside it; so there are two slots to keep a block's scores and weights in.
template <class N>
constexpr int kSlots = kIdle<N> ? 2 : 1;

template <class N, class Raw, class Soften, class Gather>
void for_blocks(int64_t keys, const Raw& raw, const Soften& soften, const Gather& gather) {
  constexpr int64_t step = kKeys<N>;
  Nothing nothing;
  if constexpr (!kIdle<N>) {
    for (int64_t key = 0; key < keys; key += step) {
      raw(key, 0, nothing);
      soften(key, 0, [](auto&) {});
      gather(key, 0, nothing);
    }
  } else {
    raw(0, 0, nothing);
    int slot = 0;
    for (int64_t key = 0; key < keys; key += step, slot ^= 1)
      soften(key, slot, [&](auto& meanwhile) {
        if (key > 0) gather(key - step, slot ^ 1, meanwhile);
        if (key + step < keys) raw(key + step, slot ^ 1, meanwhile);
      });
    gather((keys - 1) / step * step, slot ^ 1, nothing);
  }
}

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

// Scores become weights exp2(score + offset - top).  `offset` is null where no score can leave the
// exponents, so that no maximum is sought and nothing is to be added.
// The first row of the step's word, and which of `across` vectors.
struct Word {
  int64_t row, vector;
};
template <class N>
UK_INLINE Word word_of(uint32_t step, uint32_t across) {
  const uint32_t word = step / across, within = word % kApart<N>;
  return {(word - within) * kWord<N> + within, step - word * across};
}

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

template <class S, class N = typename operand<S>::type>
void forward(const AttentionShape& s, const S* qkv, const S* bias, S* out, float* lse,
             int64_t index) {
  constexpr int64_t tile = kTile<N>;
  const TileRegisters registers;
  const Task<N> t(s, index);
  const int64_t width = t.width, depth = round_up(s.d, kDepth<N>);
  Memory memory(t);
  Keys<N> k(t, memory, true, false), v(t, memory, false, true);
  Queries<N> q(t, memory, false);
  float* sums = memory.take<float>(width * tile);
  float* rows = memory.take<float>(width * tile);
  float* scores[2];
  for (int i = 0; i < kSlots<N>; ++i) scores[i] = memory.take<float>(kKeys<N> * tile);
  const Right<N> weights[] = {weights_of<N>(scores[0], memory),
                              weights_of<N>(scores[kSlots<N> - 1], memory)};
  float* top = memory.take<float>(tile);
  float* total = memory.take<float>(tile);
  float* sum = memory.take<float>(tile);
  float* factor = memory.take<float>(tile);
  const float* offset = pack_offsets(t, memory);
  k.pack(s, t, qkv, bias, 1);
  v.pack(s, t, qkv, bias, 2);
  const float scale = s.scale * kLog2e, widest = k.longest(t) * scale * scale;
  const bool small = v.longest(t) < kSmall;
  if constexpr (!std::is_same_v<N, Exact<N>>)  // parts of infinity come to NaN
    if (!small || !(widest < __builtin_inff()))
      return forward<S, Exact<N>>(s, qkv, bias, out, lse, index);
  for (int64_t first = t.begin; first < t.end; first += tile) {
    const int64_t count = min(tile, t.end - first), lanes = round_up(count, kStep<N>);
    q.pack(s, t, qkv + t.sample + t.head, s.token_stride, first, count);
    // |q k| <= |q| |k|
    const bool calm = small && longest(q.rows, count, width) * widest < kCalm * kCalm;
    for (int64_t i = 0; i < tile; ++i) top[i] = calm ? 0.f : -__builtin_inff(), total[i] = 0.f;
    __builtin_memset(sums, 0, width * tile * sizeof(float));
    const auto block = [&](int64_t key) { return min(kKeys<N>, t.keys - key); };
    const auto raw = [&](int64_t key, int slot, auto& meanwhile) {
      multiply<N>(block(key), lanes, k.rows(t, key), q.over_channels, depth, scores[slot], tile,
                  false, meanwhile);
    };
    const auto gather = [&](int64_t key, int slot, auto& meanwhile) {
      multiply<N>(s.d, lanes, v.columns(t, key), weights[slot], block(key), sums, tile, true,
                  meanwhile);
    };
    const int64_t calls_ = calls_of<N>(kKeys<N>, lanes, depth) + calls_of<N>(s.d, lanes, kKeys<N>);
    const auto soften = [&](int64_t key, int slot, const auto& during) {
      const int64_t keys = block(key);
      const bool plain = calm && !t.padded && key + keys <= t.tokens;
      const bool moved =
          !calm && raise<N>(scores[slot], keys, lanes, scale, offset + key, top, total, factor);
      for (int64_t i = 0; i < tile; ++i) sum[i] = 0.f;
      const Softmax<N> softmax = {scores[slot], scale, plain ? nullptr : offset + key, top, sum,
                                  weights[slot]};
      const auto step = [&](int64_t i) __attribute__((always_inline)) { softmax(i, keys, lanes); };
      Steps steps(step, softmax.steps(keys, lanes), calls_);
      during(steps);
      steps.finish();
      for (int64_t i = 0; i < tile; ++i) total[i] += sum[i];
      if (moved) rescale(sums, factor, s.d, tile, lanes);
    };
    for_blocks<N>(t.keys, raw, soften, gather);
    transpose(sums, tile, width, tile, rows, width);
    store_attended(s, t, first, count, rows, top, total, out, lse);
  }
}

template <class S>
void forward_tasks(const AttentionShape& s, const S* qkv, const S* bias, S* out, float* lse,
                   int64_t begin, int64_t end) {
#if defined(__AMX_BF16__)
  const auto run = s.d <= kRows ? forward_tiles<S, kRows> : forward_tiles<S, 2 * kRows>;
  const int64_t chunks = (s.tokens + s.chunk - 1) / s.chunk;
  bool done = false;
  for (int64_t task = begin; task < end; ++task) {
    // Chunks of the same head share its keys.
    done = s.d <= 2 * kRows && run(s, qkv, bias, out, lse, task, done && task % chunks != 0);
    if (!done) forward(s, qkv, bias, out, lse, task);
  }
#else
  for (int64_t task = begin; task < end; ++task) forward(s, qkv, bias, out, lse, task);
#endif
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

template <class S>
void backward(const AttentionShape& s, const S* qkv, const S* bias, const S* dout, const S* out,
              const float* lse, S* dqkv, float* partial, int64_t index) {
  using N = typename operand<S>::type;
  constexpr int64_t tile = kTile<N>;
  const TileRegisters registers;
  const Task<N> t(s, index);
  const int64_t width = t.width, C = s.H * s.d, depth = round_up(s.d, kDepth<N>);
  Memory memory(t);
  Keys<N> k(t, memory, true, true), v(t, memory, true, false);
  Queries<N> q(t, memory, true), dy(t, memory, true);
  float* dq = memory.take<float>(width * tile);
  float* rows = memory.take<float>(width * tile);
  const Weights<N> first_slot(memory);
  const Weights<N> other = kSlots<N> == 1 ? first_slot : Weights<N>(memory);
  const Weights<N>* const weights[] = {&first_slot, &other};
  float* top = memory.take<float>(tile);
  float* delta = memory.take<float>(tile);
  Exact<N>* line = memory.take<Exact<N>>(width);
  const float* offset = pack_offsets(t, memory);
  const int64_t part = s.rows * width;
  float* dk = partial + (s.padded - t.padded) * width;
  float* dv = dk + part;
  __builtin_memset(partial, 0, 2 * part * sizeof(float));
  k.pack(s, t, qkv, bias, 1);
  v.pack(s, t, qkv, bias, 2);
  for (int64_t first = t.begin; first < t.end; first += tile) {
    const int64_t count = min(tile, t.end - first), lanes = round_up(count, kStep<N>);
    const int64_t base = t.b * s.N * C + t.head;
    q.pack(s, t, qkv + t.sample + t.head, s.token_stride, first, count);
    dy.pack(s, t, dout + base, C, first, count);
    for (int64_t i = count; i < tile; ++i) delta[i] = top[i] = 0.f;
    t.stretches(first, count, [&](int64_t i, int64_t position, int64_t length) {
      for (const int64_t end = i + length; i < end; ++i, ++position) {
        prefetch(out + base + (position + kAhead) * C, s.d);
        pack_row(out + base + position * C, s.d, line, width);
        vec<float> dot = {};
        const Exact<N>* row = dy.rows + i * width;
        for (int64_t c = 0; c < width; c += L) dot += load(line + c) * load(row + c);
        delta[i] = sum_of(dot);
        top[i] = lse[(t.b * s.H + t.h) * s.N + position];
      }
    });
    __builtin_memset(dq, 0, width * tile * sizeof(float));
    // As many as there are queries, or a few zeros more.
    const int64_t queries = round_up(count, kDepth<N>);
    const auto block = [&](int64_t key) { return min(kKeys<N>, t.keys - key); };
    const auto raw = [&](int64_t key, int slot, auto& meanwhile) {
      const Weights<N>& w = *weights[slot];
      multiply<N>(block(key), lanes, k.rows(t, key), q.over_channels, depth, w.scores, tile, false,
                  meanwhile);
      multiply<N>(block(key), lanes, v.rows(t, key), dy.over_channels, depth, w.gradient, tile,
                  false, meanwhile);
    };
    const auto gather = [&](int64_t key, int slot, auto& meanwhile) {
      const Weights<N>& w = *weights[slot];
      const int64_t keys = block(key), at = key * width;
      multiply<N>(s.d, lanes, k.columns(t, key), w.words, keys, dq, tile, true, meanwhile);
      multiply<N>(keys, width, w.p(), dy.over_queries, queries, dv + at, width, true, meanwhile);
      multiply<N>(keys, width, w.ds(), q.over_queries, queries, dk + at, width, true, meanwhile);
    };
    const int64_t calls_ = 2 * calls_of<N>(kKeys<N>, lanes, depth) + calls_of<N>(s.d, lanes, kKeys<N>) +
                           2 * calls_of<N>(kKeys<N>, width, queries);
    const auto soften = [&](int64_t key, int slot, const auto& during) {
      const int64_t keys = block(key);
      const Weights<N>& w = *weights[slot];
      const auto step = [&](int64_t i) __attribute__((always_inline)) {
        w.soften(i, keys, lanes, s.scale * kLog2e, offset + key, top, delta);
      };
      Steps steps(step, w.steps(keys, lanes), calls_);
      during(steps);
      steps.finish();
    };
    for_blocks<N>(t.keys, raw, soften, gather);
    transpose(dq, tile, width, tile, rows, width);
    t.stretches(first, count, [&](int64_t i, int64_t position, int64_t length) {
      for (const int64_t end = i + length; i < end; ++i, ++position) {
        S* row = dqkv + (t.b * s.N + position) * 3 * C + t.head;
        sum_rows(rows + i * width, 1, 0, s.scale, s.d, row);
      }
    });
  }
}

}  // namespace

template <class S>
const AttentionKernels<S>& attention_kernels() {
  using N = typename operand<S>::type;
#if defined(__AMX_BF16__)
  constexpr int64_t queries = kEdge;
#else
  constexpr int64_t queries = kTile<N>;
#endif
  static constexpr AttentionKernels<S> kernels = {
      queries, kTile<N>, kStep<N>, kDepth<N>, forward_tasks<S>, backward<S>, sum_rows<S>};
  return kernels;
}

template const AttentionKernels<bf16>& attention_kernels();
#if defined(__AMX_BF16__)
template const AttentionKernels<float>& attention_kernels();
#endif
#if !defined(__AVX512BF16__)
template const AttentionKernels<float>& attention_kernels();
template const AttentionKernels<f16>& attention_kernels();
#endif

}  // namespace uk::UK_ISA
