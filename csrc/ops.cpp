// The ops of namespace ddgan_fast_c, on torch's stable ABI. They write into tensors that the
// caller made; each runs on the device of its tensors, on the CPU as plain loops.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <dlfcn.h>

#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "dd_kernels.h"
#include "dd_norm_host.h"

// Weak, since a torch without CUDA lacks it and would refuse to load this library.
extern "C" __attribute__((weak)) int32_t aoti_torch_get_current_cuda_stream(int32_t, void**);

namespace dd {
namespace {

using torch::stable::Tensor;
using torch::headeronly::ScalarType;
using Optional = std::optional<Tensor>;

template <typename... Parts>
void require(bool condition, const char* op, const Parts&... parts) {
  if (condition) return;
  std::ostringstream message;
  message << op << ": ";
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

std::string shape(const Tensor& t) {
  std::ostringstream text;
  text << '[';
  for (int64_t i = 0; i < t.dim(); ++i) text << (i ? ", " : "") << t.size(i);
  text << ']';
  return text.str();
}

bool has_shape(const Tensor& t, const std::vector<int64_t>& wanted) {
  if (t.dim() != static_cast<int64_t>(wanted.size())) return false;
  for (size_t i = 0; i < wanted.size(); ++i)
    if (t.size(i) != wanted[i]) return false;
  return true;
}

bool same_shape(const Tensor& a, const Tensor& b) {
  const auto sizes = a.sizes();
  return has_shape(b, std::vector<int64_t>(sizes.begin(), sizes.end()));
}

Dtype dtype_of(const char* op, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return Dtype::f32;
    case ScalarType::Double:
      return Dtype::f64;
    case ScalarType::Half:
      return Dtype::f16;
    case ScalarType::BFloat16:
      return Dtype::bf16;
    case ScalarType::Byte:
      return Dtype::u8;
    default:
      throw std::runtime_error(std::string(op) +
                               ": tensors must be float16, bfloat16, float32 or float64.");
  }
}

template <typename F>
void for_dtype(const char* op, Dtype dtype, const F& f) {
  switch (dtype) {
    case Dtype::f32:
      return f(float{});
    case Dtype::f64:
      return f(double{});
    case Dtype::f16:
      return f(f16{});
    case Dtype::bf16:
      return f(bf16{});
    default:
      require(false, op, "x must be floating-point.");
  }
}

// Whether the elements lie densely in the order that `dims` names, outermost first.
bool dense(const Tensor& t, const std::vector<int64_t>& dims) {
  if (t.numel() == 0) return true;
  int64_t step = 1;
  for (size_t i = dims.size(); i-- > 0;) {
    if (t.size(dims[i]) != 1 && t.stride(dims[i]) != step) return false;
    step *= t.size(dims[i]);
  }
  return true;
}

bool dense_in_order(const Tensor& t, bool channels_last) {
  if (channels_last && t.dim() == 4) return dense(t, {0, 2, 3, 1});
  std::vector<int64_t> dims(t.dim());
  for (size_t i = 0; i < dims.size(); ++i) dims[i] = static_cast<int64_t>(i);
  return dense(t, dims);
}

Batch batch_of(const char* op, const Tensor& x) {
  require(x.dim() >= 2, op, "x must be [N, C, ...], got ", shape(x), ".");
  int64_t space = 1;
  for (int64_t i = 2; i < x.dim(); ++i) space *= x.size(i);
  const bool plain = dense_in_order(x, false);
  require(plain || dense_in_order(x, true), op,
          "x must lie densely in memory, NCHW or channels_last; call contiguous() first.");
  // Without space both orders are one, and channels are what is innermost.
  return {x.size(0), x.size(1), space, !plain || space == 1};
}

void require_like(const char* op, const char* name, const Tensor& t, const Tensor& x,
                  const Batch& order, bool same_dtype = true) {
  require(same_shape(x, t), op, name, " must be ", shape(x), ", got ", shape(t), ".");
  require(dense_in_order(t, order.channels_last), op, name, " must lie in memory as x does.");
  require(!same_dtype || t.scalar_type() == x.scalar_type(), op, name, " must have x's dtype.");
}

Bias bias_of(const char* op, const Optional& bias, const Tensor& x) {
  if (!bias) return {nullptr, Dtype::f32, false};
  const bool per_sample = has_shape(*bias, {x.size(0), x.size(1)});
  require(per_sample || has_shape(*bias, {x.size(1)}), op, "bias must be [", x.size(1), "] or [",
          x.size(0), ", ", x.size(1), "], got ", shape(*bias), ".");
  require(bias->is_contiguous(), op, "bias must be contiguous.");
  return {bias->data_ptr(), dtype_of(op, *bias), per_sample};
}

template <typename T>
T* pointer(const Tensor& t) {
  return static_cast<T*>(t.data_ptr());
}

bool aligned(std::initializer_list<const Tensor*> tensors) {
  for (const Tensor* t : tensors)
    if (t != nullptr && reinterpret_cast<uintptr_t>(t->data_ptr()) % 16) return false;
  return true;
}

void* current_stream(int32_t device) {
  using Function = int32_t (*)(int32_t, void**);
  static const Function function = [] {
    if (aoti_torch_get_current_cuda_stream != nullptr)
      return static_cast<Function>(aoti_torch_get_current_cuda_stream);
    // torch loads its libraries out of the global scope, where a weak symbol finds nothing.
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return library == nullptr ? nullptr
                              : reinterpret_cast<Function>(
                                    dlsym(library, "aoti_torch_get_current_cuda_stream"));
  }();
  void* stream = nullptr;
  require(function != nullptr && function(device, &stream) == 0, "ddgan_fast_c",
          "this torch does not tell its current CUDA stream.");
  return stream;
}

// The device of all tensors of one call, made current while this lives.
class On {
 public:
  On(const char* op, const Tensor& first, std::initializer_list<const Tensor*> others)
      : cuda_(first.is_cuda()) {
    for (const Tensor* t : others)
      require(t == nullptr || (t->is_cuda() == cuda_ && (cuda_ || t->is_cpu()) &&
                               t->get_device_index() == first.get_device_index()),
              op, "all tensors must be on one device.");
#ifndef DD_WITH_CUDA
    require(!cuda_, op, "this library was built without CUDA.");
#endif
    if (cuda_) {
      guard_.emplace(first.get_device_index());
      stream_ = current_stream(first.get_device_index());
    }
  }
  bool cuda() const { return cuda_; }
  void* stream() const { return stream_; }

 private:
  bool cuda_;
  void* stream_ = nullptr;
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
};

const Tensor* maybe(const Optional& t) { return t ? &*t : nullptr; }

template <Mode M>
void run_fir(const char* op, const Tensor& x, const Optional& other, const Optional& bias,
             const Tensor& taps, const std::vector<int64_t>& up, const std::vector<int64_t>& down,
             const std::vector<int64_t>& padding, bool flip, double gain, double slope,
             const Tensor& out) {
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
  const Dtype dtype = dtype_of(op, x);
  require(taps.scalar_type() == (dtype == Dtype::f64 ? ScalarType::Double : ScalarType::Float), op,
          "taps must be float32, float64 for float64.");
  const On on(op, x, {maybe(other), maybe(bias), &taps, &out});
  const Bias row = bias_of(op, bias, x);
  if (out.numel() == 0) return;
  const bool vectors = aligned({&x, maybe(other), &out});
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
#ifdef DD_WITH_CUDA
    if (on.cuda()) return fir_on_device<M>(a, vectors, on.stream());
#endif
    choose_fir<M>(a, vectors, HostRun());
  });
}

void upfirdn2d(const Tensor& x, const Tensor& taps, const std::vector<int64_t>& up,
               const std::vector<int64_t>& down, const std::vector<int64_t>& padding, bool flip,
               double gain, const Tensor& out) {
  run_fir<Mode::plain>("upfirdn2d", x, {}, {}, taps, up, down, padding, flip, gain, 1.0, out);
}

// Padding that makes downsampling by 2 halve an even size.
std::vector<int64_t> down_padding(const Tensor& taps) {
  const int64_t rest = taps.size(0) - 2, before = (rest + 1) / 2, after = rest / 2;
  return {before, after, before, after};
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

void bias_leaky_relu(const Tensor& x, const Optional& bias, double slope, double scale,
                     const Tensor& out) {
  run_act<false>("bias_leaky_relu", x, {}, bias, slope, scale, out);
}

void bias_leaky_relu_grad(const Tensor& grad, const Tensor& y, double slope, double scale,
                          const Tensor& out) {
  run_act<true>("bias_leaky_relu_grad", grad, y, {}, slope, scale, out);
}

template <bool Backward>
void run_norm(const char* op, const Optional& grad, const Tensor& x, const Tensor& scale,
              const Tensor& shift, const Tensor& mean, const Tensor& rstd, int64_t groups,
              double eps, bool silu, const Tensor& workspace, const Optional& means,
              const Tensor& out, const Optional& grad_scale, const Optional& grad_shift) {
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
  require_like(op, "out", out, x, order);
  if (grad) require_like(op, "grad", *grad, x, order);
  require(workspace.dim() == 4 && workspace.size(0) == n && workspace.size(2) == c &&
              workspace.size(3) == 2 && workspace.is_contiguous() &&
              workspace.scalar_type() == wide,
          op, "the workspace must be [", n, ", chunks, ", c, ", 2], got ", shape(workspace), ".");
  require(!means || (means->numel() == 2 * n * groups && means->scalar_type() == wide), op,
          "the group means must be [", n, ", ", groups, ", 2].");
  const On on(op, x, {maybe(grad), &scale, &shift, &mean, &rstd, &workspace, maybe(means), &out,
                      maybe(grad_scale), maybe(grad_shift)});
  if (x.numel() == 0) return;
  const bool vectors = aligned({&x, maybe(grad), &out});
  for_dtype(op, dtype, [&](auto zero) {
    using T = decltype(zero);
    using A = wide_t<T>;
    NormArgs<T> a{};
    a.x = pointer<T>(x);
    a.grad = grad ? pointer<T>(*grad) : nullptr;
    a.out = pointer<T>(out);
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

Source source_of(const char* op, const Optional& t) {
  if (!t) return {nullptr, Dtype::f32};
  return {t->data_ptr(), dtype_of(op, *t)};
}

template <typename T>
const T* optional_pointer(const Optional& t) {
  return t ? pointer<const T>(*t) : nullptr;
}

Draw draw_of(const char* op, const Optional& seed, const Optional& index, int64_t n) {
  require(!seed || (seed->numel() == 1 && seed->scalar_type() == ScalarType::Long), op,
          "seed must be int64[1].");
  require(!index || (has_shape(*index, {n}) && index->scalar_type() == ScalarType::Long &&
                     index->is_contiguous()),
          op, "index must be contiguous int64 [", n, "].");
  return {optional_pointer<int64_t>(seed), optional_pointer<int64_t>(index)};
}

int64_t table_rows(const char* op, const Tensor& t, const Tensor& tables, int64_t n,
                   int64_t columns) {
  require(has_shape(t, {n}) && t.scalar_type() == ScalarType::Long && t.is_contiguous(), op,
          "t must be contiguous int64 [", n, "], got ", shape(t), ".");
  require(tables.dim() == 2 && tables.size(1) == columns && tables.size(0) > 0 &&
              tables.scalar_type() == ScalarType::Float && tables.is_contiguous(),
          op, "tables must be contiguous float32 [T, ", columns, "], got ", shape(tables), ".");
  for (int64_t i = 0; t.is_cpu() && i < n; ++i) {
    const int64_t step = pointer<int64_t>(t)[i];
    require(step >= 0 && step < tables.size(0), op, "t is ", step, " at sample ", i,
            ", and the tables have ", tables.size(0), " rows.");
  }
  return tables.size(0);
}

template <typename Job>
void run_random(const Job& job, int64_t n, int64_t blocks, const On& on) {
#ifdef DD_WITH_CUDA
  if (on.cuda()) return run_on_device(job, n, blocks, on.stream());
#endif
  run_on_host(job, n, blocks);
}

void sample_posterior(const Tensor& x0, const Tensor& x_next, const Tensor& t,
                      const Tensor& tables, const Optional& noise, const Optional& seed,
                      const Optional& index, const Tensor& out) {
  const char* op = "sample_posterior";
  const Batch order = batch_of(op, x_next);
  require_like(op, "x0", x0, x_next, order, false);
  require_like(op, "out", out, x_next, order, false);
  if (noise) require_like(op, "noise", *noise, x_next, order, false);
  require(noise.has_value() != seed.has_value(), op, "pass exactly one of noise and seed.");
  const int64_t rows = table_rows(op, t, tables, order.n, 3);
  const Draw draw = draw_of(op, seed, index, order.n);
  const On on(op, x_next, {&x0, &t, &tables, maybe(noise), maybe(seed), maybe(index), &out});
  if (out.numel() == 0) return;
  const int64_t blocks = ceil_div(order.c * order.space, 4);
  const Dtype dtype = dtype_of(op, out);
  require(dtype == Dtype::f32 || dtype == Dtype::f64, op, "out must be float32 or float64.");
  const auto run = [&](auto zero) {
    using A = decltype(zero);
    const Posterior<A> job{source_of(op, x0), source_of(op, x_next), source_of(op, noise),
                           pointer<int64_t>(t), pointer<float>(tables), rows, draw, order,
                           pointer<A>(out)};
    run_random(job, order.n, blocks, on);
  };
  dtype == Dtype::f32 ? run(float{}) : run(double{});
}

void q_sample_pair(const Tensor& x0, const Tensor& t, const Tensor& tables, const Optional& flip,
                   const Optional& noise_next, const Optional& noise_t, const Optional& seed,
                   const Optional& index, const Tensor& x_t, const Tensor& x_next) {
  const char* op = "q_sample_pair";
  const bool images = x0.scalar_type() == ScalarType::Byte;
  Batch order = batch_of(op, x_t);
  if (images) {
    require(x_t.dim() == 4 && has_shape(x0, {x_t.size(0), x_t.size(2), x_t.size(3), x_t.size(1)}),
            op, "uint8 images must be [N, H, W, C] for x_t ", shape(x_t), ", got ", shape(x0), ".");
    require(x0.is_contiguous(), op, "uint8 images must be contiguous.");
  } else {
    require_like(op, "x0", x0, x_t, order, false);
  }
  require(!flip || (images && has_shape(*flip, {order.n}) && flip->is_contiguous() &&
                    flip->scalar_type() == ScalarType::Bool),
          op, "flip must be contiguous bool [N], with uint8 images only.");
  require_like(op, "x_next", x_next, x_t, order);
  require(noise_next.has_value() == noise_t.has_value() &&
              noise_t.has_value() != seed.has_value(),
          op, "pass exactly one of both noises and seed.");
  for (const Optional* z : {&noise_next, &noise_t})
    if (*z) require_like(op, "noise", **z, x_t, order, false);
  const int64_t rows = table_rows(op, t, tables, order.n, 4);
  const Draw draw = draw_of(op, seed, index, order.n);
  const On on(op, x0, {&t, &tables, maybe(flip), maybe(noise_next), maybe(noise_t), maybe(seed),
                       maybe(index), &x_t, &x_next});
  if (x_t.numel() == 0) return;
  const Dtype dtype = dtype_of(op, x_t);
  require(dtype == Dtype::f32 || dtype == Dtype::f64, op, "x_t must be float32 or float64.");
  const int64_t blocks = ceil_div(order.c * order.space, 4);
  const auto run = [&](auto zero) {
    using A = decltype(zero);
    const QSamplePair<A> job{source_of(op, x0), source_of(op, noise_next), source_of(op, noise_t),
                             optional_pointer<bool>(flip), pointer<int64_t>(t),
                             pointer<float>(tables), rows, images ? x_t.size(3) : 1, draw, order,
                             pointer<A>(x_t), pointer<A>(x_next)};
    run_random(job, order.n, blocks, on);
  };
  dtype == Dtype::f32 ? run(float{}) : run(double{});
}

void philox_words(const Tensor& seed, const Tensor& index, int64_t stream, const Tensor& words,
                  const Tensor& normals) {
  const char* op = "philox";
  const int64_t n = index.numel();
  require(words.dim() == 3 && words.size(0) == n && words.size(2) == 4 &&
              words.scalar_type() == ScalarType::Long && words.is_contiguous(),
          op, "words must be contiguous int64 [", n, ", blocks, 4].");
  require(same_shape(words, normals) && normals.scalar_type() == ScalarType::Float &&
              normals.is_contiguous(),
          op, "normals must be contiguous float32 ", shape(words), ".");
  const Draw draw = draw_of(op, seed, index, n);
  const On on(op, seed, {&index, &words, &normals});
  if (words.numel() == 0) return;
  run_random(PhiloxArgs{draw, n, words.size(1), static_cast<uint32_t>(stream),
                        pointer<int64_t>(words), pointer<float>(normals)},
             n, words.size(1), on);
}

}  // namespace
}  // namespace dd

STABLE_TORCH_LIBRARY(ddgan_fast_c, m) {
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
  m.def("sample_posterior(Tensor x0, Tensor x_next, Tensor t, Tensor tables, Tensor? noise, "
        "Tensor? seed, Tensor? index, Tensor(a!) out) -> ()");
  m.def("q_sample_pair(Tensor x0, Tensor t, Tensor tables, Tensor? flip, Tensor? noise_next, "
        "Tensor? noise_t, Tensor? seed, Tensor? index, Tensor(a!) x_t, Tensor(b!) x_next) -> ()");
  m.def("philox(Tensor seed, Tensor index, int stream, Tensor(a!) words, Tensor(b!) normals) "
        "-> ()");
}

#define DD_IMPLEMENTATIONS(m)                                                              \
  m.impl("upfirdn2d", TORCH_BOX(&dd::upfirdn2d));                                          \
  m.impl("bias_leaky_relu", TORCH_BOX(&dd::bias_leaky_relu));                              \
  m.impl("bias_leaky_relu_grad", TORCH_BOX(&dd::bias_leaky_relu_grad));                    \
  m.impl("bias_leaky_relu_down", TORCH_BOX(&dd::bias_leaky_relu_down));                    \
  m.impl("bias_leaky_relu_down_grad", TORCH_BOX(&dd::bias_leaky_relu_down_grad));          \
  m.impl("bias_leaky_relu_down_tangent", TORCH_BOX(&dd::bias_leaky_relu_down_tangent));    \
  m.impl("ada_group_norm_silu", TORCH_BOX(&dd::ada_group_norm_silu));                      \
  m.impl("ada_group_norm_silu_backward", TORCH_BOX(&dd::ada_group_norm_silu_backward));    \
  m.impl("sample_posterior", TORCH_BOX(&dd::sample_posterior));                            \
  m.impl("q_sample_pair", TORCH_BOX(&dd::q_sample_pair));                                  \
  m.impl("philox", TORCH_BOX(&dd::philox_words));

STABLE_TORCH_LIBRARY_IMPL(ddgan_fast_c, CPU, m) { DD_IMPLEMENTATIONS(m) }
STABLE_TORCH_LIBRARY_IMPL(ddgan_fast_c, CUDA, m) { DD_IMPLEMENTATIONS(m) }

// What the library was built for: "cuda=RELEASE;archs=A,B,C", both empty without CUDA.
extern "C" __attribute__((visibility("default"))) const char* ddgan_fast_build() {
  return DD_BUILD;
}
