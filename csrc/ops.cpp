// The ops of namespace ddgan_fast_c, on torch's stable ABI.
#include <torch/csrc/stable/library.h>

#include "dd_ops.h"

STABLE_TORCH_LIBRARY(ddgan_fast_c, m) {
  m.def("identity(Tensor x, Tensor(a!) out) -> ()");
  m.def("upfirdn2d(Tensor x, Tensor taps, int[] up, int[] down, int[] padding, bool flip, "
        "float gain, Tensor(a!) out) -> ()");
  m.def("bias_leaky_relu(Tensor x, Tensor? bias, float slope, float scale, Tensor(a!) out) -> ()");
  m.def("bias_leaky_relu_grad(Tensor grad, Tensor y, float slope, float scale, Tensor(a!) out) "
        "-> ()");
  m.def("bias_leaky_relu_down(Tensor x, Tensor? bias, Tensor taps, float slope, Tensor(a!) out) "
        "-> ()");
  m.def("bias_leaky_relu_down_grad(Tensor grad, Tensor x, Tensor? bias, Tensor taps, float slope, "
        "Tensor(a!) out) -> ()");
  m.def("bias_leaky_relu_down_tangent(Tensor v, Tensor x, Tensor? bias, Tensor taps, float slope, "
        "Tensor(a!) out) -> ()");
  m.def("ada_group_norm_silu(Tensor x, Tensor scale, Tensor shift, int groups, float eps, "
        "bool silu, Tensor(a!) workspace, Tensor(b!) out, Tensor(c!) mean, Tensor(d!) rstd) -> ()");
  m.def("ada_group_norm_silu_backward(Tensor grad, Tensor x, Tensor scale, Tensor shift, "
        "Tensor mean, Tensor rstd, int groups, bool silu, Tensor(a!) workspace, "
        "Tensor(b!) group_means, Tensor(c!) grad_x, Tensor(d!) grad_scale, "
        "Tensor(e!) grad_shift) -> ()");
  m.def("ada_group_norm_silu_resample(Tensor x, Tensor scale, Tensor shift, Tensor taps, "
        "int groups, int[] up, int[] down, int[] padding, float gain, float eps, bool silu, "
        "Tensor(a!) workspace, Tensor(b!) mean, Tensor(c!) rstd, Tensor(d!) out, "
        "Tensor(e!)? skip) -> ()");
  m.def("sample_posterior(Tensor x0, Tensor x_next, Tensor t, Tensor tables, Tensor? noise, "
        "Tensor? seed, Tensor? index, Tensor(a!) out) -> ()");
  m.def("q_sample_pair(Tensor x0, Tensor t, Tensor tables, Tensor? flip, Tensor? noise_next, "
        "Tensor? noise_t, Tensor? seed, Tensor? index, Tensor(a!) x_t, Tensor(b!) x_next) -> ()");
  m.def("philox(Tensor seed, Tensor index, int stream, Tensor(a!) words, Tensor(b!) normals) "
        "-> ()");
}

#define DD_IMPLEMENTATIONS(m)                                                              \
  m.impl("identity", TORCH_BOX(&dd::identity));                                            \
  m.impl("upfirdn2d", TORCH_BOX(&dd::upfirdn2d));                                          \
  m.impl("bias_leaky_relu", TORCH_BOX(&dd::bias_leaky_relu));                              \
  m.impl("bias_leaky_relu_grad", TORCH_BOX(&dd::bias_leaky_relu_grad));                    \
  m.impl("bias_leaky_relu_down", TORCH_BOX(&dd::bias_leaky_relu_down));                    \
  m.impl("bias_leaky_relu_down_grad", TORCH_BOX(&dd::bias_leaky_relu_down_grad));          \
  m.impl("bias_leaky_relu_down_tangent", TORCH_BOX(&dd::bias_leaky_relu_down_tangent));    \
  m.impl("ada_group_norm_silu", TORCH_BOX(&dd::ada_group_norm_silu));                      \
  m.impl("ada_group_norm_silu_backward", TORCH_BOX(&dd::ada_group_norm_silu_backward));    \
  m.impl("ada_group_norm_silu_resample", TORCH_BOX(&dd::ada_group_norm_silu_resample));    \
  m.impl("sample_posterior", TORCH_BOX(&dd::sample_posterior));                            \
  m.impl("q_sample_pair", TORCH_BOX(&dd::q_sample_pair));                                  \
  m.impl("philox", TORCH_BOX(&dd::philox_words));

STABLE_TORCH_LIBRARY_IMPL(ddgan_fast_c, CPU, m) { DD_IMPLEMENTATIONS(m) }
STABLE_TORCH_LIBRARY_IMPL(ddgan_fast_c, CUDA, m) { DD_IMPLEMENTATIONS(m) }

// What the library was built for: "cuda=RELEASE;archs=A,B,C", both empty without CUDA.
extern "C" __attribute__((visibility("default"))) const char* ddgan_fast_build() {
  return DD_BUILD;
}
