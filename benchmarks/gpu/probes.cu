// What a GPU does with nothing but tensor-core instructions, and between kernels that do nothing.
// Compiled by benchmarks/gpu/probes.py; both return cudaError_t.

#include <cuda_bf16.h>
#include <cuda_runtime.h>

namespace {

constexpr int kSums = 8;  // products under way in a warp, so that none waits for another

// a [16, 16] b [16, 8] of bfloat16, summed in float32: 4096 operations.
__device__ void multiply(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__global__ void products(int steps, float* out) {
  // Any numbers will do; not zeros, with which a chip may stay cooler.
  const unsigned lane = threadIdx.x % 32, seed = 0x3f803f80u + lane * 0x00110011u;
  const unsigned a[4] = {seed, seed + 1, seed + 2, seed + 3}, b[2] = {seed ^ 0x80000000u, seed};
  float sums[kSums][4] = {};
  for (int step = 0; step < steps; ++step)
#pragma unroll
    for (int i = 0; i < kSums; ++i) multiply(sums[i], a, b);
  float total = 0.f;
#pragma unroll
  for (int i = 0; i < kSums; ++i) total += sums[i][0] + sums[i][1] + sums[i][2] + sums[i][3];
  out[blockIdx.x * blockDim.x + threadIdx.x] = total;
}

// Reads what the kernel before it wrote; with programmatic launches it starts before that ends.
__global__ void link(float* data) {
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
  data[threadIdx.x] += 1.f;
#if __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

}  // namespace

// blocks x 8 warps x steps x 8 products; out [blocks, 256].
extern "C" int multiply_in_registers(int blocks, int steps, float* out, cudaStream_t stream) {
  products<<<blocks, 256, 0, stream>>>(steps, out);
  return cudaGetLastError();
}

// `count` kernels that depend on each other; data [32].
extern "C" int chain(int count, int programmatic, float* data, cudaStream_t stream) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(1), config.blockDim = dim3(32), config.stream = stream;
  config.attrs = &attribute, config.numAttrs = programmatic ? 1 : 0;
  for (int i = 0; i < count; ++i)
    if (const cudaError_t error = cudaLaunchKernelEx(&config, link, data)) return error;
  return cudaSuccess;
}
