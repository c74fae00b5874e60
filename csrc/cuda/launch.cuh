// Starts kernels.  The tests have another, for a processor.
#ifndef UK_LAUNCH_CUH
#define UK_LAUNCH_CUH

#include <cstdint>

#include "error.h"

namespace uk::cuda {

template <class Arguments>
void launch(void (*kernel)(Arguments), int64_t grid, int threads, int shared, void* stream,
            const Arguments& arguments) {
  if (grid == 0) return;
  if (shared > 48 * 1024)  // more has to be asked for
    check_cuda(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                    cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
               "shared memory");
  kernel<<<static_cast<unsigned>(grid), threads, shared, static_cast<cudaStream_t>(stream)>>>(
      arguments);
  check_cuda(cudaGetLastError(), "launch");
}

// The architecture that a kernel's code for the current device was written in: 90 for compute_90.
template <class Arguments>
int architecture_of(void (*kernel)(Arguments)) {
  cudaFuncAttributes attributes{};
  check_cuda(cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel)), "kernel");
  return attributes.ptxVersion;
}

}  // namespace uk::cuda

#endif
