// What the host side of every CPU operator shares.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <stdexcept>
#include <string>

#include "cpu_features.h"
#include "storage.h"

namespace uk {

// The type arithmetic outside the kernels uses for storage type S.
template <class S>
struct host {
  using type = S;
};
template <>
struct host<bf16> {
  using type = c10::BFloat16;
};
template <>
struct host<f16> {
  using type = c10::Half;
};

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The Python operators check the same, with the figures in their errors; this keeps a direct call
// from reading outside a tensor.
inline void check(bool fits, const char* what) {
  if (!fits) throw std::runtime_error(std::string("uniformer_kernels: expected ") + what);
}

// Calls run(a number of that storage type) where kernels keep sums in float32.
template <class Run>
void dispatch_narrow(torch::headeronly::ScalarType type, const char* what, Run run) {
  using torch::headeronly::ScalarType;
  switch (type) {
    case ScalarType::Float: return run(float{});
    case ScalarType::BFloat16: return run(bf16{});
    case ScalarType::Half: return run(f16{});
    default: check(false, what);
  }
}

// With channels side by side and nothing between rows.
inline torch::stable::Tensor adjacent(const torch::stable::Tensor& t) {
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

// The table `kernels<S>()` of the instruction set this processor runs.
#ifdef UK_X86
#define UK_KERNELS(kernels, S)                                                     \
  (instruction_set() >= InstructionSet::avx512 ? avx512::kernels<S>()              \
   : instruction_set() == InstructionSet::avx2 ? avx2::kernels<S>()                \
                                               : portable::kernels<S>())
#else
#define UK_KERNELS(kernels, S) portable::kernels<S>()
#endif

}  // namespace uk
