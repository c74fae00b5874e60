// LayerNorm over the channels on the CPU: what the kernels need around them.

#include "layer_norm.h"

#include <algorithm>
#include <vector>

#include "host.h"
#include "memory.h"
#include "operators.h"

namespace uk {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kStep = 32;  // rows: any split at multiples of it gives the same result
constexpr int64_t kLeast = 1 << 14;  // numbers that are worth a thread of their own
constexpr int64_t kPart = 128;  // rows whose sums are taken in float32; these are added wider

constexpr const char* kTypes = "x of float32, bfloat16 or float16";

template <class S>
const LayerNormKernels<S>& kernels() {
#ifdef UK_X86
  if (instruction_set() == InstructionSet::amx) return amx::layer_norm_kernels<S>();
  if (instruction_set() == InstructionSet::avx512_bf16) return avx512_bf16::layer_norm_kernels<S>();
#endif
  return UK_KERNELS(layer_norm_kernels, S);
}

// The norm's vector in float32, `value` in every place where there is none.
template <class S>
Tensor wide(const OptionalTensor& vector, const Tensor& x, float value) {
  const int64_t C = x.size(-1);
  if (vector) {
    const ScalarType type = vector->scalar_type();
    check(vector->numel() == C && (type == ScalarType::Float || type == x.scalar_type()),
          "weight and bias [C] of x's dtype or float32");
    if (type == ScalarType::Float) return adjacent(*vector);
  }
  Tensor result = allocate(x, {C}, ScalarType::Float);
  float* out = static_cast<float*>(result.mutable_data_ptr());
  if (vector)
    kernels<S>().widen(static_cast<const S*>(adjacent(*vector).const_data_ptr()), C, out);
  else
    std::fill_n(out, C, value);
  return result;
}

int64_t rows_of(const Tensor& x) {
  int64_t rows = 1;
  for (int64_t axis = 0; axis + 1 < x.dim(); ++axis) rows *= x.size(axis);
  return rows;
}

const float* statistic(const Tensor& t, int64_t rows) {
  check(t.is_contiguous() && t.numel() == rows && t.scalar_type() == ScalarType::Float,
        "mean and rstd, contiguous, a float32 for every row");
  return static_cast<const float*>(t.const_data_ptr());
}

// The sums of all parts [parts, C], `each` numbers apart.
void add_up(const float* partial, int64_t parts, int64_t each, Tensor& result) {
  std::vector<double> sums(result.numel());
  for (int64_t part = 0; part < parts; ++part)
    for (size_t c = 0; c < sums.size(); ++c) sums[c] += partial[part * each + c];
  dispatch_narrow(result.scalar_type(), kTypes, [&](auto storage) {
    using H = typename host<decltype(storage)>::type;
    H* out = static_cast<H*>(result.mutable_data_ptr());
    for (size_t c = 0; c < sums.size(); ++c) out[c] = static_cast<H>(static_cast<float>(sums[c]));
  });
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> layer_norm(const Tensor& x, const OptionalTensor& weight,
                                              const OptionalTensor& bias, double eps) {
  check(x.dim() > 0, "x [..., C]");
  const int64_t rows = rows_of(x), C = x.size(-1);
  Tensor y = allocate(x, x.sizes());
  Tensor mean = allocate(x, {rows}, ScalarType::Float);
  Tensor rstd = allocate(x, {rows}, ScalarType::Float);
  dispatch_narrow(x.scalar_type(), kTypes, [&](auto storage) {
    using S = decltype(storage);
    const Tensor input = adjacent(x), scale = wide<S>(weight, x, 1), shift = wide<S>(bias, x, 0);
    const RowNorm n = {C, static_cast<float>(eps), static_cast<const float*>(scale.const_data_ptr()),
                       static_cast<const float*>(shift.const_data_ptr())};
    const S* in = static_cast<const S*>(input.const_data_ptr());
    S* out = static_cast<S*>(y.mutable_data_ptr());
    float* means = static_cast<float*>(mean.mutable_data_ptr());
    float* inverse = static_cast<float*>(rstd.mutable_data_ptr());
    const int64_t grain = divide_up(kLeast, kStep * std::max<int64_t>(C, 1));
    torch::stable::parallel_for(0, divide_up(rows, kStep), grain, [&](int64_t begin, int64_t end) {
      const int64_t first = begin * kStep, count = std::min(end * kStep, rows) - first;
      kernels<S>().forward(n, in + first * C, count, out + first * C, means + first,
                           inverse + first);
    });
  });
  return {y, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> layer_norm_backward(
    const Tensor& dy, const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
    const Tensor& mean, const Tensor& rstd, bool want_input, bool want_weight, bool want_output) {
  check(x.dim() > 0, "x [..., C]");
  check(dy.dim() == x.dim() && dy.scalar_type() == x.scalar_type() &&
            std::equal(dy.sizes().begin(), dy.sizes().end(), x.sizes().begin()),
        "dy of x's shape and dtype");
  const int64_t rows = rows_of(x), C = x.size(-1), parts = divide_up(rows, kPart);
  const float *means = statistic(mean, rows), *inverse = statistic(rstd, rows);
  const ScalarType parameter = (weight ? *weight : x).scalar_type();
  Tensor dx = want_input ? allocate(x, x.sizes()) : allocate(x, {0});
  Tensor y = want_output ? allocate(x, x.sizes()) : allocate(x, {0});
  Tensor dweight = allocate(x, {want_weight ? C : 0}, parameter);
  Tensor dbias = allocate(x, {want_weight ? C : 0}, parameter);
  const Tensor sums = allocate(x, {want_weight ? parts : 0, 2, C}, ScalarType::Float);
  float* partial = want_weight ? static_cast<float*>(sums.mutable_data_ptr()) : nullptr;
  dispatch_narrow(x.scalar_type(), kTypes, [&](auto storage) {
    using S = decltype(storage);
    const Tensor upstream = adjacent(dy), input = adjacent(x);
    const Tensor scale = wide<S>(weight, x, 1), shift = wide<S>(bias, x, 0);
    const RowNorm n = {C, 0, static_cast<const float*>(scale.const_data_ptr()),
                       static_cast<const float*>(shift.const_data_ptr())};
    const S* in = static_cast<const S*>(input.const_data_ptr());
    const S* gradient = static_cast<const S*>(upstream.const_data_ptr());
    S* out = want_input ? static_cast<S*>(dx.mutable_data_ptr()) : nullptr;
    S* again = want_output ? static_cast<S*>(y.mutable_data_ptr()) : nullptr;
    torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        const int64_t first = part * kPart, at = first * C;
        kernels<S>().backward(n, gradient + at, in + at, means + first, inverse + first,
                              std::min(kPart, rows - first), out ? out + at : nullptr,
                              partial ? partial + part * 2 * C : nullptr,
                              again ? again + at : nullptr);
      }
    });
  });
  if (want_weight) {
    add_up(partial, parts, 2 * C, dweight);
    add_up(partial + C, parts, 2 * C, dbias);
  }
  return {dx, dweight, dbias, y};
}

}  // namespace uk
