// Choosing tokens by importance and putting them back, on the CPU.  Rows are copied whole and each
// is worked on once, so this is bound by memory and needs no kernel of its own per instruction set.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <vector>

#include "host.h"
#include "memory.h"
#include "operators.h"

namespace uk {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The type weights and sums are kept in, and the importance comes in.
template <class H>
struct wide {
  using type = float;
  using bits = uint32_t;
  static constexpr ScalarType scalar_type = ScalarType::Float;
};
template <>
struct wide<double> {
  using type = double;
  using bits = uint64_t;
  static constexpr ScalarType scalar_type = ScalarType::Double;
};

// A sequence [B, N, C] with adjacent channels.
template <class H>
struct Rows {
  H* data;
  int64_t sample_stride, row_stride;
  explicit Rows(const Tensor& t)
      : data(static_cast<H*>(const_cast<void*>(t.const_data_ptr()))),
        sample_stride(t.stride(0)),
        row_stride(t.stride(1)) {}
  H* operator()(int64_t b, int64_t n) const { return data + b * sample_stride + n * row_stride; }
};

template <class H>
void copy_row(H* to, const H* from, int64_t C) {
  std::memcpy(static_cast<void*>(to), from, C * sizeof(H));
}

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

template <class H>
void recover(const Tensor& x, const Tensor& index, const Tensor& kept, const Tensor& delta,
             Tensor& y) {
  using A = typename wide<H>::type;
  const int64_t B = x.size(0), N = x.size(1), C = x.size(2), K = index.size(1);
  const Rows<const H> in(x), back(kept), change(delta);
  const Rows<H> out(y);
  const int64_t* indices = static_cast<const int64_t*>(index.const_data_ptr());
  torch::stable::parallel_for(0, B * N, 512, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end;) {
      const int64_t b = i / N, stop = std::min(end, (b + 1) * N);
      const int64_t *first = indices + b * K, *last = first + K;
      const int64_t* next = std::lower_bound(first, last, i - b * N);
      const H* add = change(b, 0);
      for (; i < stop; ++i) {
        const int64_t n = i - b * N;
        H* to = out(b, n);
        if (next != last && *next == n) {
          copy_row(to, back(b, next++ - first), C);
        } else {
          const H* from = in(b, n);
          for (int64_t c = 0; c < C; ++c)
            to[c] = static_cast<H>(static_cast<A>(from[c]) + static_cast<A>(add[c]));
        }
      }
    }
  });
}

template <class H>
void recover_backward(const Tensor& dy, const Tensor& index, Tensor& dx, Tensor& dkept,
                      Tensor& ddelta) {
  using A = typename wide<H>::type;
  const int64_t B = dy.size(0), N = dy.size(1), C = dy.size(2), K = index.size(1);
  const Rows<const H> upstream(dy);
  const Rows<H> out(dx), back(dkept), change(ddelta);
  const int64_t* indices = static_cast<const int64_t*>(index.const_data_ptr());
  torch::stable::parallel_for(0, B, 1, [&](int64_t begin, int64_t end) {
    std::vector<A> sum;
    for (int64_t b = begin; b < end; ++b) {
      const int64_t *first = indices + b * K, *last = first + K, *next = first;
      sum.assign(C, A(0));
      for (int64_t n = 0; n < N; ++n) {
        const H* from = upstream(b, n);
        if (next != last && *next == n) {
          copy_row(back(b, next++ - first), from, C);
          std::memset(static_cast<void*>(out(b, n)), 0, C * sizeof(H));
        } else {
          copy_row(out(b, n), from, C);
          for (int64_t c = 0; c < C; ++c) sum[c] += static_cast<A>(from[c]);
        }
      }
      H* to = change(b, 0);
      for (int64_t c = 0; c < C; ++c) to[c] = static_cast<H>(sum[c]);
    }
  });
}

// Where the score of every token stands, -1 for those without: a kept one has its own, a single
// other one, which is its own representative, what comes last.
std::vector<int64_t> scores_of(const int64_t* index, int64_t K, int64_t N, int64_t prefixed) {
  std::vector<int64_t> scores(N, N - K == 1 ? prefixed + K : -1);
  for (int64_t k = 0; k < K; ++k) scores[index[k]] = prefixed + k;
  return scores;
}

// As PyTorch's, from the end that is nearer.
template <class A>
A lerp(A start, A end, A weight) {
  return std::abs(weight) < A(0.5) ? start + weight * (end - start)
                                   : end - (end - start) * (A(1) - weight);
}

template <class A>
void update(const Tensor& importance, const Tensor& score, const Tensor& index, double trade_off,
            Tensor& updated) {
  const int64_t B = importance.size(0), N = importance.size(1), K = index.size(1);
  const A* old = static_cast<const A*>(importance.const_data_ptr());
  const A* found = static_cast<const A*>(score.const_data_ptr());
  const int64_t* kept = static_cast<const int64_t*>(index.const_data_ptr());
  A* out = static_cast<A*>(updated.mutable_data_ptr());
  for (int64_t b = 0; b < B; ++b) {
    const std::vector<int64_t> scores = scores_of(kept + b * K, K, N, score.size(1) - K - 1);
    for (int64_t n = 0; n < N; ++n) {
      const A before = old[b * importance.stride(0) + n];
      out[b * N + n] = scores[n] < 0 ? before
                                     : lerp(before, found[b * score.stride(0) + scores[n]],
                                            static_cast<A>(trade_off));
    }
  }
}

template <class A>
void update_backward(const Tensor& dupdated, const Tensor& index, int64_t prefixed,
                     double trade_off, Tensor& dimportance, Tensor& dscore) {
  const int64_t B = dupdated.size(0), N = dupdated.size(1), K = index.size(1);
  const int64_t P = prefixed + K + 1;
  const A* upstream = static_cast<const A*>(dupdated.const_data_ptr());
  const int64_t* kept = static_cast<const int64_t*>(index.const_data_ptr());
  A* of_old = static_cast<A*>(dimportance.mutable_data_ptr());
  A* of_score = static_cast<A*>(dscore.mutable_data_ptr());
  const A weight = static_cast<A>(trade_off), rest = static_cast<A>(1 - trade_off);
  std::fill_n(of_score, B * P, A(0));
  for (int64_t b = 0; b < B; ++b) {
    const std::vector<int64_t> scores = scores_of(kept + b * K, K, N, prefixed);
    for (int64_t n = 0; n < N; ++n) {
      const A up = upstream[b * N + n];
      of_old[b * N + n] = scores[n] < 0 ? up : up * rest;
      if (scores[n] >= 0) of_score[b * P + scores[n]] = up * weight;
    }
  }
}

// Calls function(H()) with the arithmetic type H of a dtype.
template <class Function>
void dispatch(ScalarType dtype, const Function& function) {
  switch (dtype) {
    case ScalarType::Float:
      return function(float());
    case ScalarType::Double:
      return function(double());
    case ScalarType::BFloat16:
      return function(c10::BFloat16());
    case ScalarType::Half:
      return function(c10::Half());
    default:
      check(false, "a floating dtype");
  }
}

void check_rows(const Tensor& t, int64_t B, int64_t C, ScalarType dtype, const char* what) {
  check(t.dim() == 3 && t.size(0) == B && t.size(2) == C && t.scalar_type() == dtype &&
            (C == 1 || t.numel() == 0 || t.stride(2) == 1),
        what);
}

ScalarType wide_of(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

void check_numbers(const Tensor& t, const Tensor& x, int64_t length, const char* what) {
  check(t.dim() == 2 && t.size(0) == x.size(0) && t.size(1) == length &&
            t.scalar_type() == wide_of(x) && (length == 1 || t.numel() == 0 || t.stride(1) == 1),
        what);
}

void check_importance(const Tensor& importance, const Tensor& x) {
  check_numbers(importance, x, x.size(1), "importance [B, N], float32 (float64 for float64)");
  check(importance.is_contiguous(), "importance contiguous");
}

void check_index(const Tensor& index, int64_t B, int64_t N) {
  check(index.dim() == 2 && index.size(0) == B && index.is_contiguous() &&
            index.scalar_type() == ScalarType::Long,
        "index [B, K], contiguous, int64");
  const int64_t* at = static_cast<const int64_t*>(index.const_data_ptr());
  const int64_t K = index.size(1);
  for (int64_t b = 0; b < B; ++b)
    for (int64_t k = 0, before = -1; k < K; before = *at++, ++k)
      check(before < *at && *at < N, "index ascending from 0 to N - 1");
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

Tensor token_recover(const Tensor& x, const Tensor& index, const Tensor& kept,
                     const Tensor& delta) {
  check(x.dim() == 3, "x [B, N, C]");
  const int64_t B = x.size(0), N = x.size(1), C = x.size(2);
  check_rows(x, B, C, x.scalar_type(), "x [B, N, C] with adjacent channels");
  check_index(index, B, N);
  check_rows(kept, B, C, x.scalar_type(), "kept [B, K, C] like x, with adjacent channels");
  check_rows(delta, B, C, x.scalar_type(), "delta [B, 1, C] like x, with adjacent channels");
  check(kept.size(1) == index.size(1) && delta.size(1) == 1, "kept [B, K, C], delta [B, 1, C]");
  Tensor y = allocate(x, {B, N, C});
  dispatch(x.scalar_type(), [&](auto h) { recover<decltype(h)>(x, index, kept, delta, y); });
  return y;
}

std::tuple<Tensor, Tensor, Tensor> token_recover_backward(const Tensor& dy, const Tensor& index) {
  check(dy.dim() == 3, "dy [B, N, C]");
  const int64_t B = dy.size(0), N = dy.size(1), C = dy.size(2);
  check_rows(dy, B, C, dy.scalar_type(), "dy [B, N, C] with adjacent channels");
  check_index(index, B, N);
  Tensor dx = allocate(dy, {B, N, C});
  Tensor dkept = allocate(dy, {B, index.size(1), C});
  Tensor ddelta = allocate(dy, {B, 1, C});
  dispatch(dy.scalar_type(), [&](auto h) {
    recover_backward<decltype(h)>(dy, index, dx, dkept, ddelta);
  });
  return {dx, dkept, ddelta};
}

std::tuple<Tensor, Tensor> token_recover_with_importance(
    const Tensor& x, const Tensor& index, const Tensor& kept, const Tensor& delta,
    const Tensor& importance, const Tensor& score, double trade_off) {
  Tensor y = token_recover(x, index, kept, delta);
  check(score.dim() == 2 && score.size(1) > index.size(1), "score [B, P + K + 1]");
  check_numbers(importance, x, x.size(1), "importance [B, N], float32 (float64 for float64)");
  check_numbers(score, x, score.size(1), "score [B, P + K + 1], adjacent, like importance");
  Tensor updated = allocate(importance, importance.sizes());
  const auto run = wide_of(x) == ScalarType::Double ? update<double> : update<float>;
  run(importance, score, index, trade_off, updated);
  return {y, updated};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> token_recover_with_importance_backward(
    const Tensor& dy, const Tensor& dupdated, const Tensor& index, int64_t prefixed,
    double trade_off) {
  auto [dx, dkept, ddelta] = token_recover_backward(dy, index);
  check(prefixed >= 0, "prefixed >= 0");
  check_numbers(dupdated, dy, dy.size(1), "dupdated [B, N], float32 (float64 for float64)");
  check(dupdated.is_contiguous(), "dupdated contiguous");
  Tensor dimportance = allocate(dupdated, dupdated.sizes());
  Tensor dscore = allocate(dupdated, {dy.size(0), prefixed + index.size(1) + 1});
  const auto run = wide_of(dy) == ScalarType::Double ? update_backward<double>
                                                     : update_backward<float>;
  run(dupdated, index, prefixed, trade_off, dimportance, dscore);
  return {dx, dkept, ddelta, dimportance, dscore};
}

}  // namespace uk
