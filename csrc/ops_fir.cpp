// FIR resampling, alone, after bias + leaky ReLU or after a norm: checks, then the kernels.
#include "dd_kernels.h"
#include "dd_ops.h"

namespace dd {
namespace {

// The norm before a filter, its statistics computed.
struct Norm {
  const Tensor &scale, &shift, &mean, &rstd;
  int64_t groups;
  bool silu;
  const Optional& skip;
};

template <Mode M>
void run_fir(const char* op, const Tensor& x, const Optional& other, const Optional& bias,
             const Tensor& taps, const std::vector<int64_t>& up, const std::vector<int64_t>& down,
             const std::vector<int64_t>& padding, bool flip, double gain, double slope,
             const Tensor& out, const Norm* norm = nullptr) {
  require(x.dim() == 4, op, "x must be [N, C, H, W], got ", shape(x), ".");
  require(taps.dim() == 1 || taps.dim() == 2, op, "taps must be [k] or [kh, kw], got ",
          shape(taps), ".");
  require(taps.is_contiguous(), op, "taps must be contiguous.");
  require(up.size() == 2 && down.size() == 2 && padding.size() == 4, op,
          "up and down must be (x, y) and padding (x0, x1, y0, y1).");
  require(up[0] > 0 && up[1] > 0 && down[0] > 0 && down[1] > 0, op,
          "up and down must be at least 1.");
  const int kh = static_cast<int>(taps.size(0)), kw = static_cast<int>(taps.size(taps.dim() - 1));
  require(kh > 0 && kw > 0, op, "taps must not be empty.");
  Batch order = batch_of(op, x);
  // One pixel lies alike in both orders; the result does not, and is NCHW by convention.
  order.channels_last = !dense_in_order(x, false);
  const int64_t h = (x.size(2) * up[1] + padding[2] + padding[3] - kh) / down[1] + 1;
  const int64_t w = (x.size(3) * up[0] + padding[0] + padding[1] - kw) / down[0] + 1;
  // The adjoint of a resampling has the size of what was resampled, given by `other`.
  require(M == Mode::masked || has_shape(out, {x.size(0), x.size(1), h, w}), op, "out must be [",
          x.size(0), ", ", x.size(1), ", ", h, ", ", w, "], got ", shape(out), ".");
  if (M == Mode::masked) {
    // Of a result of one pixel the order is that of the tensor it is the gradient for.
    order.channels_last = !dense_in_order(*other, false);
    require(dense_in_order(x, order.channels_last), op, "grad must lie in memory as x does.");
  }
  require(dense_in_order(out, order.channels_last), op, "out must lie in memory as x does.");
  require(out.scalar_type() == x.scalar_type(), op, "out must have x's dtype.");
  if (M == Mode::tangent) require_like(op, "x", *other, x, order);
  if (M == Mode::masked) require_like(op, "x", *other, out, order);
  if (M == Mode::both) require_like(op, "skip", *norm->skip, out, order);
  const Dtype dtype = dtype_of(op, x);
  require(taps.scalar_type() == (dtype == Dtype::f64 ? ScalarType::Double : ScalarType::Float), op,
          "taps must be float32, float64 for float64.");
  const On on(op, x, {maybe(other), maybe(bias), &taps, &out, norm ? maybe(norm->skip) : nullptr});
  const Bias row = bias_of(op, bias, x);
  if (out.numel() == 0) return;
  const bool vectors = aligned({&x, maybe(other), &out, norm ? maybe(norm->skip) : nullptr});
  for_dtype(op, dtype, [&](auto zero) {
    using T = decltype(zero);
    using A = wide_t<T>;
    FirArgs<T> a{};
    a.x = pointer<T>(x);
    a.other = other ? pointer<T>(*other) : nullptr;
    a.y = pointer<T>(out);
    a.taps = pointer<A>(taps);
    a.gain = static_cast<A>(gain);
    a.slope = static_cast<A>(slope);
    a.half_sum = static_cast<A>((1 + slope) / 2);
    a.half_difference = static_cast<A>((1 - slope) / 2);
    a.kh = kh;
    a.kw = kw;
    a.separable = taps.dim() == 1;
    a.flip = flip;
    a.in = {x.size(0), x.size(1), x.size(2) * x.size(3), order.channels_last};
    a.bias = row;
    a.in_h = x.size(2);
    a.in_w = x.size(3);
    a.out_h = out.size(2);
    a.out_w = out.size(3);
    a.up_x = static_cast<int>(up[0]);
    a.up_y = static_cast<int>(up[1]);
    a.down_x = static_cast<int>(down[0]);
    a.down_y = static_cast<int>(down[1]);
    a.pad_x = padding[0];
    a.pad_y = padding[2];
    if constexpr (kIsNorm<M>) {
      a.norm.scale = norm->scale.data_ptr();
      a.norm.shift = norm->shift.data_ptr();
      a.norm.scale_dtype = dtype_of(op, norm->scale);
      a.norm.shift_dtype = dtype_of(op, norm->shift);
      a.norm.mean = pointer<A>(norm->mean);
      a.norm.rstd = pointer<A>(norm->rstd);
      a.norm.shape = a.in;
      a.norm.groups = norm->groups;
      a.norm.silu = norm->silu;
      a.skip = M == Mode::both ? pointer<T>(*norm->skip) : nullptr;
    }
#ifdef DD_WITH_CUDA
    if (on.cuda()) return fir_on_device<M>(a, vectors, on.stream());
#endif
    choose_fir<M>(a, vectors, HostRun());
  });
}

// Padding that makes downsampling by 2 halve an even size.
std::vector<int64_t> down_padding(const Tensor& taps) {
  const int64_t rest = taps.size(0) - 2, before = (rest + 1) / 2, after = rest / 2;
  return {before, after, before, after};
}

template <bool Grad>
void run_act(const char* op, const Tensor& x, const Optional& y, const Optional& bias,
             double slope, double scale, const Tensor& out) {
  const Batch order = batch_of(op, x);
  require_like(op, "out", out, x, order);
  if (y) require_like(op, "y", *y, x, order);
  const Bias row = bias_of(op, bias, x);
  const On on(op, x, {maybe(y), maybe(bias), &out});
  if (x.numel() == 0) return;
  const bool vectors = aligned({&x, maybe(y), &out});
  for_dtype(op, dtype_of(op, x), [&](auto zero) {
    using T = decltype(zero);
    using A = wide_t<T>;
    const ActArgs<T> a{pointer<T>(x), y ? pointer<T>(*y) : nullptr, pointer<T>(out), order, row,
                       static_cast<A>(slope), static_cast<A>(scale)};
#ifdef DD_WITH_CUDA
    if (on.cuda()) return act_on_device<Grad>(a, vectors, on.stream());
#endif
    choose_act<Grad>(a, vectors, HostRun());
  });
}

}  // namespace

void upfirdn2d(const Tensor& x, const Tensor& taps, const std::vector<int64_t>& up,
               const std::vector<int64_t>& down, const std::vector<int64_t>& padding, bool flip,
               double gain, const Tensor& out) {
  run_fir<Mode::plain>("upfirdn2d", x, {}, {}, taps, up, down, padding, flip, gain, 1.0, out);
}

void ada_group_norm_silu_resample(const Tensor& x, const Tensor& scale, const Tensor& shift,
                                  const Tensor& taps, int64_t groups,
                                  const std::vector<int64_t>& up, const std::vector<int64_t>& down,
                                  const std::vector<int64_t>& padding, double gain, double eps,
                                  bool silu, const Tensor& workspace, const Tensor& mean,
                                  const Tensor& rstd, const Tensor& out, const Optional& skip) {
  const char* op = "ada_group_norm_silu_resample";
  group_statistics(op, x, scale, shift, groups, eps, workspace, mean, rstd);
  const Norm norm{scale, shift, mean, rstd, groups, silu, skip};
  const auto run = skip ? &run_fir<Mode::both> : &run_fir<Mode::norm>;
  run(op, x, {}, {}, taps, up, down, padding, false, gain, 1.0, out, &norm);
}

void bias_leaky_relu_down(const Tensor& x, const Optional& bias, const Tensor& taps, double slope,
                          const Tensor& out) {
  run_fir<Mode::act>("bias_leaky_relu_down", x, {}, bias, taps, {1, 1}, {2, 2}, down_padding(taps),
                     false, 1.0, slope, out);
}

void bias_leaky_relu_down_tangent(const Tensor& v, const Tensor& x, const Optional& bias,
                                  const Tensor& taps, double slope, const Tensor& out) {
  run_fir<Mode::tangent>("bias_leaky_relu_down_tangent", v, x, bias, taps, {1, 1}, {2, 2},
                         down_padding(taps), false, 1.0, slope, out);
}

void bias_leaky_relu_down_grad(const Tensor& grad, const Tensor& x, const Optional& bias,
                               const Tensor& taps, double slope, const Tensor& out) {
  const int64_t before = taps.size(0) - 1 - down_padding(taps)[0];
  run_fir<Mode::masked>("bias_leaky_relu_down_grad", grad, x, bias, taps, {2, 2}, {1, 1},
                        {before, 0, before, 0}, true, 1.0, slope, out);
}

void bias_leaky_relu(const Tensor& x, const Optional& bias, double slope, double scale,
                     const Tensor& out) {
  run_act<false>("bias_leaky_relu", x, {}, bias, slope, scale, out);
}

void bias_leaky_relu_grad(const Tensor& grad, const Tensor& y, double slope, double scale,
                          const Tensor& out) {
  run_act<true>("bias_leaky_relu_grad", grad, y, {}, slope, scale, out);
}

}  // namespace dd
