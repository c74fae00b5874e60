// Joint attention on the CPU: what the kernels need around them.

#include "attention.h"

#include <algorithm>

#include "host.h"
#include "operators.h"

namespace uk {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

AttentionShape shape_of(const Tensor& qkv, int64_t num_heads, double scale) {
  check(qkv.dim() == 3 && num_heads > 0 && qkv.size(2) % (3 * num_heads) == 0,
        "qkv [B, N, 3C] with num_heads dividing C");
  check(qkv.stride(2) == 1, "qkv with adjacent channels");
  const int64_t d = qkv.size(2) / 3 / num_heads;
  return {qkv.size(0),   qkv.size(1),   num_heads,     d, static_cast<float>(scale),
          qkv.stride(0), qkv.stride(1), qkv.size(1)};
}

// Cuts the queries so that there are about `wanted` tasks; returns their number.
int64_t set_tasks(AttentionShape& s, int64_t tile, int64_t wanted) {
  const int64_t chunks = std::max<int64_t>(1, divide_up(wanted, s.B * s.H));
  s.chunk = divide_up(divide_up(s.N, chunks), tile) * tile;
  return s.B * s.H * divide_up(s.N, s.chunk);
}

template <class S>
void forward(AttentionShape s, const Tensor& qkv, Tensor& out, Tensor& lse) {
  const AttentionKernels<S>& kernel = UK_KERNELS(attention_kernels, S);
  // Any split gives the same result here, so it may follow the number of threads.
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t tasks = set_tasks(s, kernel.tile, threads == 1 ? 1 : 4 * threads);
  const S* in = static_cast<const S*>(qkv.const_data_ptr());
  S* y = static_cast<S*>(out.mutable_data_ptr());
  float* sums = static_cast<float*>(lse.mutable_data_ptr());
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) kernel.forward(s, in, y, sums, task);
  });
}

template <class S>
void backward(AttentionShape s, const Tensor& dout, const Tensor& qkv, const Tensor& out,
              const Tensor& lse, Tensor& dqkv) {
  using H = typename host<S>::type;
  const AttentionKernels<S>& kernel = UK_KERNELS(attention_kernels, S);
  // Partial sums follow this split, so it must not follow the number of threads.
  const int64_t tasks = set_tasks(s, kernel.tile, 10);
  const int64_t width = divide_up(s.d, kernel.padding) * kernel.padding;
  const int64_t size = 2 * s.N * width, chunks = divide_up(s.N, s.chunk), C = s.H * s.d;
  const Tensor parts = torch::stable::new_empty(lse, {tasks * size});
  const S* in = static_cast<const S*>(qkv.const_data_ptr());
  const S* dy = static_cast<const S*>(dout.const_data_ptr());
  const S* y = static_cast<const S*>(out.const_data_ptr());
  const float* sums = static_cast<const float*>(lse.const_data_ptr());
  S* dx = static_cast<S*>(dqkv.mutable_data_ptr());
  float* partial = static_cast<float*>(parts.mutable_data_ptr());
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task)
      kernel.backward(s, in, dy, y, sums, dx, partial + task * size, task);
  });
  // Keys' and values' gradients: the chunks of queries summed in their order.
  H* result = static_cast<H*>(dqkv.mutable_data_ptr());
  torch::stable::parallel_for(0, s.B * s.H * s.N, 256, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i % s.N, h = i / s.N % s.H, b = i / s.N / s.H;
      for (int64_t third = 1; third <= 2; ++third) {
        const float* part =
            partial + (b * s.H + h) * chunks * size + ((third - 1) * s.N + n) * width;
        H* row = result + (b * s.N + n) * 3 * C + third * C + h * s.d;
        const float factor = third == 1 ? s.scale : 1.f;
        for (int64_t c = 0; c < s.d; ++c) {
          float sum = 0.f;
          for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += part[chunk * size + c];
          row[c] = static_cast<H>(factor * sum);
        }
      }
    }
  });
}

}  // namespace

std::tuple<Tensor, Tensor> joint_attention(const Tensor& qkv, int64_t num_heads, double scale) {
  const AttentionShape s = shape_of(qkv, num_heads, scale);
  Tensor out = torch::stable::new_empty(qkv, {s.B, s.N, s.H * s.d});
  Tensor lse = torch::stable::new_empty(qkv, {s.B, s.H, s.N}, ScalarType::Float);
  if (out.numel() == 0) return {out, lse};
  switch (qkv.scalar_type()) {
    case ScalarType::Float:
      forward<float>(s, qkv, out, lse);
      break;
    case ScalarType::BFloat16:
      forward<bf16>(s, qkv, out, lse);
      break;
    case ScalarType::Half:
      forward<f16>(s, qkv, out, lse);
      break;
    default:
      check(false, "qkv of float32, bfloat16 or float16");
  }
  return {out, lse};
}

Tensor joint_attention_backward(const Tensor& dout, const Tensor& qkv, const Tensor& out,
                                const Tensor& lse, int64_t num_heads, double scale) {
  const AttentionShape s = shape_of(qkv, num_heads, scale);
  for (const Tensor* t : {&dout, &out})
    check(t->is_contiguous() && t->dim() == 3 && t->size(0) == s.B && t->size(1) == s.N &&
              t->size(2) == s.H * s.d && t->scalar_type() == qkv.scalar_type(),
          "dout and out [B, N, C], contiguous, of qkv's dtype");
  check(lse.is_contiguous() && lse.numel() == s.B * s.H * s.N &&
            lse.scalar_type() == ScalarType::Float,
        "lse [B, num_heads, N], contiguous, float32");
  Tensor dqkv = torch::stable::new_empty(qkv, qkv.sizes());
  if (dqkv.numel() == 0) return dqkv;
  switch (qkv.scalar_type()) {
    case ScalarType::Float:
      backward<float>(s, dout, qkv, out, lse, dqkv);
      break;
    case ScalarType::BFloat16:
      backward<bf16>(s, dout, qkv, out, lse, dqkv);
      break;
    case ScalarType::Half:
      backward<f16>(s, dout, qkv, out, lse, dqkv);
      break;
    default:
      check(false, "qkv of float32, bfloat16 or float16");
  }
  return dqkv;
}

}  // namespace uk
