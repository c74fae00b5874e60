// Attention of a few rows to normalised tokens on the CPU: what the kernels need around them.

#include "pooling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "host.h"
#include "memory.h"
#include "operators.h"

namespace uk {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr const char* kTokens = "tokens of float32, bfloat16 or float16";

const float* numbers(const Tensor& t) { return static_cast<const float*>(t.const_data_ptr()); }
float* numbers(Tensor& t) { return static_cast<float*>(t.mutable_data_ptr()); }

// Tensors of one pass, and into how many parts its tokens are cut.
struct Sizes {
  int64_t B, N, R, C, parts;

  Sizes(const Tensor& rows, const Tensor& tokens)
      : B(tokens.size(0)), N(tokens.size(1)), R(rows.size(1)), C(tokens.size(2)),
        parts(divide_up(N, kPooled)) {}

  // Calls run(sample, its part, the part's first token, how many it has) for all of them.
  template <class Run>
  void for_parts(Run run) const {
    torch::stable::parallel_for(0, B * parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = i % parts * kPooled;
        run(i / parts, i, i / parts * N + first, std::min(kPooled, N - first));
      }
    });
  }
};

void check_tokens(const Tensor& rows, const Tensor& tokens) {
  check(rows.dim() == 3 && tokens.dim() == 3 && rows.size(0) == tokens.size(0) &&
            rows.size(2) == tokens.size(2) && rows.scalar_type() == ScalarType::Float,
        "rows [B, R, C] of float32 and tokens [B, N, C]");
  check(tokens.size(1) > 0 && tokens.size(2) > 0, "at least one token and channel");
}

void check_row(const Tensor& t, int64_t count, const char* what) {
  check(t.is_contiguous() && t.numel() == count && t.scalar_type() == ScalarType::Float, what);
}

// One row of a sample from its parts: [parts, R] and [parts, R, C].  Returns log2 of its sum.
float together(const Sizes& s, const float* highest, const float* sums, const float* parts,
               float* pooled) {
  float most = -std::numeric_limits<float>::infinity(), sum = 0;
  for (int64_t p = 0; p < s.parts; ++p) most = std::max(most, highest[p * s.R]);
  std::fill_n(pooled, s.C, 0.f);
  for (int64_t p = 0; p < s.parts; ++p) {
    const float scale = std::exp2(highest[p * s.R] - most), *part = parts + p * s.R * s.C;
    sum += scale * sums[p * s.R];
    for (int64_t c = 0; c < s.C; ++c) pooled[c] += scale * part[c];
  }
  for (int64_t c = 0; c < s.C; ++c) pooled[c] /= sum;
  return most + std::log2(sum);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> normalised_pooling(const Tensor& rows,
                                                              const Tensor& tokens, double eps) {
  check_tokens(rows, tokens);
  const Sizes s(rows, tokens);
  const Tensor queries = adjacent(rows), memory = adjacent(tokens);
  Tensor pooled = allocate(queries, {s.B, s.R, s.C}), lse = allocate(queries, {s.B, s.R});
  Tensor mean = allocate(queries, {s.B, s.N}), rstd = allocate(queries, {s.B, s.N});
  Tensor highest = allocate(queries, {s.B, s.parts, s.R});
  Tensor sums = allocate(queries, {s.B, s.parts, s.R});
  Tensor parts = allocate(queries, {s.B, s.parts, s.R, s.C});
  float *means = numbers(mean), *inverse = numbers(rstd), *peaks = numbers(highest);
  float *totals = numbers(sums), *partial = numbers(parts);
  dispatch_narrow(tokens.scalar_type(), kTokens, [&](auto storage) {
    using S = decltype(storage);
    const PoolingKernels<S>& kernel = UK_KERNELS(pooling_kernels, S);
    const S* in = static_cast<const S*>(memory.const_data_ptr());
    s.for_parts([&](int64_t b, int64_t part, int64_t token, int64_t count) {
      const Pooling n = {s.R, s.C, static_cast<float>(eps), numbers(queries) + b * s.R * s.C};
      kernel.forward(n, in + token * s.C, count, means + token, inverse + token,
                     peaks + part * s.R, totals + part * s.R, partial + part * s.R * s.C);
    });
  });
  float *out = numbers(pooled), *logs = numbers(lse);
  torch::stable::parallel_for(0, s.B * s.R, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t at = i / s.R * s.parts * s.R + i % s.R;  // in the sample's first part
      logs[i] = together(s, peaks + at, totals + at, partial + at * s.C, out + i * s.C);
    }
  });
  return {pooled, lse, mean, rstd};
}

std::tuple<Tensor, Tensor> normalised_pooling_backward(const Tensor& dpooled, const Tensor& rows,
                                                       const Tensor& tokens, const Tensor& pooled,
                                                       const Tensor& lse, const Tensor& mean,
                                                       const Tensor& rstd, bool want_tokens) {
  check_tokens(rows, tokens);
  const Sizes s(rows, tokens);
  const Tensor upstream = adjacent(dpooled), queries = adjacent(rows), memory = adjacent(tokens);
  check_row(upstream, s.B * s.R * s.C, "dpooled [B, R, C] of float32");
  check_row(pooled, s.B * s.R * s.C, "pooled [B, R, C] of float32, contiguous");
  check_row(lse, s.B * s.R, "lse [B, R] of float32, contiguous");
  check_row(mean, s.B * s.N, "mean [B, N] of float32, contiguous");
  check_row(rstd, s.B * s.N, "rstd [B, N] of float32, contiguous");
  Tensor drows = allocate(queries, {s.B, s.R, s.C});
  Tensor dtokens = want_tokens ? allocate(tokens, tokens.sizes()) : allocate(tokens, {0});
  Tensor parts = allocate(queries, {s.B, s.parts, s.R, s.C});
  const float *up = numbers(upstream), *found = numbers(pooled);
  float* partial = numbers(parts);
  std::vector<float> along(s.B * s.R);
  for (size_t i = 0; i < along.size(); ++i) {
    double sum = 0;
    for (int64_t c = 0; c < s.C; ++c) sum += up[i * s.C + c] * found[i * s.C + c];
    along[i] = static_cast<float>(sum);
  }
  dispatch_narrow(tokens.scalar_type(), kTokens, [&](auto storage) {
    using S = decltype(storage);
    const PoolingKernels<S>& kernel = UK_KERNELS(pooling_kernels, S);
    const S* in = static_cast<const S*>(memory.const_data_ptr());
    S* out = want_tokens ? static_cast<S*>(dtokens.mutable_data_ptr()) : nullptr;
    s.for_parts([&](int64_t b, int64_t part, int64_t token, int64_t count) {
      const Pooling n = {s.R, s.C, 0.f, numbers(queries) + b * s.R * s.C};
      const PoolingGradient g = {up + b * s.R * s.C, along.data() + b * s.R,
                                 numbers(lse) + b * s.R};
      kernel.backward(n, g, in + token * s.C, numbers(mean) + token, numbers(rstd) + token, count,
                      partial + part * s.R * s.C, out ? out + token * s.C : nullptr);
    });
  });
  float* gradients = numbers(drows);
  torch::stable::parallel_for(0, s.B * s.R, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float* part = partial + (i / s.R * s.parts * s.R + i % s.R) * s.C;
      for (int64_t c = 0; c < s.C; ++c) {
        float sum = 0;
        for (int64_t p = 0; p < s.parts; ++p) sum += part[p * s.R * s.C + c];
        gradients[i * s.C + c] = sum;
      }
    }
  });
  return {drows, dtokens};
}

}  // namespace uk
