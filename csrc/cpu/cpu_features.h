// Which compilation of the CPU kernels this processor runs.
#pragma once

#include <cstdlib>
#include <cstring>

#if defined(__x86_64__) || defined(_M_X64)
#define UK_X86
#endif

#if defined(UK_X86) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace uk {

// Whether this processor has AMX, and Linux lets this process use its large registers.
inline bool may_use_tiles() {
#if defined(UK_X86) && defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

enum class InstructionSet { portable, avx2, avx512, avx512_bf16, amx };

inline constexpr InstructionSet kInstructionSets[] = {
    InstructionSet::portable, InstructionSet::avx2, InstructionSet::avx512,
    InstructionSet::avx512_bf16, InstructionSet::amx};

inline const char* name(InstructionSet set) {
  constexpr const char* names[] = {"portable", "avx2", "avx512", "avx512_bf16", "amx"};
  return names[static_cast<int>(set)];
}

// Each set contains the one before it: whether the processor has what `set` adds.
inline bool adds(InstructionSet set) {
#ifdef UK_X86
  __builtin_cpu_init();
  switch (set) {
    case InstructionSet::portable:
      return true;
    case InstructionSet::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("f16c");
    case InstructionSet::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    case InstructionSet::avx512_bf16:
      return __builtin_cpu_supports("avx512bf16");
    case InstructionSet::amx:
      return may_use_tiles();
  }
#endif
  return set == InstructionSet::portable;
}

inline InstructionSet best_instruction_set() {
  InstructionSet best = InstructionSet::portable;
  for (const InstructionSet set : kInstructionSets) {
    if (!adds(set)) break;
    best = set;
  }
  return best;
}

// The set in use: what the processor is best at, or the lesser one UNIFORMER_KERNELS_CPU names.
inline InstructionSet instruction_set() {
  static const InstructionSet set = [] {
    const InstructionSet best = best_instruction_set();
    const char* wanted = std::getenv("UNIFORMER_KERNELS_CPU");
    for (const InstructionSet named : kInstructionSets)
      if (wanted && !std::strcmp(wanted, name(named))) return named < best ? named : best;
#ifdef UK_X86
    // Where AMX is missing, or not allowed, Intel's dot products are slower than float32's FMA.
    if (best == InstructionSet::avx512_bf16 && __builtin_cpu_is("intel"))
      return InstructionSet::avx512;
#endif
    return best;
  }();
  return set;
}

}  // namespace uk
