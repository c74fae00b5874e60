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

void check_importance(const Tensor& importance, const Tensor& x) {
  expect(importance.dim() == 2 && importance.size(0) == x.size(0) &&
             importance.size(1) == x.size(1) && importance.is_contiguous() &&
             importance.scalar_type() == ScalarType::Float &&
             importance.get_device() == x.get_device(),
         "importance [B, N], contiguous, of float32, on x's device");
}

void check_index(const Tensor& index, const Tensor& x) {
  expect(index.dim() == 2 && index.size(0) == x.size(0) && index.size(1) <= x.size(1) &&
             index.is_contiguous() && index.scalar_type() == ScalarType::Long &&
             index.get_device() == x.get_device(),
         "index [B, K], contiguous, of int64, on x's device");
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

}  // namespace

std::tuple<Tensor, Tensor> token_shrink(const Tensor& x, const Tensor& importance, int64_t keep,
                                        const std::optional<Tensor>& prefix) {
  check_tokens(x, "x [B, N, C] with adjacent channels");
  check_importance(importance, x);
  expect(keep >= 0 && keep < x.size(1), "0 <= keep < N");
  if (prefix) check_rows(*prefix, x, "prefix [B, P, C] like x, with adjacent channels");
  const int64_t B = x.size(0), C = x.size(2), P = prefix ? prefix->size(1) : 0;
  expect(P < (int64_t{1} << 31) - kMostTokens, "a shorter prefix");
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
  check_tokens(x, "x [B, N, C] with adjacent channels");
  check_index(index, x);
  check_rows(kept, x, "kept [B, K, C] like x, with adjacent channels");
  check_rows(delta, x, "delta [B, 1, C] like x, with adjacent channels");
  expect(kept.size(1) == index.size(1) && delta.size(1) == 1, "kept [B, K, C], delta [B, 1, C]");
  const OnDevice device(x);
  Tensor y = torch::stable::new_empty(x, {x.size(0), x.size(1), x.size(2)});
  dispatch(x.scalar_type(), [&](auto storage) {
    using S = decltype(storage);
    Recover<S> p{sizes_of(x, index.size(1), 0), rows_of<const S>(x), rows_of<const S>(kept),
                 rows_of<const S>(delta), indices(index), rows_of<S>(y)};
    p.sizes.vectors = all_vectors(x.size(2), p.x, p.kept, p.delta, p.y);
    start(p, device.stream());
  });
  return y;
}

std::tuple<Tensor, Tensor, Tensor> token_recover_backward(const Tensor& dy, const Tensor& index) {
  check_tokens(dy, "dy [B, N, C] with adjacent channels");
  check_index(index, dy);
  const int64_t B = dy.size(0), N = dy.size(1), C = dy.size(2), K = index.size(1);
  const OnDevice device(dy);
  Tensor dx = torch::stable::new_empty(dy, {B, N, C});
  Tensor dkept = torch::stable::new_empty(dy, {B, K, C});
  Tensor ddelta = torch::stable::new_empty(dy, {B, 1, C});
  dispatch(dy.scalar_type(), [&](auto storage) {
    using S = decltype(storage);
    RecoverBackward<S> p{sizes_of(dy, K, 0), rows_of<const S>(dy), indices(index),
                         rows_of<S>(dx), rows_of<S>(dkept), rows_of<S>(ddelta)};
    p.sizes.vectors = all_vectors(C, p.dy, p.dx, p.dkept, p.ddelta);
    start(p, device.stream());
  });
  return {dx, dkept, ddelta};
}

}  // namespace uk::cuda
