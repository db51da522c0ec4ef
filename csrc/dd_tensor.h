// Tensors of torch's stable ABI: what an op checks of them, and where it runs.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include <dlfcn.h>

#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "dd_common.h"

// Weak, since a torch without CUDA lacks it and would refuse to load this library.
extern "C" __attribute__((weak)) int32_t aoti_torch_get_current_cuda_stream(int32_t, void**);

namespace dd {

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

inline std::string shape(const Tensor& t) {
  std::ostringstream text;
  text << '[';
  for (int64_t i = 0; i < t.dim(); ++i) text << (i ? ", " : "") << t.size(i);
  text << ']';
  return text.str();
}

inline bool has_shape(const Tensor& t, const std::vector<int64_t>& wanted) {
  if (t.dim() != static_cast<int64_t>(wanted.size())) return false;
  for (size_t i = 0; i < wanted.size(); ++i)
    if (t.size(i) != wanted[i]) return false;
  return true;
}

inline bool same_shape(const Tensor& a, const Tensor& b) {
  const auto sizes = a.sizes();
  return has_shape(b, std::vector<int64_t>(sizes.begin(), sizes.end()));
}

inline Dtype dtype_of(const char* op, const Tensor& t) {
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
inline bool dense(const Tensor& t, const std::vector<int64_t>& dims) {
  if (t.numel() == 0) return true;
  int64_t step = 1;
  for (size_t i = dims.size(); i-- > 0;) {
    if (t.size(dims[i]) != 1 && t.stride(dims[i]) != step) return false;
    step *= t.size(dims[i]);
  }
  return true;
}

inline bool dense_in_order(const Tensor& t, bool channels_last) {
  if (channels_last && t.dim() == 4) return dense(t, {0, 2, 3, 1});
  std::vector<int64_t> dims(t.dim());
  for (size_t i = 0; i < dims.size(); ++i) dims[i] = static_cast<int64_t>(i);
  return dense(t, dims);
}

inline Batch batch_of(const char* op, const Tensor& x) {
  require(x.dim() >= 2, op, "x must be [N, C, ...], got ", shape(x), ".");
  int64_t space = 1;
  for (int64_t i = 2; i < x.dim(); ++i) space *= x.size(i);
  const bool plain = dense_in_order(x, false);
  require(plain || dense_in_order(x, true), op,
          "x must lie densely in memory, NCHW or channels_last; call contiguous() first.");
  // Without space both orders are one, and channels are what is innermost.
  return {x.size(0), x.size(1), space, !plain || space == 1};
}

inline void require_like(const char* op, const char* name, const Tensor& t, const Tensor& x,
                  const Batch& order, bool same_dtype = true) {
  require(same_shape(x, t), op, name, " must be ", shape(x), ", got ", shape(t), ".");
  require(dense_in_order(t, order.channels_last), op, name, " must lie in memory as x does.");
  require(!same_dtype || t.scalar_type() == x.scalar_type(), op, name, " must have x's dtype.");
}

inline Bias bias_of(const char* op, const Optional& bias, const Tensor& x) {
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

inline bool aligned(std::initializer_list<const Tensor*> tensors) {
  for (const Tensor* t : tensors)
    if (t != nullptr && reinterpret_cast<uintptr_t>(t->data_ptr()) % 16) return false;
  return true;
}

inline void* current_stream(int32_t device) {
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

inline const Tensor* maybe(const Optional& t) { return t ? &*t : nullptr; }

}  // namespace dd
