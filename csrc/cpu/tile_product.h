// The product of bfloat16 matrices on AMX's tiles, 16 rows of 16 words.  Included by product.h.
#pragma once

#include "vector.h"

namespace uk::UK_ISA {
namespace {

constexpr int64_t kEdge = 16;  // rows of a tile, and its words

template <>
constexpr int64_t kDepth<bf16> = kEdge * kWord<bf16>;

// Tells the compiler that what was written is going to be read: the intrinsics do not.
UK_INLINE void remember(const void* p) { asm volatile("" : : "r"(p) : "memory"); }

// Lends the tile registers to a task.  They go back clean, so that switching threads stays cheap
// and nobody else meets this shape.
class TileRegisters {
 public:
  TileRegisters() {
    struct {
      uint8_t palette = 1, first_row = 0, reserved[14] = {};
      uint16_t bytes[16] = {};
      uint8_t rows[16] = {};
    } shape;
    for (int tile = 0; tile < 8; ++tile) shape.bytes[tile] = 4 * kEdge, shape.rows[tile] = kEdge;
    remember(&shape);
    _tile_loadconfig(&shape);
  }
  ~TileRegisters() { _tile_release(); }
  TileRegisters(const TileRegisters&) = delete;
};

// What sums begin with: numbers `apart` from one row to the next, 0 for the same in all; or nothing.
struct Start {
  const float* sums;
  int64_t apart;
};

// Fills ROWS x COLUMNS tiles, the sums of the products here: tiles 0 to 3, row by row.
template <int ROWS, int COLUMNS>
UK_INLINE void start_tiles(const Start& start) {
  if (start.sums) {
    const int64_t line = start.apart * sizeof(float);
    const float* lower = start.sums + kEdge * start.apart;
    _tile_loadd(0, start.sums, line);
    if constexpr (COLUMNS == 2) _tile_loadd(1, start.sums + kEdge, line);
    if constexpr (ROWS == 2) _tile_loadd(2, lower, line);
    if constexpr (ROWS * COLUMNS == 4) _tile_loadd(3, lower + kEdge, line);
  } else {
    _tile_zero(0);
    if constexpr (COLUMNS == 2) _tile_zero(1);
    if constexpr (ROWS == 2) _tile_zero(2);
    if constexpr (ROWS * COLUMNS == 4) _tile_zero(3);
  }
}

// `product` for ROWS x COLUMNS tiles.  While the tiles are busy with numbers i.. of the reduction,
// `meanwhile.at(i)` makes use of the vector registers.
template <int ROWS, int COLUMNS, class Meanwhile = Nothing>
UK_INLINE void multiply_tiles(const bf16* a, int64_t row, const bf16* b, int64_t ldb, int64_t n,
                              float* out, int64_t ldo, const Start& start,
                              Meanwhile meanwhile = {}) {
  const int64_t line = ldo * sizeof(float);
  float* lower = out + kEdge * ldo;
  start_tiles<ROWS, COLUMNS>(start);
  for (int64_t i = 0; i < n; i += kDepth<bf16>, a += kDepth<bf16>, b += kEdge * ldb) {
    _tile_loadd(4, a, row * sizeof(bf16));
    _tile_loadd(6, b, ldb * sizeof(bf16));
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (COLUMNS == 2) {
      _tile_loadd(7, b + kDepth<bf16>, ldb * sizeof(bf16));
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (ROWS == 2) {
      _tile_loadd(5, a + kEdge * row, row * sizeof(bf16));
      _tile_dpbf16ps(2, 5, 6);
    }
    if constexpr (ROWS * COLUMNS == 4) _tile_dpbf16ps(3, 5, 7);
    meanwhile.at(i);
  }
  _tile_stored(0, out, line);
  if constexpr (COLUMNS == 2) _tile_stored(1, out + kEdge, line);
  if constexpr (ROWS == 2) _tile_stored(2, lower, line);
  if constexpr (ROWS * COLUMNS == 4) _tile_stored(3, lower + kEdge, line);
}

template <int ROWS, int COLUMNS>
void product_tiles(const bf16* a, int64_t row, const bf16* b, int64_t ldb, int64_t n, float* out,
                   int64_t ldo, bool accumulate) {
  multiply_tiles<ROWS, COLUMNS>(a, row, b, ldb, n, out, ldo, {accumulate ? out : nullptr, ldo});
}

// Rows are rounded up to whole tiles; words of `a` lie side by side.
[[maybe_unused]] void product(int64_t rows, int64_t width, const bf16* a, int64_t row, int64_t,
                              const bf16* b, int64_t ldb, int64_t n, float* out, int64_t ldo,
                              bool accumulate) {
  remember(a);
  for (; rows > 0; rows -= 2 * kEdge, a += 2 * kEdge * row, out += 2 * kEdge * ldo) {
    const bool tall = rows > kEdge;
    for (int64_t c = 0; c < width; c += 2 * kEdge) {
      const bool wide = width - c > kEdge;
      const auto run = tall ? (wide ? product_tiles<2, 2> : product_tiles<2, 1>)
                            : (wide ? product_tiles<1, 2> : product_tiles<1, 1>);
      run(a, row, b + c * kWord<bf16>, ldb, n, out + c, ldo, accumulate);
    }
  }
}

}  // namespace
}  // namespace uk::UK_ISA
