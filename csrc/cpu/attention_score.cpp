// Joint attention on the CPU with how much of the first query's every token gets.

#include <algorithm>
#include <cmath>
#include <vector>

#include "host.h"
#include "memory.h"
#include "operators.h"

namespace uk {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr const char* kTypes = "qkv of float32, bfloat16 or float16";

// Queries of one head, or keys: those of one token behind those of another.
template <class S>
struct Rows {
  S* data;
  int64_t stride;

  S* operator[](int64_t row) const { return data + row * stride; }
};

// Those of head `index`, counted over all samples; keys are kind 1.
template <class S>
Rows<S> head(S* data, const Tensor& qkv, int64_t num_heads, int64_t kind, int64_t index) {
  const int64_t channels = qkv.size(2) / 3;
  return {data + index / num_heads * qkv.stride(0) + kind * channels +
              index % num_heads * (channels / num_heads),
          qkv.stride(1)};
}

template <class S>
float dot(const S* a, const S* b, int64_t count) {
  constexpr int64_t kLanes = 8;  // summed apart, as vectors can
  float sums[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int64_t lane = 0; lane < kLanes; ++lane)
      sums[lane] += static_cast<float>(a[i + lane]) * static_cast<float>(b[i + lane]);
  for (; i < count; ++i) sums[i % kLanes] += static_cast<float>(a[i]) * static_cast<float>(b[i]);
  float sum = 0.f;
  for (const float part : sums) sum += part;
  return sum;
}

// row [tokens] = softmax(scale query keys').
template <class S>
void softmax(const S* query, const Rows<const S>& keys, int64_t tokens, int64_t width, float scale,
             float* row) {
  for (int64_t n = 0; n < tokens; ++n) row[n] = scale * dot(query, keys[n], width);
  const float most = *std::max_element(row, row + tokens);
  float sum = 0.f;
  for (int64_t n = 0; n < tokens; ++n) sum += row[n] = std::exp(row[n] - most);
  for (int64_t n = 0; n < tokens; ++n) row[n] /= sum;
}

void check_score(const Tensor& qkv, int64_t num_heads, std::optional<int64_t> queries) {
  check(queries == 1 && num_heads > 0 && qkv.dim() == 3 && qkv.size(1) > 0,
        "one query, of at least one head and token");
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> joint_attention_with_score(const Tensor& qkv, int64_t num_heads,
                                                              std::optional<int64_t> queries,
                                                              double scale) {
  check_score(qkv, num_heads, queries);
  const auto [out, lse] = joint_attention(qkv, num_heads, scale);
  const int64_t batch = qkv.size(0), tokens = qkv.size(1), width = qkv.size(2) / 3 / num_heads;
  const Tensor rows = allocate(qkv, {batch, num_heads, tokens}, ScalarType::Float);
  Tensor score = allocate(qkv, {batch, tokens}, ScalarType::Float);
  float *all = static_cast<float*>(rows.mutable_data_ptr());
  float* mean = static_cast<float*>(score.mutable_data_ptr());
  dispatch_narrow(qkv.scalar_type(), kTypes, [&](auto storage) {
    using S = typename host<decltype(storage)>::type;
    const S* data = static_cast<const S*>(qkv.const_data_ptr());
    torch::stable::parallel_for(0, batch * num_heads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        softmax(head(data, qkv, num_heads, 0, i)[0], head(data, qkv, num_heads, 1, i), tokens, width,
                static_cast<float>(scale), all + i * tokens);
    });
  });
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t n = 0; n < tokens; ++n) {
      float sum = 0.f;
      for (int64_t h = 0; h < num_heads; ++h) sum += all[(b * num_heads + h) * tokens + n];
      mean[b * tokens + n] = sum / static_cast<float>(num_heads);
    }
  return {out, score, lse};
}

Tensor joint_attention_with_score_backward(const Tensor& dout, const Tensor& dscore,
                                           const Tensor& qkv, const Tensor& out, const Tensor& lse,
                                           int64_t num_heads, std::optional<int64_t> queries,
                                           double scale) {
  check_score(qkv, num_heads, queries);
  const int64_t batch = qkv.size(0), tokens = qkv.size(1), width = qkv.size(2) / 3 / num_heads;
  check(dscore.dim() == 2 && dscore.size(0) == batch && dscore.size(1) == tokens &&
            dscore.is_contiguous() && dscore.scalar_type() == ScalarType::Float,
        "dscore [B, N] of float32, contiguous");
  Tensor dqkv = joint_attention_backward(dout, qkv, out, lse, num_heads, scale);
  const float* all = static_cast<const float*>(dscore.const_data_ptr());
  dispatch_narrow(qkv.scalar_type(), kTypes, [&](auto storage) {
    using S = typename host<decltype(storage)>::type;
    const S* data = static_cast<const S*>(qkv.const_data_ptr());
    S* gradients = static_cast<S*>(dqkv.mutable_data_ptr());
    torch::stable::parallel_for(0, batch * num_heads, 1, [&](int64_t begin, int64_t end) {
      std::vector<float> row(tokens), dquery(width);
      for (int64_t i = begin; i < end; ++i) {
        const S* query = head(data, qkv, num_heads, 0, i)[0];
        const Rows<const S> keys = head(data, qkv, num_heads, 1, i);
        const Rows<S> dkeys = head(gradients, dqkv, num_heads, 1, i);
        S* dq = head(gradients, dqkv, num_heads, 0, i)[0];
        const float* gradient = all + i / num_heads * tokens;
        softmax(query, keys, tokens, width, static_cast<float>(scale), row.data());
        float mean = 0.f;
        for (int64_t n = 0; n < tokens; ++n) mean += row[n] * gradient[n];
        std::fill(dquery.begin(), dquery.end(), 0.f);
        for (int64_t n = 0; n < tokens; ++n) {
          const float slope =
              row[n] * (gradient[n] - mean) * static_cast<float>(scale / num_heads);
          for (int64_t c = 0; c < width; ++c) {
            dquery[c] += slope * static_cast<float>(keys[n][c]);
            dkeys[n][c] = static_cast<float>(dkeys[n][c]) + slope * static_cast<float>(query[c]);
          }
        }
        for (int64_t c = 0; c < width; ++c) dq[c] = static_cast<float>(dq[c]) + dquery[c];
      }
    });
  });
  return dqkv;
}

}  // namespace uk
