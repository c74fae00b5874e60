// Depthwise 3-D convolution on the CPU: what the kernels need around them.

#include "depthwise_conv.h"

#include <algorithm>
#include <vector>

#include "host.h"
#include "memory.h"
#include "operators.h"

namespace uk {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class S>
DepthwiseMap<S> map_of(const Tensor& x) {
  DepthwiseMap<S> map{static_cast<const S*>(x.const_data_ptr()), {}};
  for (int i = 0; i < 5; ++i) map.stride[i] = x.stride(i);
  return map;
}

DepthwiseShape shape_of(const Tensor& x, const Tensor& weight) {
  return {x.size(0),      x.size(1),      x.size(2),      x.size(3), x.size(4),
          weight.size(2), weight.size(3), weight.size(4), x.size(2), 1};
}

constexpr int64_t kRing = 1 << 19;  // bytes of packed rows that stay in a core's own cache

// Cuts channels into groups, as large as the cache allows so that rows are read and written in long
// stretches, and H evenly into chunks worth packing their halo again; in more groups where that
// does not make about as many tasks as `wanted`.
int64_t set_tasks(DepthwiseShape& s, int64_t lanes, int64_t wanted) {
  const int64_t blocks = divide_up(s.C, lanes), samples = std::max<int64_t>(1, s.B);
  const int64_t bytes = s.kh * s.T * (s.W + s.kw - 1) * 64;
  const int64_t least = divide_up(blocks, std::max<int64_t>(1, kRing / bytes));
  const int64_t most = std::max<int64_t>(1, s.H / std::max<int64_t>(1, 3 * (s.kh - 1)));
  const int64_t chunks = std::min(most, divide_up(wanted, samples * least));
  s.chunk = divide_up(s.H, std::max<int64_t>(1, chunks));
  const int64_t groups = std::max(least, divide_up(wanted, samples * chunks));
  s.group = divide_up(blocks, std::min(groups, blocks));
  return s.B * divide_up(blocks, s.group) * divide_up(s.H, s.chunk);
}

template <class A>
constexpr ScalarType scalar_type_of = sizeof(A) == 8 ? ScalarType::Double : ScalarType::Float;

// [C, 1, kt, kh, kw] to [blocks, kt, kh, kw, lanes], zero-filled; flipped along every tap axis for
// the input gradient.
template <class S>
Tensor pack_weight(const Tensor& weight, int64_t lanes, bool flip) {
  using A = typename accumulator<S>::type;
  using H = typename host<S>::type;
  const int64_t C = weight.size(0), kt = weight.size(2), kh = weight.size(3), kw = weight.size(4);
  const int64_t blocks = divide_up(C, lanes), taps = kt * kh * kw;
  Tensor packed = torch::stable::new_zeros(weight, {blocks, taps, lanes}, scalar_type_of<A>);
  const H* in = static_cast<const H*>(weight.const_data_ptr());
  A* out = static_cast<A*>(packed.mutable_data_ptr());
  const int64_t sc = weight.stride(0), st = weight.stride(2), sh = weight.stride(3),
                sw = weight.stride(4);
  for (int64_t c = 0; c < C; ++c) {
    A* lane = out + c / lanes * taps * lanes + c % lanes;
    int64_t tap = 0;
    for (int64_t f = 0; f < kt; ++f)
      for (int64_t i = 0; i < kh; ++i)
        for (int64_t k = 0; k < kw; ++k, ++tap)
          lane[(flip ? taps - 1 - tap : tap) * lanes] =
              static_cast<A>(in[c * sc + f * st + i * sh + k * sw]);
  }
  return packed;
}

template <class S>
Tensor pack_bias(const Tensor& bias, int64_t lanes) {
  using A = typename accumulator<S>::type;
  using H = typename host<S>::type;
  const int64_t C = bias.size(0);
  Tensor packed =
      torch::stable::new_zeros(bias, {divide_up(C, lanes) * lanes}, scalar_type_of<A>);
  const H* in = static_cast<const H*>(bias.const_data_ptr());
  A* out = static_cast<A*>(packed.mutable_data_ptr());
  for (int64_t c = 0; c < C; ++c) out[c] = static_cast<A>(in[c * bias.stride(0)]);
  return packed;
}

template <class S>
Tensor forward(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
               bool residual) {
  using A = typename accumulator<S>::type;
  Tensor y = allocate(x, x.sizes());
  if (y.numel() == 0) return y;
  const DepthwiseKernels<S>& kernel = UK_KERNELS(depthwise_kernels, S);
  DepthwiseShape s = shape_of(x, weight);
  // Any split gives the same result here, so it may follow the number of threads.
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t tasks =
      set_tasks(s, kernel.lanes, threads == 1 ? 1 : 2 * threads);
  const Tensor packed = pack_weight<S>(weight, kernel.lanes, false);
  const Tensor packed_bias = bias ? pack_bias<S>(*bias, kernel.lanes) : packed;
  const A* w = static_cast<const A*>(packed.const_data_ptr());
  const A* b = bias ? static_cast<const A*>(packed_bias.const_data_ptr()) : nullptr;
  const DepthwiseMap<S> map = map_of<S>(x);
  S* out = static_cast<S*>(y.mutable_data_ptr());
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task)
      kernel.forward(s, map, w, b, residual, out, task);
  });
  return y;
}

// Sums the tasks' parts [tasks, taps + 1, lanes] in their order, so that the result depends on the
// shape alone.
template <class S>
void reduce(const DepthwiseShape& s, int64_t lanes, const Tensor& partial, Tensor& dw, Tensor& db) {
  using A = typename accumulator<S>::type;
  using H = typename host<S>::type;
  const int64_t taps = s.kt * s.kh * s.kw, blocks = divide_up(s.C, lanes);
  const int64_t chunks = divide_up(s.H, s.chunk), size = (taps + 1) * lanes;
  const A* parts = static_cast<const A*>(partial.const_data_ptr());
  H* weight = static_cast<H*>(dw.mutable_data_ptr());
  H* bias = static_cast<H*>(db.mutable_data_ptr());
  torch::stable::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    std::vector<A> sum(size);
    for (int64_t block = begin; block < end; ++block) {
      std::fill(sum.begin(), sum.end(), A(0));
      for (int64_t b = 0; b < s.B; ++b)
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
          const A* part = parts + ((b * chunks + chunk) * blocks + block) * size;
          for (int64_t i = 0; i < size; ++i) sum[i] += part[i];
        }
      for (int64_t lane = 0; lane < std::min(lanes, s.C - block * lanes); ++lane) {
        const int64_t c = block * lanes + lane;
        for (int64_t tap = 0; tap < taps; ++tap)
          weight[c * taps + tap] = static_cast<H>(sum[tap * lanes + lane]);
        bias[c] = static_cast<H>(sum[taps * lanes + lane]);
      }
    }
  });
}

template <class S>
std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& dy, const Tensor& x, const Tensor& weight,
                                            bool residual, bool want_input, bool want_weight) {
  using A = typename accumulator<S>::type;
  Tensor dx = want_input ? allocate(x, x.sizes()) : allocate(x, {0});
  Tensor dw = torch::stable::new_zeros(weight, {0});
  Tensor db = torch::stable::new_zeros(weight, {0});
  if (want_weight) {
    dw = torch::stable::new_zeros(weight, weight.sizes());
    db = torch::stable::new_zeros(weight, {weight.size(0)});
  }
  if (x.numel() == 0 || !(want_input || want_weight)) return {dx, dw, db};
  const DepthwiseKernels<S>& kernel = UK_KERNELS(depthwise_kernels, S);
  DepthwiseShape s = shape_of(x, weight);
  // Partial sums follow this split, so it must not follow the number of threads.
  const int64_t tasks = set_tasks(s, kernel.lanes, 8);
  const int64_t size = (s.kt * s.kh * s.kw + 1) * kernel.lanes;
  const int64_t pieces = s.B * divide_up(s.H, s.chunk) * divide_up(s.C, kernel.lanes);
  const Tensor packed = pack_weight<S>(weight, kernel.lanes, true);
  const Tensor parts =
      allocate(x, {want_weight ? pieces * size : 0}, scalar_type_of<A>);
  const A* w = static_cast<const A*>(packed.const_data_ptr());
  const DepthwiseMap<S> dy_map = map_of<S>(dy), x_map = map_of<S>(x);
  S* out = want_input ? static_cast<S*>(dx.mutable_data_ptr()) : nullptr;
  A* partial = want_weight ? static_cast<A*>(parts.mutable_data_ptr()) : nullptr;
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task)
      kernel.backward(s, dy_map, x_map, w, residual, out,
                      partial, task);
  });
  if (want_weight) reduce<S>(s, kernel.lanes, parts, dw, db);
  return {dx, dw, db};
}

void check_call(const Tensor& x, const Tensor& weight) {
  check(x.dim() == 5, "x [B, T, H, W, C]");
  check(weight.dim() == 5 && weight.size(0) == x.size(4) && weight.size(1) == 1,
        "weight [C, 1, kt, kh, kw] with C of x");
  for (int axis = 2; axis < 5; ++axis)
    check(weight.size(axis) % 2 == 1 && weight.size(axis) <= 7, "odd kernel sizes up to 7");
  check(weight.scalar_type() == x.scalar_type(), "weight of x's dtype");
}

}  // namespace

Tensor depthwise_conv3d(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                        bool residual) {
  check_call(x, weight);
  if (bias)
    check(bias->dim() == 1 && bias->size(0) == x.size(4) && bias->scalar_type() == x.scalar_type(),
          "bias [C] of x's dtype");
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return forward<float>(x, weight, bias, residual);
    case ScalarType::Double:
      return forward<double>(x, weight, bias, residual);
    case ScalarType::BFloat16:
      return forward<bf16>(x, weight, bias, residual);
    case ScalarType::Half:
      return forward<f16>(x, weight, bias, residual);
    default:
      throw std::runtime_error("uniformer_kernels: expected a floating dtype");
  }
}

std::tuple<Tensor, Tensor, Tensor> depthwise_conv3d_backward(const Tensor& dy, const Tensor& x,
                                                             const Tensor& weight, bool residual,
                                                             bool want_input, bool want_weight) {
  check_call(x, weight);
  check(dy.dim() == 5 && dy.scalar_type() == x.scalar_type(), "dy like x");
  for (int axis = 0; axis < 5; ++axis) check(dy.size(axis) == x.size(axis), "dy like x");
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return backward<float>(dy, x, weight, residual, want_input, want_weight);
    case ScalarType::Double:
      return backward<double>(dy, x, weight, residual, want_input, want_weight);
    case ScalarType::BFloat16:
      return backward<bf16>(dy, x, weight, residual, want_input, want_weight);
    case ScalarType::Half:
      return backward<f16>(dy, x, weight, residual, want_input, want_weight);
    default:
      throw std::runtime_error("uniformer_kernels: expected a floating dtype");
  }
}

}  // namespace uk
