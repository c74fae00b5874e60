// What CUDA has to say against a call, as an exception.
#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace uk::cuda {

inline void check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // forgotten, or the next launch would be blamed for it
  throw std::runtime_error(std::string("uniformer_kernels: CUDA: ") + what + ": " +
                           cudaGetErrorString(error));
}

}  // namespace uk::cuda
