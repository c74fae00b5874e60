// The weight gradient of a linear layer.  Nothing is transposed: a row of x is a vector of every sum
// it goes into, and a row of dy holds the factors.

#include "weight_gradient.h"
#include "product.h"

namespace uk::UK_ISA {
namespace {

constexpr int64_t L = lanes_of<float>;
constexpr int64_t kColumns = 8 * L;  // two tiles of `product`
constexpr int64_t kRows = 64;       // of x packed at a time: stays in L1 while all outputs use it

int64_t whole(int64_t count) { return (count + L - 1) / L * L; }

// Rows, zeros behind their end, `width` apart: those of a wide matrix share few sets of the caches.
void pack(const float* in, int64_t stride, int64_t rows, int64_t count, int64_t width, float* out) {
  for (int64_t i = 0; i < rows; ++i, in += stride, out += width) {
    int64_t c = 0;
    for (; c + L <= count; c += L) store(out + c, load(in + c));
    if (c < count) store(out + c, load_some<float>(in + c, count - c, 1));
  }
}

// sums [width] += the rows.
void add_rows(const float* rows, int64_t stride, int64_t count, int64_t width, float* sums) {
  for (int64_t c = 0; c < width; c += L) {
    vec<float> sum{};
    for (int64_t i = 0; i < count; ++i) sum += load(rows + i * stride + c);
    store(sums + c, sum + load(sums + c));
  }
}

void run(const WeightGradientShape& s, const float* dy, const float* x, float* dw, float* db,
         int64_t task) {
  const int64_t across = max((s.inputs + kColumns - 1) / kColumns, 1);
  const int64_t down = (s.outputs + s.block - 1) / s.block;
  const int64_t first = task % across * kColumns, top = task / across % down * s.block;
  const int64_t columns = min(kColumns, s.inputs - first), outputs = min(s.block, s.outputs - top);
  const int64_t width = whole(columns), height = whole(outputs);
  const int64_t apart = height | L;  // an odd number of vectors: no two rows in the same sets
  const int64_t begin = task / across / down * s.part, end = min(begin + s.part, s.rows);
  float* right = scratch<float>(kRows * (width + apart) + outputs * width + height);
  float *left = right + kRows * width, *sums = left + kRows * apart, *bias = sums + outputs * width;
  for (int64_t o = 0; o < height; ++o) bias[o] = 0.f;
  for (int64_t m = begin; m < end; m += kRows) {
    const int64_t rows = min(kRows, end - m);
    pack(x + m * s.x_stride + first, s.x_stride, rows, columns, width, right);
    pack(dy + m * s.dy_stride + top, s.dy_stride, rows, outputs, apart, left);
    product(outputs, width, left, 1, apart, right, width, rows, sums, width, m > begin);
    if (first == 0) add_rows(left, apart, rows, height, bias);
  }
  for (int64_t o = 0; o < outputs; ++o) {
    float* row = dw + (top + o) * s.inputs + first;
    int64_t c = 0;
    for (; c + L <= columns; c += L) store(row + c, load(sums + o * width + c));
    if (c < columns) store_some<float>(row + c, load(sums + o * width + c), columns - c);
  }
  if (first == 0)
    for (int64_t o = 0; o < outputs; ++o) db[top + o] = bias[o];
}

}  // namespace

const WeightGradientKernels& weight_gradient_kernels() {
  static const WeightGradientKernels kernels = {kColumns, kSums / 4, run};
  return kernels;
}

}  // namespace uk::UK_ISA
