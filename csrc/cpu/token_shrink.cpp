// Choosing tokens by importance, on the CPU.  Rows are copied whole and each is worked on once, so
// this is bound by memory and needs no kernel of its own per instruction set.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <vector>

#include "memory.h"
#include "operators.h"
#include "tokens.h"

namespace uk {
namespace {

// An integer that orders like the number: NaN first, and no difference between the two zeros.
template <class H>
typename wide<H>::bits order_of(typename wide<H>::type value) {
  using U = typename wide<H>::bits;
  constexpr U sign = U(1) << (8 * sizeof(U) - 1);
  if (std::isnan(value)) return ~U(0);
  value += 0;  // -0 becomes 0
  U bits;
  std::memcpy(&bits, &value, sizeof(U));
  return bits & sign ? ~bits : bits | sign;
}

// Where the `keep` most important tokens stand and where the others, both ascending.
template <class H>
void select(const typename wide<H>::type* importance, int64_t N, int64_t keep, int64_t* index,
            int64_t* rest) {
  using U = typename wide<H>::bits;
  std::vector<U> keys(N), sorted;
  for (int64_t n = 0; n < N; ++n) keys[n] = order_of<H>(importance[n]);
  U least = ~U(0);
  int64_t equal = 0;  // tokens as important as the least one kept that are kept, the first ones
  if (keep > 0) {
    sorted = keys;
    std::nth_element(sorted.begin(), sorted.begin() + (keep - 1), sorted.end(), std::greater<U>());
    least = sorted[keep - 1];
    equal = keep - std::count_if(keys.begin(), keys.end(), [&](U key) { return key > least; });
  }
  for (int64_t n = 0; n < N; ++n)
    if (keys[n] > least || (keys[n] == least && equal-- > 0))
      *index++ = n;
    else
      *rest++ = n;
}

// The tokens not in `index`, ascending.
std::vector<int64_t> rest_of(const int64_t* index, int64_t K, int64_t N) {
  std::vector<int64_t> rest;
  rest.reserve(N - K);
  for (int64_t n = 0, k = 0; n < N; ++n)
    if (k < K && index[k] == n)
      ++k;
    else
      rest.push_back(n);
  return rest;
}

// Importance divided by its sum, which is returned; equal weights where the sum is 0.
template <class A>
A weights_of(const A* importance, const std::vector<int64_t>& rest, std::vector<A>& weight) {
  A total = 0;
  for (int64_t n : rest) total += importance[n];
  weight.resize(rest.size());
  for (size_t j = 0; j < rest.size(); ++j)
    weight[j] = total == 0 ? A(1) / static_cast<A>(rest.size()) : importance[rest[j]] / total;
  return total;
}

// In as many sums as fill a few vectors, which are added up in the end.
template <class H, class A>
A dot(const H* x, const A* y, int64_t C) {
  constexpr int64_t kLanes = 16;
  A sum[kLanes] = {};
  int64_t c = 0;
  for (; c + kLanes <= C; c += kLanes)
    for (int64_t lane = 0; lane < kLanes; ++lane)
      sum[lane] += static_cast<A>(x[c + lane]) * y[c + lane];
  for (int64_t lane = 0; c < C; ++c, ++lane) sum[lane] += static_cast<A>(x[c]) * y[c];
  A total = 0;
  for (A part : sum) total += part;
  return total;
}

template <class H>
void shrink(const Tensor& x, const Tensor& importance, int64_t keep,
            const std::optional<Tensor>& prefix, Tensor& tokens, Tensor& index) {
  using A = typename wide<H>::type;
  const int64_t B = x.size(0), N = x.size(1), C = x.size(2), P = tokens.size(1) - keep - 1;
  const Rows<const H> in(x), front(prefix ? *prefix : x);
  const Rows<H> out(tokens);
  const A* scores = static_cast<const A*>(importance.const_data_ptr());
  int64_t* kept = static_cast<int64_t*>(index.mutable_data_ptr());
  torch::stable::parallel_for(0, B, 1, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> rest(N - keep);
    std::vector<A> weight, sum;
    for (int64_t b = begin; b < end; ++b) {
      select<H>(scores + b * N, N, keep, kept + b * keep, rest.data());
      for (int64_t p = 0; p < P; ++p) copy_row(out(b, p), front(b, p), C);
      for (int64_t k = 0; k < keep; ++k) copy_row(out(b, P + k), in(b, kept[b * keep + k]), C);
      weights_of(scores + b * N, rest, weight);
      sum.assign(C, A(0));
      for (size_t j = 0; j < rest.size(); ++j) {
        const H* row = in(b, rest[j]);
        for (int64_t c = 0; c < C; ++c) sum[c] += weight[j] * static_cast<A>(row[c]);
      }
      H* last = out(b, P + keep);
      for (int64_t c = 0; c < C; ++c) last[c] = static_cast<H>(sum[c]);
    }
  });
}

template <class H>
void shrink_backward(const Tensor& dtokens, const Tensor& x, const Tensor& importance,
                     const Tensor& index, Tensor& dx, Tensor& dimportance) {
  using A = typename wide<H>::type;
  const int64_t B = x.size(0), N = x.size(1), C = x.size(2), K = index.size(1);
  const int64_t P = dtokens.size(1) - K - 1;
  const Rows<const H> in(x), upstream(dtokens);
  const Rows<H> out(dx);
  const A* scores = static_cast<const A*>(importance.const_data_ptr());
  A* dscores = static_cast<A*>(dimportance.mutable_data_ptr());
  const int64_t* kept = static_cast<const int64_t*>(index.const_data_ptr());
  torch::stable::parallel_for(0, B, 1, [&](int64_t begin, int64_t end) {
    std::vector<A> weight, slope, last(C);
    for (int64_t b = begin; b < end; ++b) {
      const int64_t* own = kept + b * K;
      for (int64_t k = 0; k < K; ++k) {
        copy_row(out(b, own[k]), upstream(b, P + k), C);
        dscores[b * N + own[k]] = 0;
      }
      const std::vector<int64_t> rest = rest_of(own, K, N);
      const A total = weights_of(scores + b * N, rest, weight);
      const H* dlast = upstream(b, P + K);
      for (int64_t c = 0; c < C; ++c) last[c] = static_cast<A>(dlast[c]);
      // The weights' gradients, then through their normalisation.
      A mean = 0;
      slope.resize(rest.size());
      for (size_t j = 0; j < rest.size(); ++j) {
        const H* row = in(b, rest[j]);
        H* drow = out(b, rest[j]);
        for (int64_t c = 0; c < C; ++c) drow[c] = static_cast<H>(weight[j] * last[c]);
        slope[j] = dot(row, last.data(), C);
        mean += weight[j] * slope[j];
      }
      for (size_t j = 0; j < rest.size(); ++j)
        dscores[b * N + rest[j]] = total == 0 ? A(0) : (slope[j] - mean) / total;
    }
  });
}

void check_importance(const Tensor& importance, const Tensor& x) {
  check_numbers(importance, x, x.size(1), "importance [B, N], float32 (float64 for float64)");
  check(importance.is_contiguous(), "importance contiguous");
}

}  // namespace

std::tuple<Tensor, Tensor> token_shrink(const Tensor& x, const Tensor& importance, int64_t keep,
                                        const std::optional<Tensor>& prefix) {
  check(x.dim() == 3, "x [B, N, C]");
  const int64_t B = x.size(0), N = x.size(1), C = x.size(2);
  check_rows(x, B, C, x.scalar_type(), "x [B, N, C] with adjacent channels");
  check_importance(importance, x);
  check(keep >= 0 && keep < N, "0 <= keep < N");
  if (prefix)
    check_rows(*prefix, B, C, x.scalar_type(), "prefix [B, P, C] like x, with adjacent channels");
  const int64_t P = prefix ? prefix->size(1) : 0;
  Tensor tokens = allocate(x, {B, P + keep + 1, C});
  Tensor index = allocate(x, {B, keep}, ScalarType::Long);
  dispatch(x.scalar_type(), [&](auto h) {
    shrink<decltype(h)>(x, importance, keep, prefix, tokens, index);
  });
  return {tokens, index};
}

std::tuple<Tensor, Tensor> token_shrink_backward(const Tensor& dtokens, const Tensor& x,
                                                 const Tensor& importance, const Tensor& index) {
  check(x.dim() == 3, "x [B, N, C]");
  const int64_t B = x.size(0), C = x.size(2);
  check_rows(x, B, C, x.scalar_type(), "x [B, N, C] with adjacent channels");
  check_importance(importance, x);
  check_index(index, B, x.size(1));
  check_rows(dtokens, B, C, x.scalar_type(), "dtokens [B, P + K + 1, C] like x");
  check(dtokens.size(1) > index.size(1), "dtokens [B, P + K + 1, C]");
  Tensor dx = allocate(x, {B, x.size(1), C});
  Tensor dimportance = allocate(importance, importance.sizes());
  dispatch(x.scalar_type(), [&](auto h) {
    shrink_backward<decltype(h)>(dtokens, x, importance, index, dx, dimportance);
  });
  return {dx, dimportance};
}

}  // namespace uk
