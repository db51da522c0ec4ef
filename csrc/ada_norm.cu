#include "dd_cuda.cuh"
#include "dd_kernels.h"
#include "dd_run.cuh"

namespace dd {
namespace {

// Channel vectors that one block walks side by side.
constexpr int kTile = 32;

template <typename A>
__device__ __forceinline__ A warp_sum(A value) {
  // Every lane ends with the same bits: addition commutes at each step.
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xFFFFFFFFu, value, step);
  return value;
}

// channels_last: a block takes one chunk of pixels and up to kTile channel vectors; its threads
// form rows of `tile` vectors, whose sums meet in shared memory in a fixed order.
template <typename T, int V, bool Backward>
__global__ void __launch_bounds__(kThreads, 2) sum_pixels(NormArgs<T> a, int tile, int64_t tiles) {
  using A = wide_t<T>;
  __shared__ A sums[2 * V * kThreads];
  const int lane = threadIdx.x % tile, row = threadIdx.x / tile, rows = kThreads / tile;
  uint64_t block = blockIdx.x, which, chunk, n;
  divide(block, tiles, block, which);
  divide(block, a.chunks, n, chunk);
  const int64_t channel = (static_cast<int64_t>(which) * tile + lane) * V;
  const int64_t begin = chunk * a.chunk_items;
  const int64_t end = min(begin + a.chunk_items, a.shape.space);
  const bool active = row < rows && channel < a.shape.c;
  A pivot[V], first[V], second[V];
  DD_UNROLL
  for (int v = 0; v < V; ++v) pivot[v] = first[v] = second[v] = A(0);
  if (active && begin < end) {
    if constexpr (Backward) {
      sum_gradients<T, V, true>(a, n, channel, begin + row, end, rows, first, second);
    } else {
      load_pack<T, V>(a.x + (n * a.shape.space + begin) * a.shape.c + channel, pivot);
      sum_moments<T, V, true>(a, n, channel, begin + row, end, rows, pivot, first, second);
    }
  }
  DD_UNROLL
  for (int v = 0; v < V; ++v) {
    sums[(threadIdx.x * V + v) * 2] = first[v];
    sums[(threadIdx.x * V + v) * 2 + 1] = second[v];
  }
  __syncthreads();
  for (int k = threadIdx.x; k < tile * V; k += kThreads) {
    const int64_t to = static_cast<int64_t>(which) * tile * V + k;
    if (to >= a.shape.c) break;
    A one = A(0), two = A(0);
    for (int r = 0; r < rows; ++r) {
      one += sums[(r * tile * V + k) * 2];
      two += sums[(r * tile * V + k) * 2 + 1];
    }
    const bool filled = begin < end;
    const A at = Backward || !filled
                     ? A(0)
                     : widen<A>(a.x[(n * a.shape.space + begin) * a.shape.c + to]);
    put_chunk<T, Backward>(a, n, chunk, to, filled ? end - begin : 1, at, one, two);
  }
}

// NCHW: a warp takes one chunk of one channel.
template <typename T, int V, bool Backward>
__global__ void __launch_bounds__(kThreads, 2) sum_plane(NormArgs<T> a, uint64_t warps) {
  using A = wide_t<T>;
  const uint64_t warp = thread_number() / 32;
  const int lane = threadIdx.x % 32;
  if (warp >= warps) return;
  uint64_t plane, chunk, n, channel;
  divide(warp, a.chunks, plane, chunk);
  divide(plane, a.shape.c, n, channel);
  const int64_t begin = chunk * a.chunk_items;
  const int64_t end = min(begin + a.chunk_items, a.shape.space / V);
  A pivot[V], first[V], second[V];
  const A at = Backward || begin >= end ? A(0) : widen<A>(a.x[plane * a.shape.space + begin * V]);
  DD_UNROLL
  for (int v = 0; v < V; ++v) {
    pivot[v] = at;
    first[v] = second[v] = A(0);
  }
  if constexpr (Backward)
    sum_gradients<T, V, false>(a, n, channel, begin + lane, end, 32, first, second);
  else
    sum_moments<T, V, false>(a, n, channel, begin + lane, end, 32, pivot, first, second);
  A one = first[0], two = second[0];
  DD_UNROLL
  for (int v = 1; v < V; ++v) {
    one += first[v];
    two += second[v];
  }
  one = warp_sum(one);
  two = warp_sum(two);
  if (lane == 0)
    put_chunk<T, Backward>(a, n, chunk, channel, begin < end ? (end - begin) * V : 1, at, one, two);
}

// A warp for each group of each sample.
template <typename T, bool Backward>
__global__ void __launch_bounds__(kThreads, 2) reduce_groups(NormArgs<T> a, int64_t chunk_values) {
  using A = wide_t<T>;
  const uint64_t warp = thread_number() / 32;
  const int lane = threadIdx.x % 32;
  if (warp >= static_cast<uint64_t>(a.shape.n * a.groups)) return;
  uint64_t n, group;
  divide(warp, a.groups, n, group);
  const GroupSums<T> sums{a, static_cast<int64_t>(n), static_cast<int64_t>(group), chunk_values};
  if constexpr (Backward) {
    A sum_first = A(0), sum_second = A(0), first, second;
    for (int64_t k = 0; k < a.group_channels(); ++k) {
      sums.channel_part(k, lane, 32, first, second);
      first = warp_sum(first);
      second = warp_sum(second);
      if (lane == 0) sums.put_channel(k, first, second, sum_first, sum_second);
    }
    if (lane == 0) sums.put_means(sum_first, sum_second);
  } else {
    const A mean = warp_sum(sums.mean_part(lane, 32)) / sums.total();
    const A deviation = warp_sum(sums.deviation_part(mean, lane, 32));
    if (lane == 0) sums.put_statistics(mean, deviation);
  }
}

struct DeviceNorm {
  void* stream;

  template <typename T, int V, bool ChannelsLast, bool Backward>
  void norm(NormArgs<T> a) const {
    using W = Walk<T, V, ChannelsLast>;
    const auto on = static_cast<cudaStream_t>(stream);
    const int64_t items = W::items(a.shape);
    a.chunk_items = ceil_div(items, a.chunks);
    if constexpr (ChannelsLast) {
      const int64_t vectors = a.shape.c / V;
      const int tile = static_cast<int>(vectors < kTile ? vectors : kTile);
      const int64_t tiles = ceil_div(vectors, tile), blocks = a.shape.n * a.chunks * tiles;
      sum_pixels<T, V, Backward><<<grid_of(blocks, 1), kThreads, 0, on>>>(a, tile, tiles);
    } else {
      const int64_t warps = a.shape.n * a.shape.c * a.chunks;
      sum_plane<T, V, Backward><<<grid_of(warps * 32), kThreads, 0, on>>>(a, warps);
    }
    check_launch("the norm's sums");
    reduce_groups<T, Backward><<<grid_of(a.shape.n * a.groups * 32), kThreads, 0, on>>>(
        a, a.chunk_items * (ChannelsLast ? 1 : V));
    check_launch("the norm's reduction");
    if (a.out == nullptr) return;
    DeviceRun{stream}(NormApply<T, V, ChannelsLast, Backward>{a, apply_repeat(items)});
  }
};

}  // namespace

template <bool Backward, typename T>
void norm_on_device(const NormArgs<T>& a, bool aligned, void* stream) {
  choose_norm<Backward>(a, aligned, DeviceNorm{stream});
}

#define DD_NORM(T)                                                            \
  template void norm_on_device<false>(const NormArgs<T>&, bool, void*); \
  template void norm_on_device<true>(const NormArgs<T>&, bool, void*);
DD_NORM(float)
DD_NORM(double)
DD_NORM(f16)
DD_NORM(bf16)

}  // namespace dd
