// What the host side of every CUDA operator shares.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <stdexcept>
#include <string>

#include "../cpu/storage.h"
#include "error.h"

// It is in libtorch_cuda, which PyTorch for processors has not got: weak, the library loads there.
#pragma weak aoti_torch_get_current_cuda_stream

namespace uk::cuda {

// The tensor's device made the current one, and its current stream.
class OnDevice {
 public:
  explicit OnDevice(const torch::stable::Tensor& x)
      : index_(x.get_device()), guard_(index_) {
    check_cuda(cudaSetDevice(index_), "device");
  }

  void* stream() const {
    void* found = nullptr;
    if (aoti_torch_get_current_cuda_stream(index_, &found) != 0)
      throw std::runtime_error("uniformer_kernels: CUDA: no current stream");
    return found;
  }

  // Bytes of shared memory a block may ask for.
  int shared_limit() const {
    int bytes = 0;
    check_cuda(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, index_),
               "shared memory of a block");
    return bytes;
  }

 private:
  int index_;
  torch::stable::accelerator::DeviceGuard guard_;
};

inline void expect(bool fits, const char* what) {
  if (!fits) throw std::runtime_error(std::string("uniformer_kernels: expected ") + what);
}

template <class F>
auto dispatch(torch::headeronly::ScalarType type, F run) {
  using torch::headeronly::ScalarType;
  switch (type) {
    case ScalarType::Float:
      return run(float{});
    case ScalarType::BFloat16:
      return run(bf16{});
    case ScalarType::Half:
      return run(f16{});
    default:
      throw std::runtime_error("uniformer_kernels: expected float32, bfloat16 or float16");
  }
}

}  // namespace uk::cuda
