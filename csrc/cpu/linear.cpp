// Linear layers by products of bfloat16 on the CPU: what the kernels need around them.

#include "linear.h"

#include <algorithm>
#include <cstring>

#include "host.h"
#include "memory.h"
#include "operators.h"

namespace uk {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kPacked = 3 << 19;  // bytes of rows that stay in L2 while weights pass by
constexpr int64_t kMostRows = 256, kRowStep = 16;
constexpr int64_t kPart = 1 << 14;  // numbers worth a task of their own

template <class X, class Y>
const LinearKernels<X, Y>& kernels() {
#ifdef UK_X86
  switch (instruction_set()) {
    case InstructionSet::amx: return amx::linear_kernels<X, Y>();
    case InstructionSet::avx512_bf16: return avx512_bf16::linear_kernels<X, Y>();
    case InstructionSet::avx512: return avx512::linear_kernels<X, Y>();
    case InstructionSet::avx2: return avx2::linear_kernels<X, Y>();
    case InstructionSet::portable: break;
  }
#endif
  return portable::linear_kernels<X, Y>();
}

// Products of float32 pay with AMX only.
template <>
const LinearKernels<float, float>& kernels() {
#ifdef UK_X86
  if (multiplies_float32()) return amx::linear_kernels<float, float>();
#endif
  throw std::runtime_error("uniformer_kernels: expected bfloat16, or a processor with AMX");
}

bool is_matrix(const Tensor& t, ScalarType type) {
  return t.dim() == 2 && t.scalar_type() == type;
}

bool has_rows(const Tensor& t) { return t.stride(1) == 1 || t.size(1) <= 1; }

template <class X>
constexpr ScalarType kType = sizeof(X) == 2 ? ScalarType::BFloat16 : ScalarType::Float;

// What a packed layer is of, and for which kernels; in front of it.
struct Tag {
  int64_t set, bytes, inputs, outputs;
};
constexpr int64_t kFront = 64;  // bytes: the weight stays aligned
static_assert(sizeof(Tag) <= kFront);

// A packed layer and the memory it lies in: `packed`, where that is of this layer for this
// processor, or its own.
struct Layer : PackedLayer {
  template <class X, class Y>
  Layer(const LinearKernels<X, Y>& kernel, const Tensor& weight, const std::optional<Tensor>& bias,
        const std::optional<Tensor>& packed = {}) {
    outputs = weight.size(0), inputs = weight.size(1);
    const int64_t row = outputs > 1 ? weight.stride(0) : 1;
    const int64_t column = inputs > 1 ? weight.stride(1) : 1;
    check(is_matrix(weight, kType<X>) && (row == 1 || column == 1) && inputs > 0,
          "weight [C_out, C_in] of x's dtype, adjacent along one axis, with inputs");
    check(!bias || (bias->dim() == 1 && bias->size(0) == outputs && bias->is_contiguous() &&
                    bias->scalar_type() == kType<X>),
          "bias [C_out] of x's dtype, contiguous");
    const int64_t panels = divide_up(outputs, kernel.panel), padded = panels * kernel.panel;
    const int64_t deep = divide_up(inputs, kernel.depth) * kernel.depth;
    const int64_t bytes = deep * kernel.panel * kernel.bytes;
    const int64_t behind = kFront + panels * bytes, size = behind + padded * sizeof(float);
    const Tag tag = {static_cast<int64_t>(instruction_set()), kernel.bytes, inputs, outputs};
    if (packed && packed->scalar_type() == ScalarType::Byte && packed->is_contiguous() &&
        packed->numel() == size && !std::memcmp(packed->const_data_ptr(), &tag, sizeof(tag))) {
      memory = *packed;
    } else {
      memory = allocate(weight, {size}, ScalarType::Byte);
      char* out = static_cast<char*>(memory.mutable_data_ptr());
      std::memcpy(out, &tag, sizeof(tag));
      std::memset(out + sizeof(tag), 0, kFront - sizeof(tag));
      const X* in = static_cast<const X*>(weight.const_data_ptr());
      torch::stable::parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          kernel.pack(in, row, column, inputs, outputs, i, out + kFront + i * bytes);
      });
      float* numbers = reinterpret_cast<float*>(out + behind);
      std::fill_n(numbers, padded, 0.f);
      if (bias)
        std::copy_n(static_cast<const typename host<X>::type*>(bias->const_data_ptr()), outputs,
                    numbers);
    }
    const char* data = static_cast<const char*>(memory.const_data_ptr());
    this->weight = data + kFront, this->bias = reinterpret_cast<const float*>(data + behind);
  }

  Tensor memory;
};

// Calls run(first row, rows) for tasks of `most` rows or fewer, which have as many as each other but
// for a step.  Any split gives the same result, so it may follow the number of threads.
template <class Run>
void by_rows(int64_t N, int64_t most, Run run) {
  most = std::clamp<int64_t>(most / kRowStep * kRowStep, kRowStep, kMostRows);
  const int64_t threads = torch::stable::get_num_threads(), steps = divide_up(N, kRowStep);
  const int64_t tasks = std::min(divide_up(divide_up(N, most), threads) * threads, steps);
  const auto start = [&](int64_t task) { return std::min(task * steps / tasks * kRowStep, N); };
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task)
      run(start(task), start(task + 1) - start(task));
  });
}

// Bytes of a row that a feed-forward network packs, and of its sums where they are gathered.
template <class X, class Y>
int64_t row_bytes(const LinearKernels<X, Y>& kernel, const PackedLayer& first,
                  const PackedLayer& second) {
  const int64_t hidden = std::min(first.outputs, kernel.hidden);
  const int64_t gathered = hidden < first.outputs ? second.outputs : 0;
  return kernel.bytes * (first.inputs + hidden) + static_cast<int64_t>(sizeof(float)) * gathered;
}

// y, and for each of its rows, which takes so many `bytes`, a task: run(shape, x, residual, y).
template <class X, class Y, class Run>
Tensor compute(const LinearKernels<X, Y>&, LinearShape s, const Tensor& x, int64_t outputs,
               const std::optional<Tensor>& residual, int64_t bytes, Run run) {
  check(is_matrix(x, kType<X>) && has_rows(x), "x [N, C] with adjacent channels");
  check(!residual || (is_matrix(*residual, kType<Y>) && residual->size(0) == x.size(0) &&
                      residual->size(1) == outputs && has_rows(*residual)),
        "residual [N, C_out] of x's dtype or float32, with adjacent channels");
  s.rows = x.size(0), s.x_stride = x.stride(0);
  s.residual_stride = residual ? residual->stride(0) : 0;
  Tensor y = allocate(x, {s.rows, outputs}, kType<Y>);
  if (y.numel() == 0) return y;
  const X* in = static_cast<const X*>(x.const_data_ptr());
  const Y* add = residual ? static_cast<const Y*>(residual->const_data_ptr()) : nullptr;
  Y* out = static_cast<Y*>(y.mutable_data_ptr());
  const int64_t N = s.rows;
  by_rows(N, kPacked / std::max<int64_t>(bytes, 1), [&](int64_t first, int64_t rows) {
    LinearShape part = s;
    part.rows = rows;
    run(part, in + first * s.x_stride, add ? add + first * s.residual_stride : nullptr,
        out + first * outputs);
  });
  return y;
}

// Calls run(kernels) with those for x and for the result, which has the residual's dtype.
template <class Run>
Tensor with_kernels(const Tensor& x, const std::optional<Tensor>& residual, Run run) {
  if (x.scalar_type() == ScalarType::Float) return run(kernels<float, float>());
  check(x.scalar_type() == ScalarType::BFloat16, "x of bfloat16 or float32");
  return residual && residual->scalar_type() == ScalarType::Float ? run(kernels<bf16, float>())
                                                                  : run(kernels<bf16, bf16>());
}

}  // namespace

bool multiplies_float32() {
#ifdef UK_X86
  return instruction_set() == InstructionSet::amx;
#else
  return false;
#endif
}

Tensor bfloat16_pack(const Tensor& weight, const std::optional<Tensor>& bias) {
  return with_kernels(weight, {}, [&](const auto& kernel) {
    check(weight.dim() == 2, "weight [C_out, C_in]");
    return Layer(kernel, weight, bias).memory;
  });
}

Tensor bfloat16_linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                       const std::string& activation, const std::optional<Tensor>& residual,
                       const std::optional<Tensor>& packed) {
  check(weight.dim() == 2 && x.dim() == 2 && x.size(1) == weight.size(1), "weight [C_out, C]");
  LinearShape s = {};
  s.activation = activation == "gelu"         ? Activation::gelu
                 : activation == "quick_gelu" ? Activation::quick_gelu
                                              : Activation::none;
  return with_kernels(x, residual, [&](const auto& kernel) {
    const Layer layer(kernel, weight, bias, packed);
    return compute(kernel, s, x, layer.outputs, residual, kernel.bytes * layer.inputs,
                   [&](const LinearShape& part, auto... data) {
                     kernel.linear(part, layer, data...);
                   });
  });
}

Tensor bfloat16_feed_forward(const Tensor& x, const Tensor& fc1_weight,
                             const std::optional<Tensor>& fc1_bias, const Tensor& fc2_weight,
                             const std::optional<Tensor>& fc2_bias, const std::string& activation,
                             const std::optional<Tensor>& residual,
                             const std::optional<Tensor>& fc1_packed,
                             const std::optional<Tensor>& fc2_packed) {
  check(fc1_weight.dim() == 2 && fc2_weight.dim() == 2 && x.dim() == 2 &&
            x.size(1) == fc1_weight.size(1) && fc1_weight.size(0) == fc2_weight.size(1),
        "fc1_weight [hidden, C] and fc2_weight [C_out, hidden]");
  LinearShape s = {};
  s.activation = activation == "gelu" ? Activation::gelu : Activation::quick_gelu;
  return with_kernels(x, residual, [&](const auto& kernel) {
    const Layer first(kernel, fc1_weight, fc1_bias, fc1_packed);
    const Layer second(kernel, fc2_weight, fc2_bias, fc2_packed);
    return compute(kernel, s, x, second.outputs, residual, row_bytes(kernel, first, second),
                   [&](const LinearShape& part, auto... data) {
                     kernel.feed_forward(part, first, second, data...);
                   });
  });
}

Tensor bfloat16_pointwise_feed_forward(
    const Tensor& x, const Tensor& residual, const Tensor& pw_weight,
    const std::optional<Tensor>& pw_bias, const Tensor& fc1_weight,
    const std::optional<Tensor>& fc1_bias, const Tensor& fc2_weight,
    const std::optional<Tensor>& fc2_bias, const std::optional<Tensor>& pw_packed,
    const std::optional<Tensor>& fc1_packed, const std::optional<Tensor>& fc2_packed) {
  check(pw_weight.dim() == 2 && fc1_weight.dim() == 2 && fc2_weight.dim() == 2 && x.dim() == 2 &&
            x.size(1) == pw_weight.size(1) && fc1_weight.size(1) == pw_weight.size(0) &&
            fc2_weight.size(0) == pw_weight.size(0) && fc1_weight.size(0) == fc2_weight.size(1),
        "pw_weight [C_out, C], fc1_weight [hidden, C_out] and fc2_weight [C_out, hidden]");
  check(residual.scalar_type() == x.scalar_type(), "residual of x's dtype");
  LinearShape s = {};
  const auto run = [&](const auto& kernel) {
    const Layer pw(kernel, pw_weight, pw_bias, pw_packed);
    const Layer first(kernel, fc1_weight, fc1_bias, fc1_packed);
    const Layer second(kernel, fc2_weight, fc2_bias, fc2_packed);
    const int64_t bytes = std::max(kernel.bytes * pw.inputs, row_bytes(kernel, first, second));
    return compute(kernel, s, x, pw.outputs, residual, bytes,
                   [&](LinearShape part, const auto* in, const auto* add, auto* out) {
                     part.activation = Activation::none;
                     kernel.linear(part, pw, in, add, out);
                     // In place: a row is read for the last time where it is written.
                     part.activation = Activation::gelu;
                     part.x_stride = part.residual_stride = pw.outputs;
                     kernel.feed_forward(part, first, second, out, out, out);
                   });
  };
  if (x.scalar_type() == ScalarType::Float) return run(kernels<float, float>());
  check(x.scalar_type() == ScalarType::BFloat16, "x of bfloat16 or float32");
  return run(kernels<bf16, bf16>());
}

void activation_backward_(Tensor& z, Tensor& dhidden, bool quick) {
  const ScalarType type = z.scalar_type();
  check(z.is_contiguous() && dhidden.is_contiguous() && z.numel() == dhidden.numel() &&
            type == dhidden.scalar_type() &&
            (type == ScalarType::Float || type == ScalarType::BFloat16),
        "z and dhidden of one size, contiguous, of float32 or bfloat16");
  const auto run = [&](auto* value, auto* gradient, const auto& part) {
    torch::stable::parallel_for(0, divide_up(z.numel(), kPart), 1, [&](int64_t begin, int64_t end) {
      const int64_t first = begin * kPart;
      part(quick, value + first, gradient + first, std::min(end * kPart, z.numel()) - first);
    });
  };
  void *value = z.mutable_data_ptr(), *gradient = dhidden.mutable_data_ptr();
  if (type == ScalarType::Float)
    run(static_cast<float*>(value), static_cast<float*>(gradient),
        kernels<bf16, float>().activation_backward);
  else
    run(static_cast<bf16*>(value), static_cast<bf16*>(gradient),
        kernels<bf16, bf16>().activation_backward);
}

}  // namespace uk
