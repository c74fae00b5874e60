// The matrix product all kernels share, for sources compiled once per instruction set.
//
// The operands are words of 32 bits along the reduction, one float or two adjacent bfloat16.
#pragma once

#include "vector.h"

namespace uk::UK_ISA {

UK_INLINE vec<float> multiply_add(vec<float> a, vec<float> b, vec<float> sum) {
  return a * b + sum;
}

#if defined(__AVX512BF16__)
UK_INLINE words load_once(const bf16* p) {
  words v = load_bits<words>(p);
  asm("" : "+v"(v));
  return v;
}

UK_INLINE words broadcast_once(const bf16* p) {
  uint32_t word;
  __builtin_memcpy(&word, p, sizeof(word));
  words v = word - words{};
  asm("" : "+v"(v));
  return v;
}

UK_INLINE vec<float> multiply_add(words a, words b, vec<float> sum) {
  return (vec<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}
#endif

namespace {

constexpr int kSums = UK_VECTOR_REGISTERS == 32 ? 24 : 12;  // vectors of sums in registers

template <class N>
constexpr int64_t kWord = 4 / sizeof(N);  // numbers in a word

template <class N>
constexpr int64_t kDepth = kWord<N>;  // the numbers a reduction runs over are a multiple of this

// out[r][:] (+)= sum over the n / kWord words i of a[r * row + i * step] * b[i][:], for ROWS rows
// of VECTORS; strides are in numbers.
// What is in `out` is added last: block by block, long sums keep their digits.
template <int ROWS, int VECTORS, class N>
void product_tile(const N* a, int64_t row, int64_t step, const N* b, int64_t ldb, int64_t n,
                  float* out, int64_t ldo, bool accumulate) {
  constexpr int64_t L = lanes_of<float>;
  vec<float> sum[ROWS][VECTORS];
#pragma GCC unroll 24
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) sum[r][v] = vec<float>{};
  for (int64_t i = 0; i < n; i += kWord<N>, a += step, b += ldb) {
    decltype(load_once(b)) right[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) right[v] = load_once(b + v * L * kWord<N>);
#pragma GCC unroll 24
    for (int r = 0; r < ROWS; ++r) {
      const auto left = broadcast_once(a + r * row);
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) sum[r][v] = multiply_add(left, right[v], sum[r][v]);
    }
  }
#pragma GCC unroll 24
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
      if (accumulate) sum[r][v] += load(out + r * ldo + v * L);
      store(out + r * ldo + v * L, sum[r][v]);
    }
}

template <int ROWS, int VECTORS, class N>
void product_rows(int64_t rows, const N* a, int64_t row, int64_t step, const N* b, int64_t ldb,
                  int64_t n, float* out, int64_t ldo, bool accumulate) {
  for (; rows >= ROWS; rows -= ROWS, a += ROWS * row, out += ROWS * ldo)
    product_tile<ROWS, VECTORS>(a, row, step, b, ldb, n, out, ldo, accumulate);
  if constexpr (ROWS > 1)
    if (rows)
      product_rows<ROWS / 2, VECTORS>(rows, a, row, step, b, ldb, n, out, ldo, accumulate);
}

// The same for any number of rows and a width of whole vectors.
template <class N>
void product(int64_t rows, int64_t width, const N* a, int64_t row, int64_t step, const N* b,
             int64_t ldb, int64_t n, float* out, int64_t ldo, bool accumulate) {
  constexpr int64_t L = lanes_of<float>;
  while (width > 0) {
    const int64_t vectors = width % (3 * L) == 0 ? 3 : min(width / L, 4);  // rather 3, 3 than 4, 2
    const auto run = vectors == 4   ? product_rows<kSums / 4, 4, N>
                     : vectors == 3 ? product_rows<kSums / 3, 3, N>
                     : vectors == 2 ? product_rows<kSums / 2, 2, N>
                                    : product_rows<kSums / 2, 1, N>;
    run(rows, a, row, step, b, ldb, n, out, ldo, accumulate);
    width -= vectors * L, b += vectors * L * kWord<N>, out += vectors * L;
  }
}

// What products may call while they are busy: nothing, or
struct Nothing {
  void at(int64_t) const {}
};

// steps of other work, some of them at every call: for the vector registers while tiles are busy.
template <class Step>
class Steps {
 public:
  Steps(const Step& step, int64_t count, int64_t calls)
      : step_(step), count_(count), each_(calls > 0 ? (count + calls - 1) / calls : count) {}

  [[gnu::always_inline]] void at(int64_t) { run(min(count_, next_ + each_)); }
  void finish() { run(count_); }

 private:
  [[gnu::always_inline]] void run(int64_t end) {
    for (; next_ < end; ++next_) step_(next_);
  }

  const Step& step_;
  int64_t count_, each_, next_ = 0;
};

}  // namespace
}  // namespace uk::UK_ISA

#if defined(__AMX_BF16__)
#include "tile_product.h"
#else
namespace uk::UK_ISA {
// What a task holds while it multiplies: nothing here.
struct TileRegisters {
  TileRegisters() {}
};
}  // namespace uk::UK_ISA
#endif
