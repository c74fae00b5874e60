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

}  // namespace uk::cuda

#endif
