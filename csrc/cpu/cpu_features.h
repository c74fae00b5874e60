// Which compilation of the CPU kernels this processor runs.
#pragma once

#include <cstdlib>
#include <cstring>

#if defined(__x86_64__) || defined(_M_X64)
#define UK_X86
#endif

namespace uk {

enum class InstructionSet { portable, avx2, avx512 };

// The best set the processor has, or the lesser one UNIFORMER_KERNELS_CPU names (for tests).
inline InstructionSet instruction_set() {
  static const InstructionSet set = [] {
    InstructionSet best = InstructionSet::portable;
#ifdef UK_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("f16c"))
      best = InstructionSet::avx2;
    if (best == InstructionSet::avx2 && __builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq"))
      best = InstructionSet::avx512;
#endif
    const char* wanted = std::getenv("UNIFORMER_KERNELS_CPU");
    if (!wanted) return best;
    const InstructionSet named = !std::strcmp(wanted, "portable") ? InstructionSet::portable
                                 : !std::strcmp(wanted, "avx2")   ? InstructionSet::avx2
                                                                  : InstructionSet::avx512;
    return named < best ? named : best;
  }();
  return set;
}

inline const char* name(InstructionSet set) {
  return set == InstructionSet::avx512 ? "avx512"
         : set == InstructionSet::avx2 ? "avx2"
                                       : "portable";
}

}  // namespace uk
