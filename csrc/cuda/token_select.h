// Choosing tokens by importance and putting them back: what the host and the kernels agree on.
#pragma once

#include <cstdint>

#include "../common/token_select_plan.h"
#include "../cpu/storage.h"

namespace uk::cuda {

// A sequence [B, N, C] with adjacent channels; strides in elements.
template <class S>
struct Rows {
  S* data;
  int64_t sample, row;
};

template <class S>
bool has_vectors(const Rows<S>& rows, int64_t C) {
  constexpr int64_t kLength = kVector / sizeof(S);
  return C % kLength == 0 && rows.sample % kLength == 0 && rows.row % kLength == 0 &&
         reinterpret_cast<uintptr_t>(rows.data) % kVector == 0;
}

// What every kernel is told; `vectors`: all rows may be read 16 bytes at once.
struct TokenSizes {
  int64_t B;
  int N, K, P, C;  // tokens, kept ones, those in front of them, channels
  bool vectors;
};

template <class S>
struct Shrink {
  TokenSizes sizes;
  Rows<const S> x, prefix;
  const float* importance;
  Rows<S> tokens;
  int64_t* index;
};

template <class S>
struct ShrinkBackward {
  TokenSizes sizes;
  Rows<const S> dtokens, x;
  const float* importance;
  const int64_t* index;
  Rows<S> dx;
  float* dimportance;
};

// The importance [B, N] that goes on, from the old one and the score [B, P + K + 1], whose samples
// lie so far apart; without an importance there is nothing to do.
struct RunningMean {
  const float *importance, *score;
  int64_t importance_sample, score_sample;
  float trade_off;
  float* updated;
};

struct RunningMeanBackward {
  const float* dupdated;
  float trade_off, rest;  // which is 1 less the former
  float *dimportance, *dscore;
};

template <class S>
struct Recover {
  TokenSizes sizes;
  Rows<const S> x, kept, delta;
  const int64_t* index;
  Rows<S> y;
  RunningMean mean;
};

template <class S>
struct RecoverBackward {
  TokenSizes sizes;
  Rows<const S> dy;
  const int64_t* index;
  Rows<S> dx, dkept, ddelta;
  RunningMeanBackward mean;
};

// Compiled once per storage type.
template <class S>
void start(const Shrink<S>& p, void* stream);
template <class S>
void start(const ShrinkBackward<S>& p, void* stream);
template <class S>
void start(const Recover<S>& p, void* stream);
template <class S>
void start(const RecoverBackward<S>& p, void* stream);

}  // namespace uk::cuda
