// Operands of `product`: converting, padding and transposing what they are made of.
#pragma once

#include "product.h"

namespace uk::UK_ISA {
namespace {

// What tensors of storage type S are multiplied as: bfloat16 where there is a product for it.
template <class S>
struct operand {
  using type = float;
};
#if defined(__AVX512BF16__)
template <>
struct operand<bf16> {
  using type = bf16;
};
#endif

UK_INLINE int64_t round_up(int64_t count, int64_t step) { return (count + step - 1) / step * step; }

// The first `count` numbers, at most a vector of them.
template <class S>
UK_INLINE vec<float> load_up_to(const S* p, int64_t count) {
  return count >= lanes_of<float> ? load(p) : load_some<float>(p, max(count, 0), 1);
}

// `count` numbers, and zeros behind them up to `width`.
template <class S, class N>
void pack_row(const S* in, int64_t count, N* out, int64_t width) {
  constexpr int64_t L = lanes_of<float>;
  int64_t c = 0;
  for (; c + L <= count; c += L) store(out + c, load(in + c));
  if (c < count) store(out + c, load_some<float>(in + c, count - c, 1)), c += L;
  for (; c < width; c += L) store(out + c, vec<float>{});
}

// out [columns, ldo] = in' [rows, ldi], all in words; in AVX-512 there are whole blocks of 16 x 16.
#if defined(__AVX512F__)
[[maybe_unused]] void transpose(const void* in, int64_t ldi, int64_t rows, int64_t columns,
                                void* out, int64_t ldo) {
  const words lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  for (int64_t i = 0; i < rows; i += 16)
    for (int64_t c = 0; c < columns; c += 16) {
      words block[16];
#pragma GCC unroll 16
      for (int r = 0; r < 16; ++r)
        block[r] = load_bits<words>((const uint32_t*)in + (i + r) * ldi + c);
      // Each step swaps one bit of the row with the same bit of the column.
#pragma GCC unroll 4
      for (int bit = 8; bit > 0; bit /= 2) {
        const words own = (lane & bit) == 0 ? lane : lane - bit + 16;
        const words other = (lane & bit) == 0 ? lane + bit : lane + 16;
#pragma GCC unroll 16
        for (int r = 0; r < 16; ++r) {
          if (r & bit) continue;
          const __m512i a = (__m512i)block[r], b = (__m512i)block[r + bit];
          block[r] = (words)_mm512_permutex2var_epi32(a, (__m512i)own, b);
          block[r + bit] = (words)_mm512_permutex2var_epi32(a, (__m512i)other, b);
        }
      }
#pragma GCC unroll 16
      for (int r = 0; r < 16; ++r)
        __builtin_memcpy((uint32_t*)out + (c + r) * ldo + i, &block[r], sizeof(words));
    }
}
#else
[[maybe_unused]] void transpose(const void* in, int64_t ldi, int64_t rows, int64_t columns,
                                void* out, int64_t ldo) {
  for (int64_t c = 0; c < columns; ++c)
    for (int64_t i = 0; i < rows; ++i)
      __builtin_memcpy((uint32_t*)out + c * ldo + i, (const uint32_t*)in + i * ldi + c, 4);
}
#endif

#if defined(__AVX512BF16__)
// out [count / 2, width words] = rows [count, width] in pairs: number by number, two rows' ones.
[[maybe_unused]] void pair_rows(const bf16* rows, int64_t count, int64_t width, bf16* out) {
  constexpr int64_t L = lanes_of<float>;
  for (int64_t i = 0; i < count; i += 2, rows += 2 * width)
    for (int64_t c = 0; c < width; c += L, out += 2 * L) {
      const words low = lengthened(load_bits<half_words>(rows + c));
      const words high = lengthened(load_bits<half_words>(rows + width + c));
      const words both = low | high << 16;
      __builtin_memcpy(out, &both, sizeof(both));
    }
}

// The same of two vectors.
UK_INLINE void store_words(bf16* p, const vec<float> (&rows)[2]) {
  alignas(64) static constexpr uint16_t order[] = {
      0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512bh both = _mm512_cvtne2ps_pbh((__m512)rows[1], (__m512)rows[0]);
  const __m512i paired = _mm512_permutexvar_epi16(_mm512_load_si512(order), (__m512i)both);
  __builtin_memcpy(p, &paired, sizeof(paired));
}
#endif

UK_INLINE void store_words(float* p, const vec<float> (&rows)[1]) { store(p, rows[0]); }

}  // namespace
}  // namespace uk::UK_ISA
