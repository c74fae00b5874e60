// The gradients of a feed-forward network of float32 on the CPU: what the kernels need around them.

#include "feed_forward_backward.h"

#include <algorithm>

#include "host.h"
#include "memory.h"
#include "operators.h"

namespace uk {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kSide = 32;
constexpr int64_t kParts = 3;          // of bfloat16 in a number
constexpr int64_t kTasks = 16;         // to share out; fixed, as partial sums follow the split
constexpr int64_t kGroup = 1 << 15;    // of a layer's weights in a task: they stay in L2
constexpr int64_t kRows = 1 << 17;     // hidden numbers a task of dx takes: they stay there, too
constexpr int64_t kLeastRows = 128;    // in a task: fewer would not pay for its sums
constexpr int64_t kChunk = 1 << 23;    // bytes of operands that exist at once

int64_t whole(int64_t count) { return divide_up(count, kSide) * kSide; }

const FeedForwardKernels& kernels() {
#ifdef UK_X86
  if (multiplies_float32()) return amx::feed_forward_kernels();
#endif
  throw std::runtime_error("uniformer_kernels: expected a processor with AMX");
}

template <class T>
T* data(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

// Memory for so many numbers of three parts each.
Tensor numbers(const Tensor& like, int64_t count) {
  return allocate(like, {count * kParts}, ScalarType::BFloat16);
}

// A weight [outputs, inputs] as rows are multiplied by it.
Tensor packed(const Tensor& weight, int64_t outputs, int64_t inputs, int64_t output_stride,
              int64_t input_stride) {
  const int64_t panels = divide_up(outputs, kSide), size = kSide * whole(inputs);
  Tensor out = numbers(weight, panels * size);
  const float* in = static_cast<const float*>(weight.const_data_ptr());
  bf16* to = data<bf16>(out);
  torch::stable::parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      kernels().pack(in, output_stride, input_stride, inputs, outputs, i, to + i * size * kParts);
  });
  return out;
}

// How rows and hidden channels are shared out, whatever the number of threads; and the parts.
int64_t set_tasks(FeedForwardShape& s) {
  const int64_t hidden = whole(s.hidden), across = whole(s.inputs) + whole(s.outputs);
  const int64_t groups = divide_up(hidden * across / 2, kGroup);
  s.group = whole(divide_up(hidden, groups));
  const int64_t row = kParts * sizeof(bf16) * (hidden + 2 * across);
  const int64_t chunks = divide_up(s.rows, std::max(kChunk / row, kLeastRows));
  const int64_t chunk = whole(divide_up(s.rows, chunks));
  const int64_t most = std::max<int64_t>(chunk / kLeastRows, 1);
  const int64_t wanted = divide_up(kTasks, divide_up(hidden, s.group));
  s.part = whole(divide_up(chunk, std::min(wanted, most)));
  s.chunk = chunk;
  return divide_up(s.chunk, s.part);
}

bool is_matrix(const Tensor& t) { return t.dim() == 2 && t.scalar_type() == ScalarType::Float; }

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> split_feed_forward_backward(
    const Tensor& dy, const Tensor& x, const Tensor& fc1_weight,
    const std::optional<Tensor>& fc1_bias, const Tensor& fc2_weight, bool quick,
    bool want_input) {
  check(is_matrix(x) && is_matrix(dy) && x.size(0) == dy.size(0) && x.stride(1) == 1 &&
            dy.stride(1) == 1 && x.numel() > 0 && dy.numel() > 0,
        "x [N, C] and dy [N, C_out] of float32, with adjacent channels, not empty");
  check(is_matrix(fc1_weight) && is_matrix(fc2_weight) && fc1_weight.is_contiguous() &&
            fc2_weight.is_contiguous() && fc1_weight.numel() > 0 &&
            fc1_weight.size(1) == x.size(1) && fc2_weight.size(0) == dy.size(1) &&
            fc1_weight.size(0) == fc2_weight.size(1),
        "fc1_weight [hidden, C] and fc2_weight [C_out, hidden] of float32, contiguous");
  check(!fc1_bias || (fc1_bias->dim() == 1 && fc1_bias->size(0) == fc1_weight.size(0) &&
                      fc1_bias->is_contiguous() && fc1_bias->scalar_type() == ScalarType::Float),
        "fc1_bias [hidden] of float32, contiguous");
  const FeedForwardKernels& kernel = kernels();
  FeedForwardShape s = {};
  s.rows = x.size(0), s.inputs = x.size(1), s.outputs = dy.size(1);
  s.hidden = fc1_weight.size(0), s.x_stride = x.stride(0), s.dy_stride = dy.stride(0);
  s.quick = quick;
  const int64_t parts = set_tasks(s), groups = divide_up(s.hidden, s.group);
  const int64_t n = whole(s.inputs), m = whole(s.outputs), hidden = whole(s.hidden);

  const Tensor fc1 = packed(fc1_weight, s.hidden, s.inputs, s.inputs, 1);
  const Tensor fc2_turned = packed(fc2_weight, s.hidden, s.outputs, 1, s.hidden);
  const Tensor fc1_turned =
      want_input ? packed(fc1_weight, s.inputs, s.hidden, 1, s.inputs) : fc1;
  const Tensor bias = torch::stable::new_zeros(x, {hidden}, ScalarType::Float);
  if (fc1_bias)
    std::copy_n(static_cast<const float*>(fc1_bias->const_data_ptr()), s.hidden,
                data<float>(bias));
  const Tensor rows = numbers(x, 2 * s.chunk * (n + m));
  const Tensor dz = numbers(x, want_input ? s.chunk * hidden : 0);
  FeedForwardOperands o = {};
  o.x = static_cast<const float*>(x.const_data_ptr());
  o.dy = static_cast<const float*>(dy.const_data_ptr());
  o.fc1 = data<bf16>(fc1), o.fc1_turned = data<bf16>(fc1_turned);
  o.fc2_turned = data<bf16>(fc2_turned), o.bias = data<float>(bias);
  o.x_rows = data<bf16>(rows), o.x_turned = o.x_rows + kParts * s.chunk * n;
  o.dy_rows = o.x_turned + kParts * s.chunk * n, o.dy_turned = o.dy_rows + kParts * s.chunk * m;
  o.dz_rows = want_input ? data<bf16>(dz) : nullptr;
  o.size = s.group * (n + m + 1) + m;
  const Tensor sums = allocate(x, {parts * groups * o.size}, ScalarType::Float);
  o.sums = data<float>(sums);

  Tensor dx = allocate(x, {want_input ? s.rows : 0, s.inputs});
  Tensor dfc1 = allocate(x, {s.hidden, s.inputs});
  Tensor db1 = allocate(x, {s.hidden});
  Tensor dfc2 = allocate(x, {s.outputs, s.hidden});
  Tensor db2 = allocate(x, {s.outputs});
  // Any split of the rows gives the same dx.
  const int64_t threads = torch::stable::get_num_threads();
  for (int64_t first = 0; first < s.rows; first += s.chunk) {
    const int64_t count = std::min(s.chunk, s.rows - first);
    torch::stable::parallel_for(0, divide_up(count, kSide), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) kernel.split(s, o, first, i * kSide);
    });
    // Each thread gets groups, as the last chunk may leave parts without rows.
    torch::stable::parallel_for(0, parts * groups, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        kernel.add(s, o, first, i % parts * groups + i / parts);
    });
    if (!want_input) continue;
    const int64_t blocks = divide_up(count, kSide), most = std::max<int64_t>(kRows / hidden, 1);
    const int64_t tasks = divide_up(divide_up(count, most), threads) * threads;
    torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        kernel.input(s, o, first, i * blocks / tasks * kSide, (i + 1) * blocks / tasks * kSide,
                     data<float>(dx));
    });
  }
  float* results[] = {data<float>(dfc1), data<float>(db1), data<float>(dfc2), data<float>(db2)};
  torch::stable::parallel_for(0, hidden / kSide, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) kernel.finish(s, o, parts, i * kSide, results);
  });
  return {dx, dfc1, db1, dfc2, db2};
}

}  // namespace uk
