// Memory for the tensors that operators make.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

namespace uk {

inline int64_t element_size(torch::headeronly::ScalarType type) {
  using torch::headeronly::ScalarType;
  switch (type) {
    case ScalarType::Byte:
      return 1;
    case ScalarType::BFloat16:
    case ScalarType::Half:
      return 2;
    case ScalarType::Float:
      return 4;
    case ScalarType::Double:
    case ScalarType::Long:
      return 8;
    default:
      throw std::runtime_error("uniformer_kernels: expected a dtype that operators make");
  }
}

// A contiguous tensor without values, as torch::stable::new_empty makes one, but from malloc.
// PyTorch's memory is posix_memalign's, which in glibc takes more from the heap than it keeps: what a
// tensor gives back is too small for the next one of its size once something has settled beside it.
// The heap then grows with every forward pass, and each of its new pages is a fault.
inline torch::stable::Tensor allocate(const torch::stable::Tensor& like,
                                      torch::headeronly::IntHeaderOnlyArrayRef sizes,
                                      torch::headeronly::ScalarType type) {
  constexpr uintptr_t kLine = 64;  // bytes, and what PyTorch aligns to
  std::vector<int64_t> strides(sizes.size());
  int64_t bytes = element_size(type), stride = 1;
  for (size_t i = sizes.size(); i-- > 0; stride *= std::max<int64_t>(sizes[i], 1)) {
    strides[i] = stride;
    bytes *= sizes[i];
  }
  void* block = std::malloc(bytes + kLine);
  if (block == nullptr)
    throw std::runtime_error("uniformer_kernels: no memory for " + std::to_string(bytes) + " bytes");
  const uintptr_t next = reinterpret_cast<uintptr_t>(block) / kLine * kLine + kLine;
  void** data = reinterpret_cast<void**>(next);
  data[-1] = block;  // there is room: malloc's blocks are aligned to more than a pointer
  return torch::stable::from_blob(data, sizes, strides, like.device(), type,
                                  [](void* at) { std::free(static_cast<void**>(at)[-1]); });
}

inline torch::stable::Tensor allocate(const torch::stable::Tensor& like,
                                      torch::headeronly::IntHeaderOnlyArrayRef sizes) {
  return allocate(like, sizes, like.scalar_type());
}

}  // namespace uk
