// Adaptive group norm + SiLU: checks, then the kernels.
#include "dd_kernels.h"
#include "dd_norm_host.h"
#include "dd_ops.h"

namespace dd {
namespace {

template <bool Backward>
void run_norm(const char* op, const Optional& grad, const Tensor& x, const Tensor& scale,
              const Tensor& shift, const Tensor& mean, const Tensor& rstd, int64_t groups,
              double eps, bool silu, const Tensor& workspace, const Optional& means,
              const Optional& out, const Optional& grad_scale, const Optional& grad_shift) {
  const Batch order = batch_of(op, x);
  const int64_t n = order.n, c = order.c;
  require(groups > 0 && c % groups == 0, op, c, " channels do not divide into ", groups,
          " groups.");
  const Dtype dtype = dtype_of(op, x);
  const ScalarType wide = dtype == Dtype::f64 ? ScalarType::Double : ScalarType::Float;
  for (const Tensor* t : {&scale, &shift, maybe(grad_scale), maybe(grad_shift)})
    require(t == nullptr || (has_shape(*t, {n, c}) && t->is_contiguous()), op,
            "scale, shift and their gradients must be contiguous [", n, ", ", c, "].");
  for (const Tensor* t : {&mean, &rstd})
    require(has_shape(*t, {n, groups}) && t->is_contiguous() && t->scalar_type() == wide, op,
            "the statistics must be contiguous [", n, ", ", groups,
            "], float32 or, for float64, float64.");
  if (out) require_like(op, "out", *out, x, order);
  if (grad) require_like(op, "grad", *grad, x, order);
  require(workspace.dim() == 4 && workspace.size(0) == n && workspace.size(2) == c &&
              workspace.size(3) == 2 && workspace.is_contiguous() &&
              workspace.scalar_type() == wide,
          op, "the workspace must be [", n, ", chunks, ", c, ", 2], got ", shape(workspace), ".");
  require(!means || (means->numel() == 2 * n * groups && means->scalar_type() == wide), op,
          "the group means must be [", n, ", ", groups, ", 2].");
  const On on(op, x, {maybe(grad), &scale, &shift, &mean, &rstd, &workspace, maybe(means),
                      maybe(out), maybe(grad_scale), maybe(grad_shift)});
  if (x.numel() == 0) return;
  const bool vectors = aligned({&x, maybe(grad), maybe(out)});
  for_dtype(op, dtype, [&](auto zero) {
    using T = decltype(zero);
    using A = wide_t<T>;
    NormArgs<T> a{};
    a.x = pointer<T>(x);
    a.grad = grad ? pointer<T>(*grad) : nullptr;
    a.out = out ? pointer<T>(*out) : nullptr;
    a.scale = scale.data_ptr();
    a.shift = shift.data_ptr();
    a.scale_dtype = dtype_of(op, scale);
    a.shift_dtype = dtype_of(op, shift);
    a.mean = pointer<A>(mean);
    a.rstd = pointer<A>(rstd);
    a.grad_scale = grad_scale ? grad_scale->data_ptr() : nullptr;
    a.grad_shift = grad_shift ? grad_shift->data_ptr() : nullptr;
    a.workspace = pointer<A>(workspace);
    a.group_means = means ? pointer<A>(*means) : nullptr;
    a.shape = order;
    a.groups = groups;
    a.chunks = workspace.size(1);
    a.eps = static_cast<A>(eps);
    a.silu = silu;
#ifdef DD_WITH_CUDA
    if (on.cuda()) return norm_on_device<Backward>(a, vectors, on.stream());
#endif
    choose_norm<Backward>(a, vectors, HostNorm());
  });
}

}  // namespace

void group_statistics(const char* op, const Tensor& x, const Tensor& scale, const Tensor& shift,
                      int64_t groups, double eps, const Tensor& workspace, const Tensor& mean,
                      const Tensor& rstd) {
  run_norm<false>(op, {}, x, scale, shift, mean, rstd, groups, eps, false, workspace, {}, {}, {},
                  {});
}

void ada_group_norm_silu(const Tensor& x, const Tensor& scale, const Tensor& shift, int64_t groups,
                         double eps, bool silu, const Tensor& workspace, const Tensor& out,
                         const Tensor& mean, const Tensor& rstd) {
  run_norm<false>("ada_group_norm_silu", {}, x, scale, shift, mean, rstd, groups, eps, silu,
                  workspace, {}, out, {}, {});
}

void ada_group_norm_silu_backward(const Tensor& grad, const Tensor& x, const Tensor& scale,
                                  const Tensor& shift, const Tensor& mean, const Tensor& rstd,
                                  int64_t groups, bool silu, const Tensor& workspace,
                                  const Tensor& means, const Tensor& grad_x,
                                  const Tensor& grad_scale, const Tensor& grad_shift) {
  run_norm<true>("ada_group_norm_silu_backward", grad, x, scale, shift, mean, rstd, groups, 0.0,
                 silu, workspace, means, grad_x, grad_scale, grad_shift);
}

}  // namespace dd
