// The functions that ops.cpp registers. They write into tensors that the caller made; each runs on
// the device of its tensors, on the CPU as plain loops.
#pragma once

#include "dd_tensor.h"

namespace dd {

void identity(const Tensor& x, const Tensor& out);
void upfirdn2d(const Tensor& x, const Tensor& taps, const std::vector<int64_t>& up,
               const std::vector<int64_t>& down, const std::vector<int64_t>& padding, bool flip,
               double gain, const Tensor& out);
void bias_leaky_relu_down(const Tensor& x, const Optional& bias, const Tensor& taps, double slope,
                          const Tensor& out);
void bias_leaky_relu_down_tangent(const Tensor& v, const Tensor& x, const Optional& bias,
                                  const Tensor& taps, double slope, const Tensor& out);
void bias_leaky_relu_down_grad(const Tensor& grad, const Tensor& x, const Optional& bias,
                               const Tensor& taps, double slope, const Tensor& out);
void bias_leaky_relu(const Tensor& x, const Optional& bias, double slope, double scale,
                     const Tensor& out);
void bias_leaky_relu_grad(const Tensor& grad, const Tensor& y, double slope, double scale,
                          const Tensor& out);
void ada_group_norm_silu(const Tensor& x, const Tensor& scale, const Tensor& shift, int64_t groups,
                         double eps, bool silu, const Tensor& workspace, const Tensor& out,
                         const Tensor& mean, const Tensor& rstd);
void ada_group_norm_silu_backward(const Tensor& grad, const Tensor& x, const Tensor& scale,
                                  const Tensor& shift, const Tensor& mean, const Tensor& rstd,
                                  int64_t groups, bool silu, const Tensor& workspace,
                                  const Tensor& means, const Tensor& grad_x,
                                  const Tensor& grad_scale, const Tensor& grad_shift);
// Of ada_group_norm_silu, with its checks: the statistics alone.
void group_statistics(const char* op, const Tensor& x, const Tensor& scale, const Tensor& shift,
                      int64_t groups, double eps, const Tensor& workspace, const Tensor& mean,
                      const Tensor& rstd);
void ada_group_norm_silu_resample(const Tensor& x, const Tensor& scale, const Tensor& shift,
                                  const Tensor& taps, int64_t groups,
                                  const std::vector<int64_t>& up, const std::vector<int64_t>& down,
                                  const std::vector<int64_t>& padding, double gain, double eps,
                                  bool silu, const Tensor& workspace, const Tensor& mean,
                                  const Tensor& rstd, const Tensor& out, const Optional& skip);
void sample_posterior(const Tensor& x0, const Tensor& x_next, const Tensor& t,
                      const Tensor& tables, const Optional& noise, const Optional& seed,
                      const Optional& index, const Tensor& out);
void q_sample_pair(const Tensor& x0, const Tensor& t, const Tensor& tables, const Optional& flip,
                   const Optional& noise_next, const Optional& noise_t, const Optional& seed,
                   const Optional& index, const Tensor& x_t, const Tensor& x_next);
void philox_words(const Tensor& seed, const Tensor& index, int64_t stream, const Tensor& words,
                  const Tensor& normals);

}  // namespace dd
