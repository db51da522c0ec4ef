// Bias + leaky ReLU and its derivative: V neighbouring elements in memory.
#pragma once

#include "dd_common.h"

namespace dd {

template <typename T>
struct ActArgs {
  const T* x;
  const T* y;  // of the derivative: the result of the forward op; else null
  T* out;
  Batch shape;
  Bias bias;
  wide_t<T> slope, scale;
};

template <typename T, int V, bool Grad>
struct BiasAct {
  using A = wide_t<T>;
  ActArgs<T> a;

  DD_HD uint64_t jobs() const { return a.shape.numel() / V; }

  DD_HD void operator()(uint64_t t) const {
    const int64_t at = static_cast<int64_t>(t) * V;
    A x[V];
    load_pack<T, V>(a.x + at, x);
    if constexpr (Grad) {
      A y[V];
      load_pack<T, V>(a.y + at, y);
      for (int v = 0; v < V; ++v) x[v] = x[v] * a.scale * leaky_slope<A>(y[v], a.slope);
    } else {
      if (a.bias.data != nullptr) {
        A bias[V];
        load_bias(t, bias);
        for (int v = 0; v < V; ++v) x[v] += bias[v];
      }
      for (int v = 0; v < V; ++v) x[v] = leaky<A>(x[v], a.slope) * a.scale;
    }
    store_pack<T, V>(a.out + at, x);
  }

  DD_HD void load_bias(uint64_t t, A (&bias)[V]) const {
    uint64_t plane, lane, pixel;
    if (a.shape.channels_last) {
      divide(t, a.shape.c / V, pixel, lane);
      divide(pixel, a.shape.space, plane, pixel);
      a.bias.template load<A, V>(a.shape, plane, static_cast<int64_t>(lane) * V, bias);
    } else {
      // All V elements belong to one channel.
      divide(t, a.shape.space / V, plane, lane);
      A one[1];
      a.bias.template load<A, 1>(a.shape, plane, 0, one);
      for (int v = 0; v < V; ++v) bias[v] = one[0];
    }
  }
};

template <bool Grad, typename T, typename Run>
void choose_act(const ActArgs<T>& a, bool aligned, const Run& run) {
  constexpr int full = kFullVector<T>;
  const int64_t row = Grad                    ? a.shape.numel()
                      : a.shape.channels_last ? a.shape.c
                                              : a.shape.space;
  if (aligned && row % full == 0) return run(BiasAct<T, full, Grad>{a});
  run(BiasAct<T, 1, Grad>{a});
}

}  // namespace dd
