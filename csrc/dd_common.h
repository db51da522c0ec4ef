// What all kernels share: number types, vectors of 16 bytes, index arithmetic, memory order.
// Everything here compiles for the host and for the device.
#pragma once

#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <type_traits>

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define DD_HD __host__ __device__ __forceinline__
#else
#define DD_HD inline
#endif
#ifdef __CUDA_ARCH__
#define DD_UNROLL _Pragma("unroll")
#else
#define DD_UNROLL
#endif

namespace dd {

using f16 = torch::headeronly::Half;
using bf16 = torch::headeronly::BFloat16;

enum class Dtype : int32_t { f32, f64, f16, bf16, u8 };

// Sums are held in float32, in float64 for float64.
template <typename T>
struct Wide {
  using type = float;
};
template <>
struct Wide<double> {
  using type = double;
};
template <typename T>
using wide_t = typename Wide<T>::type;

template <typename A, typename T>
DD_HD A widen(T value) {
  return static_cast<A>(static_cast<wide_t<T>>(value));
}

// One element of a small or rarely read tensor of any dtype.
template <typename A>
DD_HD A load_any(const void* data, Dtype dtype, int64_t i) {
  switch (dtype) {
    case Dtype::f32:
      return static_cast<A>(static_cast<const float*>(data)[i]);
    case Dtype::f64:
      return static_cast<A>(static_cast<const double*>(data)[i]);
    case Dtype::f16:
      return widen<A>(static_cast<const f16*>(data)[i]);
    case Dtype::bf16:
      return widen<A>(static_cast<const bf16*>(data)[i]);
    default:
      return static_cast<A>(static_cast<const uint8_t*>(data)[i]);
  }
}

template <typename A>
DD_HD void store_any(void* data, Dtype dtype, int64_t i, A value) {
  switch (dtype) {
    case Dtype::f32:
      static_cast<float*>(data)[i] = static_cast<float>(value);
      return;
    case Dtype::f64:
      static_cast<double*>(data)[i] = static_cast<double>(value);
      return;
    case Dtype::f16:
      static_cast<f16*>(data)[i] = f16(static_cast<float>(value));
      return;
    default:
      static_cast<bf16*>(data)[i] = bf16(static_cast<float>(value));
  }
}

// V neighbouring elements, read and written as one access of up to 16 bytes.
template <typename T, int V>
struct alignas(sizeof(T) * V) Pack {
  T v[V];
};

template <typename T>
constexpr int kFullVector = 16 / static_cast<int>(sizeof(T));

#ifdef __CUDACC__
template <typename T, int V>
__device__ __forceinline__ void load_16_bytes(const T* at, wide_t<T> (&out)[V]) {
  const uint4 raw = __ldg(reinterpret_cast<const uint4*>(at));
  if constexpr (sizeof(T) == 2) {
    const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
    DD_UNROLL
    for (int i = 0; i < 4; ++i) {
      if constexpr (std::is_same_v<T, bf16>) {
        // bfloat16 is the upper half of a float32.
        out[2 * i] = __uint_as_float(words[i] << 16);
        out[2 * i + 1] = __uint_as_float(words[i] & 0xFFFF0000u);
      } else {
        const float2 pair = __half22float2(reinterpret_cast<const __half2&>(words[i]));
        out[2 * i] = pair.x;
        out[2 * i + 1] = pair.y;
      }
    }
  } else {
    const auto& values = reinterpret_cast<const Pack<T, V>&>(raw);
    DD_UNROLL
    for (int i = 0; i < V; ++i) out[i] = values.v[i];
  }
}

template <typename T>
__device__ __forceinline__ void store_halves(T* at, const float (&value)[8]) {
  uint32_t words[4];
  DD_UNROLL
  for (int i = 0; i < 4; ++i) {
    if constexpr (std::is_same_v<T, bf16>) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(value[2 * i], value[2 * i + 1]);
      words[i] = reinterpret_cast<const uint32_t&>(pair);
    } else {
      const __half2 pair = __floats2half2_rn(value[2 * i], value[2 * i + 1]);
      words[i] = reinterpret_cast<const uint32_t&>(pair);
    }
  }
  *reinterpret_cast<uint4*>(at) = make_uint4(words[0], words[1], words[2], words[3]);
}
#endif

// The host could read a vector anywhere; the device cannot, and the host's loops stand in for it.
template <typename T, int V>
DD_HD void check_aligned(const T* at) {
#ifndef __CUDA_ARCH__
  if (reinterpret_cast<uintptr_t>(at) % (sizeof(T) * V))
    throw std::logic_error("a vector is read or written across its natural border.");
#endif
}

template <typename T, int V, typename A>
DD_HD void load_pack(const T* at, A (&out)[V]) {
  check_aligned<T, V>(at);
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(T) * V == 16)
    load_16_bytes<T, V>(at, out);
  else
#endif
    for (int i = 0; i < V; ++i) out[i] = widen<A>(at[i]);
}

template <typename T, int V, typename A>
DD_HD void store_pack(T* at, const A (&value)[V]) {
  check_aligned<T, V>(at);
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(T) == 2 && V == 8) {
    store_halves(at, value);
  } else
#endif
  {
    Pack<T, V> values;
    for (int i = 0; i < V; ++i) values.v[i] = static_cast<T>(value[i]);
    *reinterpret_cast<Pack<T, V>*>(at) = values;
  }
}

DD_HD int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Towards minus infinity, for b > 0.
DD_HD int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

// i = quotient * d + rest; 64-bit division is slow on the device and seldom needed.
DD_HD void divide(uint64_t i, uint64_t d, uint64_t& quotient, uint64_t& rest) {
  if ((i | d) >> 32) {
    quotient = i / d;
    rest = i - quotient * d;
  } else {
    const uint32_t q = static_cast<uint32_t>(i) / static_cast<uint32_t>(d);
    quotient = q;
    rest = static_cast<uint32_t>(i) - q * static_cast<uint32_t>(d);
  }
}

// A dense batch in one of two memory orders: [n, c, space] or, if channels_last, [n, space, c].
// An image is walked as `planes` independent pieces, each a grid of pixels `pixel` elements
// apart, each pixel `pixel` channels: planes = n, pixel = c if channels_last, else n * c and 1.
struct Batch {
  int64_t n, c, space;
  bool channels_last;

  DD_HD int64_t planes() const { return channels_last ? n : n * c; }
  DD_HD int64_t pixel() const { return channels_last ? c : 1; }
  DD_HD int64_t numel() const { return n * c * space; }
  DD_HD int64_t sample_of(int64_t plane) const { return channels_last ? plane : plane / c; }
  // Of the channel `first` of a plane's pixel.
  DD_HD int64_t channel_of(int64_t plane, int64_t first) const {
    return channels_last ? first : plane % c;
  }
};

template <typename A, int V, typename T>
DD_HD void load_row_of(const void* data, int64_t first, A (&out)[V]) {
  DD_UNROLL
  for (int i = 0; i < V; ++i) out[i] = widen<A>(static_cast<const T*>(data)[first + i]);
}

// V neighbouring elements of a small tensor of any floating dtype.
template <typename A, int V>
DD_HD void load_row(const void* data, Dtype dtype, int64_t first, A (&out)[V]) {
  switch (dtype) {
    case Dtype::f32:
      return load_row_of<A, V, float>(data, first, out);
    case Dtype::f64:
      return load_row_of<A, V, double>(data, first, out);
    case Dtype::f16:
      return load_row_of<A, V, f16>(data, first, out);
    default:
      return load_row_of<A, V, bf16>(data, first, out);
  }
}

// Bias-like values, [c], [n, c] or absent.
struct Bias {
  const void* data;
  Dtype dtype;
  bool per_sample;

  // For `lane` channels after channel `first` of a plane's pixel.
  template <typename A, int V>
  DD_HD void load(const Batch& b, int64_t plane, int64_t first, A (&out)[V]) const {
    for (int i = 0; i < V; ++i) out[i] = A(0);
    if (data == nullptr) return;
    const int64_t channel = b.channel_of(plane, first);
    const int64_t base = per_sample ? b.sample_of(plane) * b.c + channel : channel;
    load_row<A, V>(data, dtype, base, out);
  }
};

template <typename A>
DD_HD A leaky(A value, A slope) {
  return value > A(0) ? value : value * slope;
}

template <typename A>
DD_HD A leaky_slope(A value, A slope) {
  return value > A(0) ? A(1) : slope;
}

}  // namespace dd
