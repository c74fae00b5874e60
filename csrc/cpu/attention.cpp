// Joint and window attention on the CPU: what the kernels need around them.

#include "attention.h"

#include <algorithm>

#include "host.h"
#include "memory.h"
#include "operators.h"

namespace uk {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Of attention inside windows [tall, wide] of a grid [N / columns, columns].
AttentionShape shape_of(const Tensor& qkv, int64_t num_heads, double scale, int64_t columns,
                        int64_t tall, int64_t wide) {
  check(qkv.dim() == 3 && num_heads > 0 && qkv.size(2) % (3 * num_heads) == 0,
        "qkv [B, N, 3C] with num_heads dividing C");
  check(qkv.stride(2) == 1, "qkv with adjacent channels");
  check(columns > 0 && qkv.size(1) % columns == 0 && tall > 0 && wide > 0,
        "columns dividing N, and windows of at least one");
  const int64_t rows = qkv.size(1) / columns;
  AttentionShape s = {};
  s.B = qkv.size(0), s.N = qkv.size(1), s.H = num_heads, s.d = qkv.size(2) / 3 / num_heads;
  s.scale = static_cast<float>(scale);
  s.sample_stride = qkv.stride(0), s.token_stride = qkv.stride(1);
  s.columns = columns, s.tall = tall, s.wide = wide;
  s.down = divide_up(rows, tall), s.across = divide_up(columns, wide);
  s.tokens = std::min(tall, rows) * std::min(wide, columns);
  s.padded = rows % tall != 0 || columns % wide != 0;
  return s;
}

// Cuts the queries so that there are about `wanted` tasks; returns their number.
int64_t set_tasks(AttentionShape& s, int64_t tile, int64_t wanted) {
  const int64_t each = s.B * s.down * s.across * s.H;
  const int64_t chunks = std::max<int64_t>(1, divide_up(wanted, each));
  s.chunk = divide_up(divide_up(s.tokens, chunks), tile) * tile;
  return each * divide_up(s.tokens, s.chunk);
}

template <class S>
const AttentionKernels<S>& kernels() {
  return UK_KERNELS(attention_kernels, S);
}

#ifdef UK_X86
// The sets that multiply bfloat16 have kernels for nothing else.
template <>
const AttentionKernels<bf16>& kernels() {
  return instruction_set() == InstructionSet::amx           ? amx::attention_kernels<bf16>()
         : instruction_set() == InstructionSet::avx512_bf16 ? avx512_bf16::attention_kernels<bf16>()
                                                            : UK_KERNELS(attention_kernels, bf16);
}

// Products of float32 pay with AMX only.
template <>
const AttentionKernels<float>& kernels() {
  return instruction_set() == InstructionSet::amx ? amx::attention_kernels<float>()
                                                  : UK_KERNELS(attention_kernels, float);
}
#endif

template <class S>
void forward(AttentionShape s, const Tensor& qkv, const Tensor* bias, Tensor& out, Tensor& lse) {
  const AttentionKernels<S>& kernel = kernels<S>();
  // Any split gives the same result here, so it may follow the number of threads.
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t tasks = set_tasks(s, kernel.queries, threads == 1 ? 1 : 4 * threads);
  const S* in = static_cast<const S*>(qkv.const_data_ptr());
  const S* pad = bias ? static_cast<const S*>(bias->const_data_ptr()) : nullptr;
  S* y = static_cast<S*>(out.mutable_data_ptr());
  float* sums = static_cast<float*>(lse.mutable_data_ptr());
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    kernel.forward(s, in, pad, y, sums, begin, end);
  });
}

template <class S>
void backward(AttentionShape s, const Tensor& dout, const Tensor& qkv, const Tensor* bias,
              const Tensor& out, const Tensor& lse, Tensor& dqkv, Tensor& dbias) {
  using H = typename host<S>::type;
  const AttentionKernels<S>& kernel = kernels<S>();
  // Partial sums follow this split, so it must not follow the number of threads.
  const int64_t tasks = set_tasks(s, kernel.tile, 10);
  const int64_t width = divide_up(s.d, kernel.padding) * kernel.padding;
  const int64_t chunks = divide_up(s.tokens, s.chunk), C = s.H * s.d;
  // Windows that are not padded leave the bias's row out, so that theirs end one later.
  s.rows = s.padded + divide_up(s.padded + s.tokens, kernel.depth) * kernel.depth;
  const int64_t half = s.rows * width, size = 2 * half;
  const Tensor parts = allocate(lse, {tasks * size});
  const S* in = static_cast<const S*>(qkv.const_data_ptr());
  const S* pad = bias ? static_cast<const S*>(bias->const_data_ptr()) : nullptr;
  const S* dy = static_cast<const S*>(dout.const_data_ptr());
  const S* y = static_cast<const S*>(out.const_data_ptr());
  const float* sums = static_cast<const float*>(lse.const_data_ptr());
  S* dx = static_cast<S*>(dqkv.mutable_data_ptr());
  float* partial = static_cast<float*>(parts.mutable_data_ptr());
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task)
      kernel.backward(s, in, pad, dy, y, sums, dx, partial + task * size, task);
  });
  // Keys' and values' gradients.
  torch::stable::parallel_for(0, s.B * s.H * s.N, 256, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i % s.N, h = i / s.N % s.H, b = i / s.N / s.H;
      const int64_t y = n / s.columns, x = n % s.columns, left = x / s.wide * s.wide;
      const int64_t window = (b * s.down + y / s.tall) * s.across + x / s.wide;
      const int64_t token = y % s.tall * std::min(s.wide, s.columns - left) + x - left;
      const float* dk = partial + (window * s.H + h) * chunks * size + (s.padded + token) * width;
      S* row = dx + (b * s.N + n) * 3 * C + h * s.d;
      kernel.sum(dk, chunks, size, s.scale, s.d, row + C);
      kernel.sum(dk + half, chunks, size, 1.f, s.d, row + 2 * C);
    }
  });
  if (!s.padded) return;
  // The bias's: windows, and their chunks, summed in their order.
  H* db = static_cast<H*>(dbias.mutable_data_ptr());
  const int64_t windows = s.B * s.down * s.across;
  torch::stable::parallel_for(0, 2 * C, s.d, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t h = i % C / s.d;
      const float* part = partial + h * chunks * size + i / C * half + i % s.d;
      double sum = 0;
      for (int64_t window = 0; window < windows; ++window)
        for (int64_t chunk = 0; chunk < chunks; ++chunk)
          sum += part[(window * s.H * chunks + chunk) * size];
      db[C + i] = static_cast<H>(static_cast<float>(i < C ? s.scale * sum : sum));
    }
  });
}

std::tuple<Tensor, Tensor> attend(const AttentionShape& s, const Tensor& qkv, const Tensor* bias) {
  Tensor out = allocate(qkv, {s.B, s.N, s.H * s.d});
  Tensor lse = allocate(qkv, {s.B, s.H, s.N}, ScalarType::Float);
  if (out.numel() == 0) return {out, lse};
  switch (qkv.scalar_type()) {
    case ScalarType::Float:
      forward<float>(s, qkv, bias, out, lse);
      break;
    case ScalarType::BFloat16:
      forward<bf16>(s, qkv, bias, out, lse);
      break;
    case ScalarType::Half:
      forward<f16>(s, qkv, bias, out, lse);
      break;
    default:
      check(false, "qkv of float32, bfloat16 or float16");
  }
  return {out, lse};
}

std::tuple<Tensor, Tensor> attend_backward(const AttentionShape& s, const Tensor& dout,
                                           const Tensor& qkv, const Tensor* bias,
                                           const Tensor& out, const Tensor& lse) {
  for (const Tensor* t : {&dout, &out})
    check(t->is_contiguous() && t->dim() == 3 && t->size(0) == s.B && t->size(1) == s.N &&
              t->size(2) == s.H * s.d && t->scalar_type() == qkv.scalar_type(),
          "dout and out [B, N, C], contiguous, of qkv's dtype");
  check(lse.is_contiguous() && lse.numel() == s.B * s.H * s.N &&
            lse.scalar_type() == ScalarType::Float,
        "lse [B, num_heads, N], contiguous, float32");
  Tensor dqkv = allocate(qkv, qkv.sizes());
  Tensor dbias = torch::stable::new_zeros(qkv, {bias ? qkv.size(2) : 0});
  if (dqkv.numel() == 0) return {dqkv, dbias};
  switch (qkv.scalar_type()) {
    case ScalarType::Float:
      backward<float>(s, dout, qkv, bias, out, lse, dqkv, dbias);
      break;
    case ScalarType::BFloat16:
      backward<bf16>(s, dout, qkv, bias, out, lse, dqkv, dbias);
      break;
    case ScalarType::Half:
      backward<f16>(s, dout, qkv, bias, out, lse, dqkv, dbias);
      break;
    default:
      check(false, "qkv of float32, bfloat16 or float16");
  }
  return {dqkv, dbias};
}

// Of joint attention: the whole row of tokens is one window.
AttentionShape joint_shape(const Tensor& qkv, int64_t num_heads, double scale) {
  check(qkv.dim() == 3, "qkv [B, N, 3C]");
  const int64_t tokens = std::max<int64_t>(qkv.size(1), 1);
  return shape_of(qkv, num_heads, scale, tokens, 1, tokens);
}

AttentionShape window_shape(const Tensor& qkv, const Tensor& bias, int64_t num_heads,
                            int64_t columns, int64_t window_size, double scale) {
  const AttentionShape s = shape_of(qkv, num_heads, scale, columns, window_size, window_size);
  check(bias.is_contiguous() && bias.numel() == qkv.size(2) &&
            bias.scalar_type() == qkv.scalar_type(),
        "bias [3C], contiguous, of qkv's dtype");
  return s;
}

}  // namespace

std::tuple<Tensor, Tensor> joint_attention(const Tensor& qkv, int64_t num_heads, double scale) {
  return attend(joint_shape(qkv, num_heads, scale), qkv, nullptr);
}

Tensor joint_attention_backward(const Tensor& dout, const Tensor& qkv, const Tensor& out,
                                const Tensor& lse, int64_t num_heads, double scale) {
  const AttentionShape s = joint_shape(qkv, num_heads, scale);
  return std::get<0>(attend_backward(s, dout, qkv, nullptr, out, lse));
}

std::tuple<Tensor, Tensor> window_attention(const Tensor& qkv, const Tensor& bias,
                                            int64_t num_heads, int64_t columns,
                                            int64_t window_size, double scale) {
  return attend(window_shape(qkv, bias, num_heads, columns, window_size, scale), qkv, &bias);
}

std::tuple<Tensor, Tensor> window_attention_backward(const Tensor& dout, const Tensor& qkv,
                                                     const Tensor& bias, const Tensor& out,
                                                     const Tensor& lse, int64_t num_heads,
                                                     int64_t columns, int64_t window_size,
                                                     double scale) {
  const AttentionShape s = window_shape(qkv, bias, num_heads, columns, window_size, scale);
  return attend_backward(s, dout, qkv, &bias, out, lse);
}

}  // namespace uk
