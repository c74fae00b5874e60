// Which instantiation of the kernels serves a plan.
#pragma once

#include <type_traits>

#include "depthwise_conv_kernel.cuh"
#include "toeplitz_gradient_kernel.cuh"

namespace uk::cuda {

// select(size of the kernel's frames, columns of a tile, whether TMA stages them), all as types.
template <class Select>
void for_tile(const DepthwiseSizes& s, const DepthwisePlan& p, Select select) {
  const auto with_staging = [&](auto K, auto COLUMNS) {
    p.tma ? select(K, COLUMNS, std::true_type{}) : select(K, COLUMNS, std::false_type{});
  };
  const auto with_columns = [&](auto K) {
    p.columns == 7 ? with_staging(K, std::integral_constant<int, 7>{})
                   : with_staging(K, std::integral_constant<int, 5>{});
  };
  switch (s.kh) {
    case 1:
      return with_columns(std::integral_constant<int, 1>{});
    case 3:
      return with_columns(std::integral_constant<int, 3>{});
    default:
      return with_columns(std::integral_constant<int, 5>{});
  }
}

// `launch(kernel, arguments)` starts a kernel.
template <class S, class Launch>
void start_with(Launch launch, const Forward<S>& p) {
  if constexpr (sizeof(S) == 2) {
    if (p.plan.toeplitz) return launch(p.sizes.kt == 1 ? toeplitz<S, 1> : toeplitz<S, 5>, p);
  }
  if (!p.plan.tiled) return launch(general_forward_kernel<S>, p);
  for_tile(p.sizes, p.plan,
           [&](auto K, auto COLUMNS, auto TMA) { launch(forward<S, K(), COLUMNS(), TMA()>, p); });
}

template <class S, class Launch>
void start_with(Launch launch, const WeightGradient<S>& p) {
  if constexpr (sizeof(S) == 2) {
    if (p.plan.toeplitz)
      return launch(p.sizes.kt == 1 ? toeplitz_weight_gradient<S, 1> : toeplitz_weight_gradient<S, 5>,
                    p);
  }
  if (!p.plan.tiled) return launch(general_weight_gradient_kernel<S>, p);
  for_tile(p.sizes, p.plan, [&](auto K, auto COLUMNS, auto TMA) {
    launch(weight_gradient<S, K(), COLUMNS(), TMA()>, p);
  });
}

}  // namespace uk::cuda
