// Tensor maps, made by the driver.  It is asked for at run time: libcuda is not linked, so that the
// library loads where there is none.

#include "tensor_map.h"

#include <cuda.h>
#include <cuda_runtime_api.h>

namespace uk::cuda {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);
constexpr unsigned kSince = 12000;  // the CUDA that brought it

Encode find() {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result{};
  const cudaError_t error = cudaGetDriverEntryPointByVersion(
      "cuTensorMapEncodeTiled", &found, kSince, cudaEnableDefault, &result);
  if (error != cudaSuccess) cudaGetLastError();  // forgotten, or the next launch would be blamed
  return error == cudaSuccess && result == cudaDriverEntryPointSuccess
             ? reinterpret_cast<Encode>(found)
             : nullptr;
}

template <class To, size_t N>
std::array<To, N> narrowed(const std::array<int64_t, N>& from) {
  std::array<To, N> to;
  for (size_t i = 0; i < N; ++i) to[i] = static_cast<To>(from[i]);
  return to;
}

}  // namespace

bool encode(TensorMap& to, const TensorBoxes& from) {
  static_assert(sizeof(CUtensorMap) == sizeof(TensorMap));
  static const Encode encode_tiled = find();
  if (encode_tiled == nullptr) return false;
  const auto extent = narrowed<cuuint64_t>(from.extent);
  const auto stride = narrowed<cuuint64_t>(from.stride);
  const auto box = narrowed<cuuint32_t>(from.box);
  const cuuint32_t steps[kTensorAxes] = {1, 1, 1, 1, 1};
  // Numbers are bits here: copies change none of them, and zeros are zeros in every type.
  return encode_tiled(reinterpret_cast<CUtensorMap*>(&to),
                      from.size == 4 ? CU_TENSOR_MAP_DATA_TYPE_UINT32
                                     : CU_TENSOR_MAP_DATA_TYPE_UINT16,
                      kTensorAxes, const_cast<void*>(from.base), extent.data(), stride.data(),
                      box.data(), steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_NONE,
                      CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace uk::cuda
