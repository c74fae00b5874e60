// Runs one call of the kernels in csrc/cuda: a request comes in on stdin, results go out on stdout.
//
// The request is the numbers of `Head` and `Request` (or of emulator_tokens.cpp), then every tensor's
// storage; each gets memory of exactly its size, so that the sanitizer sees any access beside it.

#include "emulator.h"

#include "cuda/depthwise_conv.h"
#include "cuda/sums.h"

namespace {

using namespace uk::cuda;
using uk::shim::Result;
using uk::shim::Storage;

enum Operation : int64_t {
  kForward,
  kWeightGradient,
  kMoments,
  kMomentsBackward,
  kTokens,
  kCopies = 8
};

// Of a convolution: what By says, or the general kernels.
constexpr int64_t kGeneral = 3;

struct Head {
  int64_t operation, size;  // of an element: 4, or 2 for bfloat16, or -2 for float16
};

struct Request {
  int64_t B, T, H, W, C, kt, kh, kw;
  int64_t architecture, shared_limit, by;
  int64_t flip, residual, moments;
  int64_t x_stride[5], dy_stride[5], weight_stride[4], bias_stride;
  int64_t x_offset, dy_offset;                 // of the first element, in bytes
  int64_t x, dy, weight, bias, shift, others;  // bytes of storage; 0: there is none
};

template <class S>
Map<S> map_of(const S* data, const int64_t (&stride)[5], int64_t C) {
  Map<S> map{data, {stride[0], stride[1], stride[2], stride[3], stride[4]}, false, {}};
  map.vectors = has_vectors(map, C);
  return map;
}

template <class S>
void run(int64_t operation, const Request& r) {
  const Storage x(r.x), dy(r.dy), weight(r.weight), bias(r.bias), shift(r.shift), others(r.others);
  const DepthwiseSizes s{r.B,
                         r.T,
                         r.H,
                         r.W,
                         r.C,
                         static_cast<int>(r.kt),
                         static_cast<int>(r.kh),
                         static_cast<int>(r.kw)};
  const int64_t count = r.B * r.T * r.H * r.W * r.C;
  const int limit = static_cast<int>(r.shared_limit);
  if (operation == kForward) {
    Result<S> y(count);
    Forward<S> p{};
    p.sizes = s;
    p.x = map_of(x.at<S>(r.x_offset), r.x_stride, r.C);
    if (r.by == kGeneral)
      p.plan = general_forward(s);
    else
      make_plan(p, limit, static_cast<By>(r.by));
    p.weight = weight.at<S>();
    std::copy(r.weight_stride, r.weight_stride + 4, p.weight_stride);
    p.bias = r.bias ? bias.at<S>() : nullptr;
    p.bias_stride = r.bias_stride;
    p.shift = r.shift ? shift.at<float>() : nullptr;
    p.y = y.data.get();
    p.flip = r.flip;
    p.residual = r.residual;
    const bool here = r.moments && p.plan.tiled;  // the general kernel leaves them to another
    Result<float> partials(p.plan.parts * 2 * r.C), sums(here ? 2 * r.C : 0);
    p.partials = here ? partials.data.get() : nullptr;
    start(p, nullptr);
    if (here)
      start(SumParts<float>{partials.data.get(), p.plan.parts, 2, r.C, sums.data.get(), 1, r.C,
                            nullptr},
            nullptr);
    y.write();
    sums.write();
  } else if (operation == kWeightGradient) {
    WeightGradient<S> p{};
    p.sizes = s;
    p.dy = map_of(dy.at<S>(r.dy_offset), r.dy_stride, r.C);
    p.x = map_of(x.at<S>(r.x_offset), r.x_stride, r.C);
    if (r.by == kGeneral)
      p.plan = general_weight_gradient(s);
    else
      make_plan(p, limit, static_cast<By>(r.by));
    const int64_t rows = s.taps() + 1;
    Result<float> partials(p.plan.parts * rows * r.C);
    Result<S> dw(s.taps() * r.C), db(r.C);
    p.partials = partials.data.get();
    start(p, nullptr);
    start(SumParts<S>{partials.data.get(), p.plan.parts, rows, r.C, dw.data.get(), rows - 1, 1,
                      db.data.get()},
          nullptr);
    dw.write();
    db.write();
  } else if (operation == kMoments) {
    Moments<S> p{x.at<S>(), r.shift ? shift.at<float>() : nullptr, count / r.C, r.C, 3, nullptr};
    Result<float> partials(p.parts * 2 * r.C), sums(2 * r.C);
    p.partials = partials.data.get();
    start(p, nullptr);
    start(SumParts<float>{p.partials, p.parts, 2, r.C, sums.data.get(), 1, r.C, nullptr}, nullptr);
    sums.write();
  } else {
    Result<S> dx(count);
    start(MomentsBackward<S>{r.dy ? dy.at<S>() : nullptr, x.at<S>(),
                             r.shift ? shift.at<float>() : nullptr, others.at<float>(), count / r.C,
                             r.C, dx.data.get()},
          nullptr);
    dx.write();
  }
}

}  // namespace

int main() {
  const auto [operation, size] = uk::shim::read<Head>();
  if (operation == kCopies) {
    uk::shim::run_copies();
    return 0;
  }
  if (operation >= kTokens) {
    uk::shim::run_tokens(operation - kTokens, size);
    return 0;
  }
  const auto r = uk::shim::read<Request>();
  uk::shim::architecture = static_cast<int>(r.architecture);
  size == 4 ? run<float>(operation, r)
            : size == 2 ? run<uk::bf16>(operation, r) : run<uk::f16>(operation, r);
}
