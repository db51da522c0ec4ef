// The three steps of the norm as plain loops.
#pragma once

#include "dd_norm.h"

namespace dd {

struct HostNorm {
  template <typename T, int V, bool ChannelsLast, bool Backward>
  void norm(NormArgs<T> a) const {
    using W = Walk<T, V, ChannelsLast>;
    const int64_t items = W::items(a.shape), spread = ChannelsLast ? 1 : V;
    a.chunk_items = ceil_div(items, a.chunks);
    for (int64_t n = 0; n < a.shape.n; ++n) {
      for (int64_t chunk = 0; chunk < a.chunks; ++chunk)
        for (int64_t channel = 0; channel < a.shape.c; channel += W::kChannels)
          sum_chunk<T, V, ChannelsLast, Backward>(a, n, chunk, channel, items);
      for (int64_t group = 0; group < a.groups; ++group) {
        const GroupSums<T> sums{a, n, group, a.chunk_items * spread};
        reduce<T, Backward>(sums);
      }
    }
    if (a.out == nullptr) return;
    HostRun()(NormApply<T, V, ChannelsLast, Backward>{a, apply_repeat(items)});
  }

  template <typename T, int V, bool ChannelsLast, bool Backward>
  static void sum_chunk(const NormArgs<T>& a, int64_t n, int64_t chunk, int64_t channel,
                        int64_t items) {
    using A = wide_t<T>;
    using W = Walk<T, V, ChannelsLast>;
    const int64_t begin = chunk * a.chunk_items;
    const int64_t end = begin + a.chunk_items < items ? begin + a.chunk_items : items;
    A pivot[V], first[V], second[V];
    for (int v = 0; v < V; ++v) pivot[v] = first[v] = second[v] = A(0);
    if (begin < end) {
      if constexpr (Backward) {
        sum_gradients<T, V, ChannelsLast>(a, n, channel, begin, end, 1, first, second);
      } else {
        const T* x = a.x + W::start(a.shape, n, channel) + begin * W::step(a.shape);
        for (int v = 0; v < V; ++v) pivot[v] = widen<A>(x[W::channel(v)]);
        sum_moments<T, V, ChannelsLast>(a, n, channel, begin, end, 1, pivot, first, second);
      }
    }
    if constexpr (!ChannelsLast)
      for (int v = 1; v < V; ++v) {
        first[0] += first[v];
        second[0] += second[v];
      }
    const int64_t count = (end - begin) * (ChannelsLast ? 1 : V);
    for (int k = 0; k < W::kChannels; ++k)
      put_chunk<T, Backward>(a, n, chunk, channel + k, count > 0 ? count : 1, pivot[k], first[k],
                             second[k]);
  }

  template <typename T, bool Backward>
  static void reduce(const GroupSums<T>& sums) {
    using A = wide_t<T>;
    if constexpr (Backward) {
      A sum_first = A(0), sum_second = A(0), first, second;
      for (int64_t k = 0; k < sums.a.group_channels(); ++k) {
        sums.channel_part(k, 0, 1, first, second);
        sums.put_channel(k, first, second, sum_first, sum_second);
      }
      sums.put_means(sum_first, sum_second);
    } else {
      const A mean = sums.mean_part(0, 1) / sums.total();
      sums.put_statistics(mean, sums.deviation_part(mean, 0, 1));
    }
  }
};

}  // namespace dd
