// Joint and window attention in one pass over the keys (online softmax), forward and backward.
//
// Scores are kept transposed, [keys, queries]: the vector axis is the queries', so that maxima,
// sums and rescaling are vertical, keys and values are read as single words, and every matrix
// product of both passes is one small kernel, `product`, or its kind for AMX's split float32.

#include "attention_softmax.h"
#if defined(__AMX_BF16__)
#include "attention_tiles.h"
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
