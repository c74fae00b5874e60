// What was built and what runs it: free of torch, so that it answers when the operators cannot be
// loaded.

#include <pybind11/pybind11.h>

#include "../cpu/cpu_features.h"
#include "manifest.h"  // UK_MANIFEST, written by setup.py

namespace {

pybind11::dict cpu_features() {
  pybind11::dict features;
#ifdef UK_X86
  __builtin_cpu_init();
#define UK_FEATURE(name) features[name] = static_cast<bool>(__builtin_cpu_supports(name))
  UK_FEATURE("avx2");
  UK_FEATURE("fma");
  UK_FEATURE("f16c");
  UK_FEATURE("avx512f");
  UK_FEATURE("avx512bw");
  UK_FEATURE("avx512dq");
  UK_FEATURE("avx512vl");
  UK_FEATURE("avx512bf16");
#undef UK_FEATURE
#endif
  return features;
}

// From the least to the best.
pybind11::list instruction_sets() {
  pybind11::list names;
  for (const uk::InstructionSet set : uk::kInstructionSets)
    if (set <= uk::best_instruction_set()) names.append(uk::name(set));
  return names;
}

}  // namespace

PYBIND11_MODULE(_introspect, m) {
  m.doc() = "Build manifest and processor features of uniformer_kernels.";
  m.def("manifest", [] { return UK_MANIFEST; }, "The build manifest, as JSON.");
  m.def("cpu_features", &cpu_features, "Instruction-set extensions of this processor.");
  m.def("instruction_sets", &instruction_sets,
        "The compilations of the CPU kernels that this processor runs, the best one last.");
  m.def("instruction_set", [] { return uk::name(uk::instruction_set()); },
        "The compilation of the CPU kernels that is used.");
}
