// What the threads of shim.h and their tensor copies know of each other.
#pragma once

#include <functional>
#include <string>

namespace uk::shim {

// From the last thread to the first, with tensor copies that arrive as early as they can.
bool reversed();
int shared_size();  // bytes of the block's memory

// This thread waits at a barrier of tensor copies until it is ready; `what` it waits for is told if
// that never comes.
void wait(const void* barrier, std::function<bool()> ready, std::function<std::string()> what);

// Completes a tensor copy that is to arrive at a barrier; false if none is under way.
bool land_copy(const void* barrier);
// None may be under way any more.
void end_copies();

}  // namespace uk::shim
