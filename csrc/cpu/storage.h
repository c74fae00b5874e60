// How half-precision numbers lie in memory.
#pragma once

#include <cstdint>

namespace uk {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

}  // namespace uk
