// What a FIR filter reads and writes: images alone, fused with bias + leaky ReLU, or with a norm.
#pragma once

#include "dd_norm.h"

namespace dd {

enum class Mode {
  plain,    // y = F x
  act,      // y = F leaky(x + bias)
  tangent,  // y = F (leaky'(other + bias) * x)
  masked,   // y = leaky'(other + bias) * F x
  norm,     // y = F silu(norm x)
  both,     // the same, and skip = F x
};

template <Mode M>
constexpr bool kIsNorm = M == Mode::norm || M == Mode::both;

// Values that are filtered for V channels: with both branches, x follows on the normed samples.
template <int V, Mode M>
constexpr int kLanes = M == Mode::both ? 2 * V : V;

template <typename T>
struct FirArgs {
  const T* x;
  const T* other;  // of x's shape (tangent) or of y's (masked)
  T* y;
  const wide_t<T>* taps;  // [kw] if separable, else [kh, kw]
  wide_t<T> gain, slope;
  wide_t<T> half_sum, half_difference;  // (1 + slope) / 2, (1 - slope) / 2
  int kh, kw;
  bool separable, flip;
  Batch in;  // of x: n, c, in_h * in_w
  Bias bias;
  int64_t in_h, in_w, out_h, out_w;
  int up_x, up_y, down_x, down_y;
  int64_t pad_x, pad_y;
  T* skip;           // both
  NormArgs<T> norm;  // norm and both: all but its x and out

  DD_HD wide_t<T> tap(int j, int i) const {
    if (!flip) {
      j = kh - 1 - j;
      i = kw - 1 - i;
    }
    return separable ? taps[j] * taps[i] * gain : taps[j * kw + i] * gain;
  }
};

// What one channel vector's samples go through, or its sums: the bias of leaky ReLU, or the norm.
template <typename T, int V, Mode M, bool = kIsNorm<M>>
struct Channels {
  using A = wide_t<T>;
  A bias[V];

  DD_HD Channels(const FirArgs<T>& a, int64_t plane, int64_t channel) {
    if constexpr (M != Mode::plain) a.bias.template load<A, V>(a.in, plane, channel, bias);
  }

  DD_HD void load(const FirArgs<T>& a, int64_t at, A (&out)[V]) const {
    load_pack<T, V>(a.x + at, out);
    if constexpr (M == Mode::act) {
      DD_UNROLL
      for (int v = 0; v < V; ++v) {
        const A value = out[v] + bias[v];
        // For half precision two operations without a comparison; they round in the 24th bit.
        out[v] = sizeof(T) == 2 ? a.half_sum * value + a.half_difference * fabs(value)
                                : leaky<A>(value, a.slope);
      }
    }
    if constexpr (M == Mode::tangent) {
      A pre[V];
      load_pack<T, V>(a.other + at, pre);
      DD_UNROLL
      for (int v = 0; v < V; ++v) out[v] *= leaky_slope<A>(pre[v] + bias[v], a.slope);
    }
  }

  DD_HD void store(const FirArgs<T>& a, int64_t at, A (&value)[V]) const {
    if constexpr (M == Mode::masked) {
      A pre[V];
      load_pack<T, V>(a.other + at, pre);
      DD_UNROLL
      for (int v = 0; v < V; ++v) value[v] *= leaky_slope<A>(pre[v] + bias[v], a.slope);
    }
    store_pack<T, V>(a.y + at, value);
  }
};

template <typename T, int V, Mode M>
struct Channels<T, V, M, true> {
  using A = wide_t<T>;
  // Half precision has no digits that subtracting the mean first would save, but many channels.
  static constexpr bool kFolded = sizeof(T) == 2;
  Affine<T, V, true> affine;

  DD_HD Channels(const FirArgs<T>& a, int64_t plane, int64_t channel)
      : affine(a.norm, a.in.sample_of(plane), a.in.channel_of(plane, channel)) {
    if constexpr (kFolded) {
      DD_UNROLL
      for (int v = 0; v < V; ++v) affine.shift[v] -= affine.mean[v] * affine.factor[v];
    }
  }

  DD_HD void load(const FirArgs<T>& a, int64_t at, A (&out)[kLanes<V, M>]) const {
    A in[V];
    load_pack<T, V>(a.x + at, in);
    DD_UNROLL
    for (int v = 0; v < V; ++v) {
      if constexpr (M == Mode::both) out[V + v] = in[v];
      const A centred = kFolded ? in[v] : in[v] - affine.mean[v];
      out[v] = centred * affine.factor[v] + affine.shift[v];
    }
    // One decision for the whole vector.
    if (a.norm.silu) {
      DD_UNROLL
      for (int v = 0; v < V; ++v) out[v] *= sigmoid<T>(out[v]);
    }
  }

  DD_HD void store(const FirArgs<T>& a, int64_t at, const A (&value)[kLanes<V, M>]) const {
    A out[V];
    DD_UNROLL
    for (int v = 0; v < V; ++v) out[v] = value[v];
    store_pack<T, V>(a.y + at, out);
    if constexpr (M == Mode::both) {
      DD_UNROLL
      for (int v = 0; v < V; ++v) out[v] = value[V + v];
      store_pack<T, V>(a.skip + at, out);
    }
  }
};

}  // namespace dd
