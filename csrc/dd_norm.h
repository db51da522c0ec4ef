// Group norm with a scale and shift per sample and channel, then SiLU: forward and backward.
//
// y = silu(a), a = (x - mean) * rstd * scale + shift; with da = grad * silu'(a)
// grad_x = rstd * (scale * da - <scale * da> - xhat * <scale * da * xhat>), < > the group's mean.
//
// Each direction has three steps: sums over chunks of every channel into a workspace
// [n, chunks, c, 2], their reduction in a fixed order, and one pass that writes the result.
#pragma once

#include "dd_run.h"

namespace dd {

template <typename T>
struct NormArgs {
  using A = wide_t<T>;
  const T* x;
  const T* grad;  // backward only
  T* out;         // y, or the gradient of x; null where only the statistics are wanted
  const void* scale;
  const void* shift;
  Dtype scale_dtype, shift_dtype;
  A* mean;  // [n, groups], written by the forward direction
  A* rstd;
  void* grad_scale;  // [n, c], of scale's and shift's dtype
  void* grad_shift;
  A* workspace;     // [n, chunks, c, 2]
  A* group_means;   // backward: [n, groups, 2]
  Batch shape;
  int64_t groups, chunks, chunk_items;
  A eps;
  bool silu;

  DD_HD int64_t group_channels() const { return shape.c / groups; }
  DD_HD int64_t group_of(int64_t n, int64_t channel) const {
    return n * groups + channel / group_channels();
  }
};

// How one channel vector is walked: V channels of a pixel, or V pixels of a channel.
template <typename T, int V, bool ChannelsLast>
struct Walk {
  static constexpr int kChannels = ChannelsLast ? V : 1;
  static DD_HD int64_t items(const Batch& b) { return ChannelsLast ? b.space : b.space / V; }
  static DD_HD int64_t step(const Batch& b) { return ChannelsLast ? b.c : V; }
  static DD_HD int64_t start(const Batch& b, int64_t n, int64_t channel) {
    return ChannelsLast ? n * b.space * b.c + channel : (n * b.c + channel) * b.space;
  }
  static DD_HD int channel(int v) { return ChannelsLast ? v : 0; }
};

template <typename T, typename A>
DD_HD A sigmoid(A a) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(T) == 2) {
    // Two special-function instructions; their error is far below half precision's.
    float power, inverse;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(a * -1.4426950408889634f));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(1.0f + power));
    return inverse;
  }
#endif
  return A(1) / (A(1) + exp(-a));
}

template <typename T, typename A>
DD_HD A silu_slope(A a) {
  const A s = sigmoid<T>(a);
  return s * (A(1) + a * (A(1) - s));
}

// a = (x - mean) * factor + shift for the channels of one vector.
template <typename T, int V, bool ChannelsLast>
struct Affine {
  using A = wide_t<T>;
  static constexpr int K = Walk<T, V, ChannelsLast>::kChannels;
  A mean[K], factor[K], shift[K];

  DD_HD Affine(const NormArgs<T>& a, int64_t n, int64_t channel) {
    const int64_t at = n * a.shape.c + channel;
    load_row<A, K>(a.scale, a.scale_dtype, at, factor);
    load_row<A, K>(a.shift, a.shift_dtype, at, shift);
    DD_UNROLL
    for (int k = 0; k < K; ++k) {
      const int64_t g = a.group_of(n, channel + k);
      mean[k] = a.mean[g];
      factor[k] *= a.rstd[g];
    }
  }
};

// Sums over items begin, begin + stride, ... of (x - pivot) and its square, V lanes apart.
template <typename T, int V, bool ChannelsLast>
DD_HD void sum_moments(const NormArgs<T>& a, int64_t n, int64_t channel, int64_t begin,
                       int64_t end, int64_t stride, const wide_t<T> (&pivot)[V],
                       wide_t<T> (&first)[V], wide_t<T> (&second)[V]) {
  using A = wide_t<T>;
  using W = Walk<T, V, ChannelsLast>;
  const T* x = a.x + W::start(a.shape, n, channel);
  const int64_t step = W::step(a.shape);
  for (int v = 0; v < V; ++v) first[v] = second[v] = A(0);
#ifdef __CUDA_ARCH__
#pragma unroll 4
#endif
  for (int64_t i = begin; i < end; i += stride) {
    A in[V];
    load_pack<T, V>(x + i * step, in);
    DD_UNROLL
    for (int v = 0; v < V; ++v) {
      const A d = in[v] - pivot[v];
      first[v] += d;
      second[v] += d * d;
    }
  }
}

// Sums of da and of da * (x - mean).
template <typename T, int V, bool ChannelsLast>
DD_HD void sum_gradients(const NormArgs<T>& a, int64_t n, int64_t channel, int64_t begin,
                         int64_t end, int64_t stride, wide_t<T> (&first)[V],
                         wide_t<T> (&second)[V]) {
  using A = wide_t<T>;
  using W = Walk<T, V, ChannelsLast>;
  const int64_t start = W::start(a.shape, n, channel), step = W::step(a.shape);
  const Affine<T, V, ChannelsLast> affine(a, n, channel);
  for (int v = 0; v < V; ++v) first[v] = second[v] = A(0);
#ifdef __CUDA_ARCH__
#pragma unroll 2
#endif
  for (int64_t i = begin; i < end; i += stride) {
    A x[V], da[V];
    load_pack<T, V>(a.x + start + i * step, x);
    load_pack<T, V>(a.grad + start + i * step, da);
    // One decision for the whole vector.
    if (a.silu) {
      DD_UNROLL
      for (int v = 0; v < V; ++v) {
        const int k = W::channel(v);
        da[v] *= silu_slope<T>((x[v] - affine.mean[k]) * affine.factor[k] + affine.shift[k]);
      }
    }
    DD_UNROLL
    for (int v = 0; v < V; ++v) {
      first[v] += da[v];
      second[v] += da[v] * (x[v] - affine.mean[W::channel(v)]);
    }
  }
}

// One chunk of one channel enters the workspace: (mean, sum of squared deviations), or (sum of
// da, sum of da * xhat). `count` values went into the sums.
template <typename T, bool Backward>
DD_HD void put_chunk(const NormArgs<T>& a, int64_t n, int64_t chunk, int64_t channel, int64_t count,
                     wide_t<T> pivot, wide_t<T> first, wide_t<T> second) {
  using A = wide_t<T>;
  A* to = a.workspace + ((n * a.chunks + chunk) * a.shape.c + channel) * 2;
  if constexpr (Backward) {
    to[0] = first;
    to[1] = second * a.rstd[a.group_of(n, channel)];
  } else {
    const A mean = first / A(count);
    to[0] = pivot + mean;
    const A rest = second - first * mean;
    to[1] = rest > A(0) ? rest : A(0);
  }
}

// Reduction of a group's chunks; `lane` of `lanes` threads takes every lanes-th entry.
template <typename T>
struct GroupSums {
  using A = wide_t<T>;
  const NormArgs<T>& a;
  int64_t n, group;
  int64_t chunk_values;  // spatial positions of a full chunk

  DD_HD int64_t entries() const { return a.group_channels() * a.chunks; }
  DD_HD A count(int64_t chunk) const {
    const int64_t left = a.shape.space - chunk * chunk_values;
    return A(left < 0 ? 0 : left < chunk_values ? left : chunk_values);
  }
  DD_HD const A* entry(int64_t chunk, int64_t k) const {
    return a.workspace +
           ((n * a.chunks + chunk) * a.shape.c + group * a.group_channels() + k) * 2;
  }
  DD_HD A total() const { return A(a.group_channels()) * A(a.shape.space); }

  DD_HD A mean_part(int lane, int lanes) const {
    A sum = A(0);
    for (int64_t i = lane; i < entries(); i += lanes) {
      const int64_t chunk = i / a.group_channels();
      sum += entry(chunk, i - chunk * a.group_channels())[0] * count(chunk);
    }
    return sum;
  }
  DD_HD A deviation_part(A mean, int lane, int lanes) const {
    A sum = A(0);
    for (int64_t i = lane; i < entries(); i += lanes) {
      const int64_t chunk = i / a.group_channels();
      const A* e = entry(chunk, i - chunk * a.group_channels());
      sum += e[1] + count(chunk) * (e[0] - mean) * (e[0] - mean);
    }
    return sum;
  }
  DD_HD void channel_part(int64_t k, int lane, int lanes, A& first, A& second) const {
    first = second = A(0);
    for (int64_t chunk = lane; chunk < a.chunks; chunk += lanes) {
      first += entry(chunk, k)[0];
      second += entry(chunk, k)[1];
    }
  }
  DD_HD void put_statistics(A mean, A deviation) const {
    a.mean[n * a.groups + group] = mean;
    a.rstd[n * a.groups + group] = A(1) / sqrt(deviation / total() + a.eps);
  }
  // The gradients of scale and shift of channel k; returns what they add to the group's means.
  DD_HD void put_channel(int64_t k, A first, A second, A& sum_first, A& sum_second) const {
    const int64_t at = n * a.shape.c + group * a.group_channels() + k;
    store_any<A>(a.grad_shift, a.shift_dtype, at, first);
    store_any<A>(a.grad_scale, a.scale_dtype, at, second);
    const A scale = load_any<A>(a.scale, a.scale_dtype, at);
    sum_first += scale * first;
    sum_second += scale * second;
  }
  DD_HD void put_means(A sum_first, A sum_second) const {
    a.group_means[(n * a.groups + group) * 2] = sum_first / total();
    a.group_means[(n * a.groups + group) * 2 + 1] = sum_second / total();
  }
};

// The last pass. A thread writes `repeat` items of one channel vector, `threads` items apart.
template <typename T, int V, bool ChannelsLast, bool Backward>
struct NormApply {
  using A = wide_t<T>;
  using W = Walk<T, V, ChannelsLast>;
  NormArgs<T> a;
  int64_t repeat;

  DD_HD int64_t threads() const { return ceil_div(W::items(a.shape), repeat); }
  DD_HD uint64_t jobs() const {
    return a.shape.n * (a.shape.c / W::kChannels) * threads();
  }

  DD_HD void operator()(uint64_t t) const {
    uint64_t n, lane, item;
    if constexpr (ChannelsLast) {
      divide(t, a.shape.c / V, item, lane);
      divide(item, threads(), n, item);
    } else {
      divide(t, threads(), lane, item);
      divide(lane, a.shape.c, n, lane);
    }
    // Backwards: the samples that were summed last are still in the cache.
    n = static_cast<uint64_t>(a.shape.n) - 1 - n;
    const int64_t channel = static_cast<int64_t>(lane) * W::kChannels;
    const Affine<T, V, ChannelsLast> affine(a, n, channel);
    const int64_t start = W::start(a.shape, n, channel), step = W::step(a.shape);
    A offset[W::kChannels], slope[W::kChannels];
    if constexpr (Backward) {
      DD_UNROLL
      for (int k = 0; k < W::kChannels; ++k) {
        const int64_t g = a.group_of(n, channel + k);
        offset[k] = a.rstd[g] * a.group_means[2 * g];
        slope[k] = a.rstd[g] * a.rstd[g] * a.group_means[2 * g + 1];
      }
    }
#ifdef __CUDA_ARCH__
#pragma unroll 2
#endif
    for (int64_t i = item; i < W::items(a.shape); i += threads()) {
      const int64_t at = start + i * step;
      A x[V], grad[V];
      load_pack<T, V>(a.x + at, x);
      if constexpr (Backward) load_pack<T, V>(a.grad + at, grad);
      A value[V];
      DD_UNROLL
      for (int v = 0; v < V; ++v) {
        const int k = W::channel(v);
        x[v] -= affine.mean[k];
        value[v] = x[v] * affine.factor[k] + affine.shift[k];
      }
      // One decision for the whole vector.
      if (a.silu) {
        DD_UNROLL
        for (int v = 0; v < V; ++v) {
          if constexpr (Backward)
            grad[v] *= silu_slope<T>(value[v]);
          else
            value[v] *= sigmoid<T>(value[v]);
        }
      }
      DD_UNROLL
      for (int v = 0; v < V; ++v) {
        const int k = W::channel(v);
        if constexpr (Backward)
          x[v] = grad[v] * affine.factor[k] - offset[k] - x[v] * slope[k];
        else
          x[v] = value[v];
      }
      store_pack<T, V>(a.out + at, x);
    }
  }
};

inline int64_t apply_repeat(int64_t items) {
  return items >= 1024 ? 8 : items >= 128 ? items / 128 : 1;
}

// Run is called with the types: run.norm<T, V, ChannelsLast, Backward>(args).
template <bool Backward, typename T, typename Run>
void choose_norm(const NormArgs<T>& a, bool aligned, const Run& run) {
  constexpr int full = kFullVector<T>;
  if (a.shape.channels_last) {
    if (aligned && a.shape.c % full == 0) return run.template norm<T, full, true, Backward>(a);
    return run.template norm<T, 1, true, Backward>(a);
  }
  if (aligned && a.shape.space % full == 0) return run.template norm<T, full, false, Backward>(a);
  run.template norm<T, 1, false, Backward>(a);
}

}  // namespace dd
