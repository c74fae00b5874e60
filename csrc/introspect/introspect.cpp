// What runs the kernels, and how calls are divided: free of torch, so that it answers when the
// operators cannot be loaded.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>

#include "../common/depthwise_conv_plan.h"
#include "../common/token_select_plan.h"
#include "../cpu/cpu_features.h"
#include "multiply_adds.h"

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

pybind11::dict depthwise_conv_plan(const std::array<int64_t, 5>& shape,
                                   const std::array<int, 3>& kernel, int size, int architecture,
                                   bool gradient, uk::cuda::By by) {
  const auto [B, T, H, W, C] = shape;
  const uk::cuda::DepthwiseSizes s{B, T, H, W, C, kernel[0], kernel[1], kernel[2]};
  const int limit = uk::cuda::shared_limit(architecture);
  const uk::cuda::DepthwisePlan p =
      gradient ? uk::cuda::choose_weight_gradient(s, size, limit, by)
               : uk::cuda::choose_forward(s, size, limit, by);
  pybind11::dict d;
  d["tiled"] = p.tiled;
  d["toeplitz"] = p.toeplitz;
  d["tma"] = p.tma;
  d["rows"] = uk::cuda::kRows;
  d["columns"] = p.columns;
  d["channels"] = p.channels;
  d["tiles_down"] = p.tiles_down;
  d["tiles_across"] = p.tiles_across;
  d["channel_blocks"] = p.channel_blocks;
  d["down"] = p.down;
  d["across"] = p.across;
  d["chunks"] = p.chunks;
  d["frames"] = p.frames;
  d["parts"] = p.parts;
  d["threads"] = p.threads;
  d["grid"] = p.grid;
  d["shared"] = p.shared;
  d["shared_limit"] = limit;
  if (p.tma) {
    d["box"] = uk::cuda::box_of(p, s.kh, s.kh, size);
    d["outer_box"] = uk::cuda::box_of(p, s.kh, 1, size);
  }
  return d;
}

// `stride` in elements, `base` an address.
pybind11::dict tensor_boxes(uintptr_t base, int size, const uk::cuda::Axes& box,
                            const uk::cuda::Axes& shape, const uk::cuda::Axes& stride) {
  int64_t strides[uk::cuda::kTensorAxes];
  std::copy(stride.begin(), stride.end(), strides);
  const auto m =
      uk::cuda::tensor_boxes(reinterpret_cast<const void*>(base), size, box, shape, strides);
  pybind11::dict d;
  d["fits"] = uk::cuda::takes_tensor(m);
  d["extent"] = m.extent;
  d["stride"] = m.stride;
  return d;
}

pybind11::dict token_select_plan(int64_t N, int64_t C) {
  pybind11::dict d;
  d["threads"] = uk::cuda::kTokenThreads;
  d["slices"] = uk::cuda::slices(C);
  d["channels"] = uk::cuda::kSlice;
  d["token_blocks"] = uk::cuda::token_blocks(N);
  d["tokens"] = uk::cuda::kTokens;
  d["most_tokens"] = uk::cuda::kMostTokens;
  d["shrink"] = uk::cuda::choosing_bytes(N);
  d["shrink_backward"] = uk::cuda::marking_bytes(N);
  d["importance_gradient"] = uk::cuda::marking_bytes(N);
  d["recover"] = uk::cuda::marking_bytes(uk::cuda::kTokens);
  d["recover_backward"] = uk::cuda::adding_bytes(N);
  return d;
}

}  // namespace

PYBIND11_MODULE(_introspect, m) {
  m.doc() = "Processor features and launch plans of uniformer_kernels.";
  pybind11::enum_<uk::cuda::By>(m, "By", "Which CUDA kernels of a depthwise convolution.")
      .value("tiles", uk::cuda::By::tiles)
      .value("products", uk::cuda::By::products)
      .value("tma", uk::cuda::By::tma);
  m.def("cpu_features", &cpu_features, "Instruction-set extensions of this processor.");
  m.def("instruction_sets", &instruction_sets,
        "The compilations of the CPU kernels that this processor runs, the best one last.");
  m.def("instruction_set", [] { return uk::name(uk::instruction_set()); },
        "The compilation of the CPU kernels that is used.");
  m.def("depthwise_conv_plan", &depthwise_conv_plan, pybind11::arg("shape"),
        pybind11::arg("kernel"), pybind11::arg("size"), pybind11::arg("architecture"),
        pybind11::arg("gradient") = false, pybind11::arg("by") = uk::cuda::By::tiles,
        "How the CUDA kernels divide a depthwise convolution of [B, T, H, W, C] or its weight "
        "gradient, by what is asked for where it can serve: elements of `size` bytes, architecture "
        "90 for sm_90.");
  m.def("tensor_boxes", &tensor_boxes, pybind11::arg("base"), pybind11::arg("size"),
        pybind11::arg("box"), pybind11::arg("shape"), pybind11::arg("stride"),
        "What TMA is told of a map [B, T, H, W, C], from channels to samples, and whether it can "
        "fetch boxes of it; the map's strides in elements, TMA's in bytes.");
  m.def("token_select_plan", &token_select_plan, pybind11::arg("N"), pybind11::arg("C"),
        "How the CUDA kernels divide a sample of N tokens with C channels, and the bytes of shared "
        "memory each of them asks for.");
  m.def("multiply_adds", &uk::multiply_adds, pybind11::call_guard<pybind11::gil_scoped_release>(),
        "At least so many float32 multiply-adds out of registers, to be timed; their sum.");
}
