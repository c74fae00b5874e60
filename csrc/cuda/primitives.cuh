// What the kernels need of the machine beyond CUDA C++: asynchronous copies, storage types, shared
// memory.  The tests run the kernels on a processor with these written another way.
#ifndef UK_PRIMITIVES_CUH
#define UK_PRIMITIVES_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "../cpu/storage.h"
#include "tensor_map.h"

namespace uk::cuda {

__device__ __forceinline__ unsigned char* shared_memory() {
  extern __shared__ __align__(kTensorAlignment) unsigned char memory[];
  return memory;
}

__device__ __forceinline__ unsigned address_of(const void* at) {
  return static_cast<unsigned>(__cvta_generic_to_shared(at));
}

// 16 bytes to shared memory, zeros unless `inside`; `from` is not read then.
__device__ __forceinline__ void copy_async(void* to, const void* from, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address_of(to)), "l"(from),
               "r"(inside ? 16 : 0)
               : "memory");
}
// Ends a group of copies, perhaps an empty one.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until all of this thread's groups but the last N have arrived.
template <int N>
__device__ __forceinline__ void await_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// A barrier in shared memory.  Its phase ends when so many threads have arrived and all bytes that
// are expected of copies; then the next one begins.
struct Barrier {
  uint64_t state;
};

// Barriers as they are used here came with compute capability 9.0: before it, no code follows this.
__device__ __forceinline__ void need_tma() {
#if __CUDA_ARCH__ < 900
  __trap();
  __builtin_unreachable();
#endif
}
__device__ __forceinline__ void begin_barrier(Barrier* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address_of(barrier)), "r"(arrivals)
               : "memory");
}
// What this thread wrote to shared memory, barriers included, comes before the copies it starts.
__device__ __forceinline__ void fence_copies() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ __forceinline__ void expect_bytes(Barrier* barrier, int bytes) {
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(address_of(barrier)),
               "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void arrive(Barrier* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address_of(barrier)) : "memory");
}
// Until the phase has ended: that under way if its number is as odd as `parity`, else the last one.
__device__ __forceinline__ void await_phase(Barrier* barrier, int parity) {
  unsigned ended;
  do {
    asm volatile(
        "{\n"
        ".reg .pred ended;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 ended, [%1], %2;\n"
        "selp.u32 %0, 1, 0, ended;\n"
        "}"
        : "=r"(ended)
        : "r"(address_of(barrier)), "r"(parity)
        : "memory");
  } while (!ended);
}
// The box from these coordinates on, zeros where the map has none.
__device__ __forceinline__ void copy_box(void* to, const TensorMap& map, int c, int w, int h, int t,
                                         int b, Barrier* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4, %5, %6}], [%7];" ::"r"(address_of(to)),
      "l"(&map), "r"(c), "r"(w), "r"(h), "r"(t), "r"(b), "r"(address_of(barrier))
      : "memory");
}

// Another lane's number: of the lane so far below, or of the one whose index differs in these bits.
template <class T>
__device__ __forceinline__ T lane_below(T own, int distance) {
  return __shfl_up_sync(0xffffffffu, own, distance);
}
template <class T>
__device__ __forceinline__ T lane_across(T own, int bits) {
  return __shfl_xor_sync(0xffffffffu, own, bits);
}

// sums [16, 8] += a [16, 16] b [16, 8], of which a lane has the parts of mma.m16n8k16.
template <class S>
__device__ __forceinline__ void multiply_tiles(float (&sums)[4], const unsigned (&a)[4],
                                               const unsigned (&b)[2]);
template <>
__device__ __forceinline__ void multiply_tiles<bf16>(float (&sums)[4], const unsigned (&a)[4],
                                                     const unsigned (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
__device__ __forceinline__ void multiply_tiles<f16>(float (&sums)[4], const unsigned (&a)[4],
                                                    const unsigned (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Two neighbouring channels.
__device__ __forceinline__ float2 load_pair(const float* at) {
  return *reinterpret_cast<const float2*>(at);
}
__device__ __forceinline__ float2 load_pair(const bf16* at) {
  const unsigned bits = *reinterpret_cast<const unsigned*>(at);
  return {__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u)};
}
__device__ __forceinline__ float2 load_pair(const f16* at) {
  return __half22float2(*reinterpret_cast<const __half2*>(at));
}

__device__ __forceinline__ void store_pair(float* at, float low, float high) {
  *reinterpret_cast<float2*>(at) = {low, high};
}
template <class S>  // of 16 bits
__device__ __forceinline__ void store_pair(S* at, S low, S high) {
  *reinterpret_cast<unsigned*>(at) = low.bits | unsigned(high.bits) << 16;
}

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(bf16 x) { return __uint_as_float(unsigned(x.bits) << 16); }
__device__ __forceinline__ float widen(f16 x) { return __half2float(__ushort_as_half(x.bits)); }

template <class S>
__device__ __forceinline__ S narrow(float x);
template <>
__device__ __forceinline__ float narrow<float>(float x) { return x; }
template <>
__device__ __forceinline__ bf16 narrow<bf16>(float x) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
}
template <>
__device__ __forceinline__ f16 narrow<f16>(float x) {
  return {__half_as_ushort(__float2half_rn(x))};
}

}  // namespace uk::cuda

#endif
