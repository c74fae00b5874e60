// Putting chosen tokens back among the others, on the CPU, by copies like those that chose them
// (token_shrink.cpp).

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "memory.h"
#include "operators.h"
#include "tokens.h"

namespace uk {
namespace {

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

}  // namespace

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
