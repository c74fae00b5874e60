// The weight gradient of a linear layer on the CPU: what the kernels need around them.

#include "weight_gradient.h"

#include <algorithm>

#include "host.h"
#include "memory.h"
#include "operators.h"

namespace uk {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kTasks = 16;       // to share out; fixed, as partial sums follow the split
constexpr int64_t kMostOutputs = 240;  // in a task: its sums stay in L2
template <class S>  // rows in a part: fewer would not pay for its sums
constexpr int64_t kLeastRows = 2048 / sizeof(S);

template <class S>
const WeightGradientKernels<S>& kernels() {
  return UK_KERNELS(weight_gradient_kernels, S);
}

#ifdef UK_X86
// The sets that multiply bfloat16 have kernels for nothing else.
template <>
const WeightGradientKernels<bf16>& kernels() {
  return instruction_set() == InstructionSet::amx ? amx::weight_gradient_kernels<bf16>()
         : instruction_set() == InstructionSet::avx512_bf16
             ? avx512_bf16::weight_gradient_kernels<bf16>()
             : UK_KERNELS(weight_gradient_kernels, bf16);
}

// Products of float32 pay with AMX only.
template <>
const WeightGradientKernels<float>& kernels() {
  return instruction_set() == InstructionSet::amx ? amx::weight_gradient_kernels<float>()
                                                  : UK_KERNELS(weight_gradient_kernels, float);
}
#endif

template <class S>
std::tuple<Tensor, Tensor> compute(const WeightGradientKernels<S>& kernel, const Tensor& dy,
                                   const Tensor& x) {
  WeightGradientShape s = {};
  s.rows = dy.size(0), s.outputs = dy.size(1), s.inputs = x.size(1);
  s.dy_stride = dy.stride(0), s.x_stride = x.stride(0);
  const int64_t blocks = std::max<int64_t>(divide_up(s.outputs, kMostOutputs), 1);
  s.block = divide_up(divide_up(s.outputs, blocks), kernel.tile) * kernel.tile;
  Tensor dw = allocate(x, {s.outputs, s.inputs}, ScalarType::Float);
  Tensor db = allocate(x, {s.outputs}, ScalarType::Float);
  if (s.rows == 0) {
    torch::stable::zero_(dw);
    torch::stable::zero_(db);
  }
  if (s.rows == 0 || s.outputs == 0) return {dw, db};
  const int64_t across = std::max<int64_t>(divide_up(s.inputs, kernel.columns), 1);
  const int64_t each = across * divide_up(s.outputs, s.block);
  const int64_t most = divide_up(s.rows, kLeastRows<S>);
  const int64_t parts = std::clamp<int64_t>(divide_up(kTasks, each), 1, most);
  s.part = divide_up(s.rows, parts);

  const int64_t size = s.outputs * s.inputs;
  const Tensor sums = allocate(
      x, {parts > 1 ? parts * (size + s.outputs) : 0}, ScalarType::Float);
  float* results[] = {static_cast<float*>(dw.mutable_data_ptr()),
                      static_cast<float*>(db.mutable_data_ptr())};
  float* partial = parts > 1 ? static_cast<float*>(sums.mutable_data_ptr()) : nullptr;
  const S* gradient = static_cast<const S*>(dy.const_data_ptr());
  const S* input = static_cast<const S*>(x.const_data_ptr());
  torch::stable::parallel_for(0, each * parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      float* own = partial ? partial + task / each * (size + s.outputs) : nullptr;
      kernel.run(s, gradient, input, own ? own : results[0], own ? own + size : results[1], task);
    }
  });
  if (!partial) return {dw, db};
  torch::stable::parallel_for(0, size + s.outputs, 4096, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float sum = 0.f;
      for (int64_t p = 0; p < parts; ++p) sum += partial[p * (size + s.outputs) + i];
      (i < size ? results[0][i] : results[1][i - size]) = sum;
    }
  });
  return {dw, db};
}

bool has_nan(const Tensor& dw) {
  const float* p = static_cast<const float*>(dw.const_data_ptr());
  int found = 0;  // no early exit: vectors of them are compared
  for (int64_t i = 0, all = dw.numel(); i < all; ++i) found |= p[i] != p[i];
  return found;
}

// Split products give NaN for infinity times a number: then, without them.
std::tuple<Tensor, Tensor> compute_float(const Tensor& dy, const Tensor& x) {
  const WeightGradientKernels<float>&fastest = kernels<float>(),
                             &exact = UK_KERNELS(weight_gradient_kernels, float);
  const auto result = compute(fastest, dy, x);
  return &fastest != &exact && has_nan(std::get<0>(result)) ? compute(exact, dy, x) : result;
}

}  // namespace

std::tuple<Tensor, Tensor> weight_gradient(const Tensor& dy, const Tensor& x) {
  const ScalarType type = dy.scalar_type();
  check(dy.dim() == 2 && x.dim() == 2 && dy.size(0) == x.size(0) && type == x.scalar_type() &&
            (type == ScalarType::Float || type == ScalarType::BFloat16),
        "dy [N, C_out] and x [N, C_in], both of float32 or bfloat16");
  check((dy.stride(1) == 1 || dy.size(1) <= 1) && (x.stride(1) == 1 || x.size(1) <= 1),
        "rows with adjacent channels");
  return type == ScalarType::Float ? compute_float(dy, x) : compute(kernels<bf16>(), dy, x);
}

}  // namespace uk
