// What a kernel's tensor copies read of a map: opaque, made by the driver.
#pragma once

#include "../common/tensor_map.h"

namespace uk::cuda {

struct alignas(128) TensorMap {
  unsigned char opaque[128];
};

// Of boxes that takes_tensor; false where the driver has no such maps.
bool encode(TensorMap& to, const TensorBoxes& from);

}  // namespace uk::cuda
