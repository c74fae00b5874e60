// Choosing tokens by importance and putting them back on a GPU: what the kernels need around them.

#include "token_select.h"

#include "../operators.h"
#include "host.h"

namespace uk::cuda {
namespace {

using torch::headeronly::ScalarType;

template <class H>
Rows<H> rows_of(const Tensor& t) {
  return {static_cast<H*>(const_cast<void*>(t.const_data_ptr())), t.stride(0), t.stride(1)};
}

void check_rows(const Tensor& t, const Tensor& x, const char* what) {
  expect(t.dim() == 3 && t.size(0) == x.size(0) && t.size(2) == x.size(2) &&
             t.scalar_type() == x.scalar_type() && t.get_device() == x.get_device() &&
             (t.size(2) == 1 || t.numel() == 0 || t.stride(2) == 1),
         what);
}

void check_tokens(const Tensor& x, const char* what) {
  expect(x.dim() == 3, what);
  check_rows(x, x, what);
  expect(x.size(1) <= kMostTokens, "at most 8192 tokens");
  expect(x.size(2) < (int64_t{1} << 31) - kSlice &&
             x.size(0) * slices(x.size(2)) <= kMostBlocks &&
             x.size(0) * token_blocks(x.size(1)) <= kMostBlocks,
         "fewer channels or samples");
}

void check_numbers(const Tensor& t, const Tensor& x, int64_t length, const char* what) {
  expect(t.dim() == 2 && t.size(0) == x.size(0) && t.size(1) == length &&
             t.scalar_type() == ScalarType::Float && t.get_device() == x.get_device() &&
             (length == 1 || t.numel() == 0 || t.stride(1) == 1),
         what);
}

void check_importance(const Tensor& importance, const Tensor& x) {
  check_numbers(importance, x, x.size(1), "importance [B, N] of float32 on x's device");
  expect(importance.is_contiguous(), "importance contiguous");
}

void check_index(const Tensor& index, const Tensor& x) {
  expect(index.dim() == 2 && index.size(0) == x.size(0) && index.size(1) <= x.size(1) &&
             index.is_contiguous() && index.scalar_type() == ScalarType::Long &&
             index.get_device() == x.get_device(),
         "index [B, K], contiguous, of int64, on x's device");
}

// What stands in front of the kept tokens and their representative.
void check_prefix(int64_t P) {
  expect(P >= 0 && P + kMostTokens + 1 < int64_t{1} << 31, "P tokens or scores in front, and fewer");
}

TokenSizes sizes_of(const Tensor& x, int64_t K, int64_t P) {
  return {x.size(0), static_cast<int>(x.size(1)), static_cast<int>(K), static_cast<int>(P),
          static_cast<int>(x.size(2)), true};
}

template <class S, class... More>
bool all_vectors(int64_t C, const Rows<S>& rows, const More&... more) {
  if constexpr (sizeof...(more) > 0)
    return has_vectors(rows, C) && all_vectors(C, more...);
  else
    return has_vectors(rows, C);
}

const int64_t* indices(const Tensor& index) {
  return static_cast<const int64_t*>(index.const_data_ptr());
}

const float* floats(const Tensor& t) { return static_cast<const float*>(t.const_data_ptr()); }
float* new_floats(Tensor& t) { return static_cast<float*>(t.mutable_data_ptr()); }

Tensor recover(const Tensor& x, const Tensor& index, const Tensor& kept, const Tensor& delta,
               int64_t prefixed, const RunningMean& mean) {
  check_tokens(x, "x [B, N, C] with adjacent channels");
  check_index(index, x);
  check_rows(kept, x, "kept [B, K, C] like x, with adjacent channels");
  check_rows(delta, x, "delta [B, 1, C] like x, with adjacent channels");
  expect(kept.size(1) == index.size(1) && delta.size(1) == 1, "kept [B, K, C], delta [B, 1, C]");
  const OnDevice device(x);
  Tensor y = torch::stable::new_empty(x, {x.size(0), x.size(1), x.size(2)});
  dispatch(x.scalar_type(), [&](auto storage) {
    using S = decltype(storage);
    Recover<S> p{sizes_of(x, index.size(1), prefixed), rows_of<const S>(x), rows_of<const S>(kept),
                 rows_of<const S>(delta), indices(index), rows_of<S>(y), mean};
    p.sizes.vectors = all_vectors(x.size(2), p.x, p.kept, p.delta, p.y);
    start(p, device.stream());
  });
  return y;
}

std::tuple<Tensor, Tensor, Tensor> recover_backward(const Tensor& dy, const Tensor& index,
                                                    int64_t prefixed,
                                                    const RunningMeanBackward& mean) {
  check_tokens(dy, "dy [B, N, C] with adjacent channels");
  check_index(index, dy);
  const int64_t B = dy.size(0), N = dy.size(1), C = dy.size(2), K = index.size(1);
  const OnDevice device(dy);
  Tensor dx = torch::stable::new_empty(dy, {B, N, C});
  Tensor dkept = torch::stable::new_empty(dy, {B, K, C});
  Tensor ddelta = torch::stable::new_empty(dy, {B, 1, C});
  dispatch(dy.scalar_type(), [&](auto storage) {
    using S = decltype(storage);
    RecoverBackward<S> p{sizes_of(dy, K, prefixed), rows_of<const S>(dy), indices(index),
                         rows_of<S>(dx), rows_of<S>(dkept), rows_of<S>(ddelta), mean};
    p.sizes.vectors = all_vectors(C, p.dy, p.dx, p.dkept, p.ddelta);
    start(p, device.stream());
  });
  return {dx, dkept, ddelta};
}

}  // namespace

std::tuple<Tensor, Tensor> token_shrink(const Tensor& x, const Tensor& importance, int64_t keep,
                                        const std::optional<Tensor>& prefix) {
  check_tokens(x, "x [B, N, C] with adjacent channels");
  check_importance(importance, x);
  expect(keep >= 0 && keep < x.size(1), "0 <= keep < N");
  if (prefix) check_rows(*prefix, x, "prefix [B, P, C] like x, with adjacent channels");
  const int64_t B = x.size(0), C = x.size(2), P = prefix ? prefix->size(1) : 0;
  check_prefix(P);
  const OnDevice device(x);
  Tensor tokens = torch::stable::new_empty(x, {B, P + keep + 1, C});
  Tensor index = torch::stable::new_empty(x, {B, keep}, ScalarType::Long);
  dispatch(x.scalar_type(), [&](auto storage) {
    using S = decltype(storage);
    Shrink<S> p{sizes_of(x, keep, P), rows_of<const S>(x), rows_of<const S>(prefix ? *prefix : x),
                static_cast<const float*>(importance.const_data_ptr()), rows_of<S>(tokens),
                static_cast<int64_t*>(index.mutable_data_ptr())};
    p.sizes.vectors = all_vectors(C, p.x, p.prefix, p.tokens);
    start(p, device.stream());
  });
  return {tokens, index};
}

std::tuple<Tensor, Tensor> token_shrink_backward(const Tensor& dtokens, const Tensor& x,
                                                 const Tensor& importance, const Tensor& index) {
  check_tokens(x, "x [B, N, C] with adjacent channels");
  check_importance(importance, x);
  check_index(index, x);
  check_rows(dtokens, x, "dtokens [B, P + K + 1, C] like x, with adjacent channels");
  const int64_t K = index.size(1), P = dtokens.size(1) - K - 1;
  expect(P >= 0 && K < x.size(1), "dtokens [B, P + K + 1, C] and fewer than N kept");
  const OnDevice device(x);
  Tensor dx = torch::stable::new_empty(x, {x.size(0), x.size(1), x.size(2)});
  Tensor dimportance = torch::stable::new_empty(importance, importance.sizes());
  dispatch(x.scalar_type(), [&](auto storage) {
    using S = decltype(storage);
    ShrinkBackward<S> p{sizes_of(x, K, P), rows_of<const S>(dtokens), rows_of<const S>(x),
                        static_cast<const float*>(importance.const_data_ptr()), indices(index),
                        rows_of<S>(dx), static_cast<float*>(dimportance.mutable_data_ptr())};
    p.sizes.vectors = all_vectors(x.size(2), p.dtokens, p.x, p.dx);
    start(p, device.stream());
  });
  return {dx, dimportance};
}

Tensor token_recover(const Tensor& x, const Tensor& index, const Tensor& kept,
                     const Tensor& delta) {
  return recover(x, index, kept, delta, 0, {});
}

std::tuple<Tensor, Tensor, Tensor> token_recover_backward(const Tensor& dy, const Tensor& index) {
  return recover_backward(dy, index, 0, {});
}

std::tuple<Tensor, Tensor> token_recover_with_importance(
    const Tensor& x, const Tensor& index, const Tensor& kept, const Tensor& delta,
    const Tensor& importance, const Tensor& score, double trade_off) {
  expect(x.dim() == 3 && index.dim() == 2 && score.dim() == 2, "x [B, N, C], index, score");
  const int64_t prefixed = score.size(1) - index.size(1) - 1;
  check_prefix(prefixed);
  check_numbers(importance, x, x.size(1), "importance [B, N], adjacent, of float32");
  check_numbers(score, x, score.size(1), "score [B, P + K + 1], adjacent, of float32");
  const OnDevice device(x);
  Tensor updated = torch::stable::new_empty(importance, importance.sizes());
  Tensor y = recover(x, index, kept, delta, prefixed,
                     {floats(importance), floats(score), importance.stride(0), score.stride(0),
                      static_cast<float>(trade_off), new_floats(updated)});
  return {y, updated};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> token_recover_with_importance_backward(
    const Tensor& dy, const Tensor& dupdated, const Tensor& index, int64_t prefixed,
    double trade_off) {
  expect(dy.dim() == 3 && index.dim() == 2, "dy [B, N, C], index [B, K]");
  check_prefix(prefixed);
  check_numbers(dupdated, dy, dy.size(1), "dupdated [B, N] of float32");
  expect(dupdated.is_contiguous(), "dupdated contiguous");
  const OnDevice device(dy);
  Tensor dimportance = torch::stable::new_empty(dupdated, dupdated.sizes());
  Tensor dscore = torch::stable::new_empty(dupdated, {dy.size(0), prefixed + index.size(1) + 1});
  auto [dx, dkept, ddelta] = recover_backward(
      dy, index, prefixed,
      {floats(dupdated), static_cast<float>(trade_off), static_cast<float>(1 - trade_off),
       new_floats(dimportance), new_floats(dscore)});
  return {dx, dkept, ddelta, dimportance, dscore};
}

}  // namespace uk::cuda
