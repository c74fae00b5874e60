// The weight gradient of a linear layer on the CPU: what the kernels need around them.

#include "weight_gradient.h"

#include <algorithm>

#include "host.h"
#include "operators.h"

namespace uk {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kTasks = 16;       // to share out; fixed, as partial sums follow the split
constexpr int64_t kMostOutputs = 240;  // in a task: its sums stay in L2
constexpr int64_t kLeastRows = 512;  // in a part: fewer would not pay for its sums

const WeightGradientKernels& kernels() {
#ifdef UK_X86
  if (instruction_set() == InstructionSet::portable) return portable::weight_gradient_kernels();
  if (instruction_set() == InstructionSet::avx2) return avx2::weight_gradient_kernels();
  return avx512::weight_gradient_kernels();
#else
  return portable::weight_gradient_kernels();
#endif
}

}  // namespace

std::tuple<Tensor, Tensor> weight_gradient(const Tensor& dy, const Tensor& x) {
  check(dy.dim() == 2 && x.dim() == 2 && dy.size(0) == x.size(0) &&
            dy.scalar_type() == ScalarType::Float && x.scalar_type() == ScalarType::Float,
        "dy [N, C_out] and x [N, C_in] of float32");
  check((dy.stride(1) == 1 || dy.size(1) <= 1) && (x.stride(1) == 1 || x.size(1) <= 1),
        "rows with adjacent channels");
  const WeightGradientKernels& kernel = kernels();
  WeightGradientShape s = {};
  s.rows = dy.size(0), s.outputs = dy.size(1), s.inputs = x.size(1);
  s.dy_stride = dy.stride(0), s.x_stride = x.stride(0);
  const int64_t blocks = std::max<int64_t>(divide_up(s.outputs, kMostOutputs), 1);
  s.block = divide_up(divide_up(s.outputs, blocks), kernel.tile) * kernel.tile;
  Tensor dw = torch::stable::new_empty(x, {s.outputs, s.inputs});
  Tensor db = torch::stable::new_empty(x, {s.outputs});
  if (s.rows == 0) {
    torch::stable::zero_(dw);
    torch::stable::zero_(db);
  }
  if (s.rows == 0 || s.outputs == 0) return {dw, db};
  const int64_t across = std::max<int64_t>(divide_up(s.inputs, kernel.columns), 1);
  const int64_t each = across * divide_up(s.outputs, s.block);
  const int64_t most = divide_up(s.rows, kLeastRows);
  const int64_t parts = std::clamp<int64_t>(divide_up(kTasks, each), 1, most);
  s.part = divide_up(s.rows, parts);

  const int64_t size = s.outputs * s.inputs;
  const Tensor sums = torch::stable::new_empty(x, {parts > 1 ? parts * (size + s.outputs) : 0});
  float* results[] = {static_cast<float*>(dw.mutable_data_ptr()),
                      static_cast<float*>(db.mutable_data_ptr())};
  float* partial = parts > 1 ? static_cast<float*>(sums.mutable_data_ptr()) : nullptr;
  const float* gradient = static_cast<const float*>(dy.const_data_ptr());
  const float* input = static_cast<const float*>(x.const_data_ptr());
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

}  // namespace uk
