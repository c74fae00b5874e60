// Neighbouring channels, read and written as one.
#pragma once

namespace uk::cuda {

template <class S, int LENGTH>
struct alignas(LENGTH * sizeof(S)) Channels {
  S at[LENGTH];
};
template <int LENGTH, class S>
__device__ __forceinline__ Channels<S, LENGTH> load_channels(const S* at) {
  return *reinterpret_cast<const Channels<S, LENGTH>*>(at);
}
template <class S, int LENGTH>
__device__ __forceinline__ void store_channels(S* at, const Channels<S, LENGTH>& channels) {
  *reinterpret_cast<Channels<S, LENGTH>*>(at) = channels;
}

}  // namespace uk::cuda
