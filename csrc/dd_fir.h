// FIR resampling, alone or fused with bias + leaky ReLU or with group norm + SiLU: what one thread
// does, for both devices.
//
// Per axis: y[o] = sum_j w[j] * xup[o * down + j - pad], where xup holds x with up - 1 zeros after
// every sample and w are the taps, reversed for a convolution.
#pragma once

#include "dd_fir_modes.h"

namespace dd {

// Any taps, any factors: one output pixel, V channels.
template <typename T, int V, Mode M>
struct FirAny {
  using A = wide_t<T>;
  static constexpr int L = kLanes<V, M>;
  FirArgs<T> a;

  DD_HD uint64_t jobs() const { return a.in.planes() * a.out_h * a.out_w * (a.in.pixel() / V); }

  DD_HD void operator()(uint64_t t) const {
    uint64_t rest, lane, ox, oy, plane;
    const int64_t pixel = a.in.pixel();
    divide(t, pixel / V, rest, lane);
    divide(rest, a.out_w, rest, ox);
    divide(rest, a.out_h, plane, oy);
    const int64_t channel = static_cast<int64_t>(lane) * V;
    const Channels<T, V, M> channels(a, plane, channel);
    A in[L], out[L];
    for (int v = 0; v < L; ++v) out[v] = A(0);

    const int64_t y0 = static_cast<int64_t>(oy) * a.down_y - a.pad_y;
    const int64_t x0 = static_cast<int64_t>(ox) * a.down_x - a.pad_x;
    // The first tap that meets a sample, and that sample.
    const int64_t iy0 = -floor_div(-y0, a.up_y), ix0 = -floor_div(-x0, a.up_x);
    const int j0 = static_cast<int>(iy0 * a.up_y - y0), i0 = static_cast<int>(ix0 * a.up_x - x0);
    const int64_t base = static_cast<int64_t>(plane) * a.in_h * a.in_w * pixel + channel;
    int64_t iy = iy0;
    for (int j = j0; j < a.kh; j += a.up_y, ++iy) {
      if (iy < 0 || iy >= a.in_h) continue;
      int64_t ix = ix0;
      for (int i = i0; i < a.kw; i += a.up_x, ++ix) {
        if (ix < 0 || ix >= a.in_w) continue;
        channels.load(a, base + (iy * a.in_w + ix) * pixel, in);
        const A w = a.tap(j, i);
        for (int v = 0; v < L; ++v) out[v] += w * in[v];
      }
    }
    channels.store(a, static_cast<int64_t>(t) * V, out);
  }
};

// What the two rolling kernels share: a thread walks down a strip of rows at one column.
template <typename T, int V>
struct Strip {
  using A = wide_t<T>;
  uint64_t plane, strip, column;
  int64_t channel;
  A wx[4], wy[4];

  DD_HD Strip(const FirArgs<T>& a, uint64_t t, uint64_t columns, uint64_t strips) {
    uint64_t rest, lane;
    divide(t, a.in.pixel() / V, rest, lane);
    divide(rest, columns, rest, column);
    divide(rest, strips, plane, strip);
    channel = static_cast<int64_t>(lane) * V;
    DD_UNROLL
    for (int i = 0; i < 4; ++i) {
      wx[i] = a.flip ? a.taps[i] : a.taps[3 - i];
      wy[i] = wx[i] * a.gain;
    }
  }
};

// Four separable taps, every second sample kept; a thread makes C neighbouring columns. Each row
// is filtered once, along x, and enters the sums of two output rows.
template <typename T, int V, Mode M, int C>
struct FirDown2 {
  using A = wide_t<T>;
  static constexpr int L = kLanes<V, M>;
  static constexpr int N = 2 * C + 2;  // input columns
  FirArgs<T> a;
  int64_t rows;

  DD_HD uint64_t strips() const { return ceil_div(a.out_h, rows); }
  DD_HD uint64_t columns() const { return ceil_div(a.out_w, C); }
  DD_HD uint64_t jobs() const {
    return a.in.planes() * strips() * columns() * (a.in.pixel() / V);
  }

  DD_HD void operator()(uint64_t t) const {
    const Strip<T, V> s(a, t, columns(), strips());
    const int64_t pixel = a.in.pixel();
    const Channels<T, V, M> channels(a, s.plane, s.channel);

    const int64_t ox = static_cast<int64_t>(s.column) * C, ix = 2 * ox - a.pad_x;
    int32_t at[N];
    A w[C][4];
    DD_UNROLL
    for (int l = 0; l < N; ++l) {
      // Columns outside are read inside, and count nothing.
      const int64_t x = ix + l < 0 ? 0 : ix + l >= a.in_w ? a.in_w - 1 : ix + l;
      at[l] = static_cast<int32_t>(x * pixel);
    }
    DD_UNROLL
    for (int c = 0; c < C; ++c) {
      DD_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int64_t x = ix + 2 * c + i;
        w[c][i] = x >= 0 && x < a.in_w ? s.wx[i] : A(0);
      }
    }
    const int64_t base = static_cast<int64_t>(s.plane) * a.in_h * a.in_w * pixel + s.channel;
    const int64_t first = static_cast<int64_t>(s.strip) * rows;
    const int64_t end = first + rows < a.out_h ? first + rows : a.out_h;
    int64_t iy = 2 * first - a.pad_y;
    A sum[C][L], next[C][L];
    clear(sum);
    clear(next);
    add_row(base, iy, at, w, channels, s.wy[0], sum, A(0), next);
    add_row(base, iy + 1, at, w, channels, s.wy[1], sum, A(0), next);
    int64_t to = ((static_cast<int64_t>(s.plane) * a.out_h + first) * a.out_w + ox) * pixel +
                 s.channel;
    for (int64_t oy = first; oy < end; ++oy) {
      iy += 2;
      clear(next);
      add_row(base, iy, at, w, channels, s.wy[2], sum, s.wy[0], next);
      add_row(base, iy + 1, at, w, channels, s.wy[3], sum, s.wy[1], next);
      DD_UNROLL
      for (int c = 0; c < C; ++c)
        if (c == 0 || ox + c < a.out_w) channels.store(a, to + c * pixel, sum[c]);
      DD_UNROLL
      for (int c = 0; c < C; ++c) {
        DD_UNROLL
        for (int v = 0; v < L; ++v) sum[c][v] = next[c][v];
      }
      to += a.out_w * pixel;
    }
  }

  static DD_HD void clear(A (&sum)[C][L]) {
    DD_UNROLL
    for (int c = 0; c < C; ++c) {
      DD_UNROLL
      for (int v = 0; v < L; ++v) sum[c][v] = A(0);
    }
  }

  // Adds the filtered input row to the sums of the two output rows that it enters.
  DD_HD void add_row(int64_t base, int64_t iy, const int32_t (&at)[N], const A (&w)[C][4],
                     const Channels<T, V, M>& channels, A wa, A (&sum)[C][L], A wb,
                     A (&next)[C][L]) const {
    if (iy < 0 || iy >= a.in_h) return;
    const int64_t line = base + iy * a.in_w * a.in.pixel();
    A h[C][L];
    clear(h);
    DD_UNROLL
    for (int l = 0; l < N; ++l) {
      A in[L];
      channels.load(a, line + at[l], in);
      DD_UNROLL
      for (int c = 0; c < C; ++c) {
        const int i = l - 2 * c;
        if (i < 0 || i > 3) continue;
        DD_UNROLL
        for (int v = 0; v < L; ++v) h[c][v] += w[c][i] * in[v];
      }
    }
    DD_UNROLL
    for (int c = 0; c < C; ++c) {
      DD_UNROLL
      for (int v = 0; v < L; ++v) {
        sum[c][v] += wa * h[c][v];
        next[c][v] += wb * h[c][v];
      }
    }
  }
};

// Four separable taps between inserted zeros. The output rows 2m - 1 + pad and 2m + pad both come
// from the input rows m and m + 1, with the odd and with the even taps; columns likewise.
template <typename T, int V, Mode M>
struct FirUp2 {
  using A = wide_t<T>;
  static constexpr int L = kLanes<V, M>;
  FirArgs<T> a;
  int64_t rows;

  static DD_HD int64_t first_pair(int64_t pad) { return -floor_div(pad, 2); }
  static DD_HD int64_t pairs(int64_t out, int64_t pad) {
    return -floor_div(pad + 1 - out, 2) - first_pair(pad) + 1;
  }
  DD_HD uint64_t strips() const { return ceil_div(pairs(a.out_h, a.pad_y), rows); }
  DD_HD uint64_t columns() const { return pairs(a.out_w, a.pad_x); }
  DD_HD uint64_t jobs() const {
    return a.in.planes() * strips() * columns() * (a.in.pixel() / V);
  }

  DD_HD void operator()(uint64_t t) const {
    const Strip<T, V> s(a, t, columns(), strips());
    const Channels<T, V, M> channels(a, s.plane, s.channel);
    const int64_t mx = first_pair(a.pad_x) + static_cast<int64_t>(s.column);
    const int64_t first = first_pair(a.pad_y) + static_cast<int64_t>(s.strip) * rows;
    const int64_t last = first_pair(a.pad_y) + pairs(a.out_h, a.pad_y);
    const int64_t end = first + rows < last ? first + rows : last;
    const int64_t pixel = a.in.pixel();
    const int64_t base = static_cast<int64_t>(s.plane) * a.in_h * a.in_w * pixel + s.channel;
    A odd[L], even[L], next_odd[L], next_even[L];
    row(base, mx, first, s, channels, odd, even);
    for (int64_t m = first; m < end; ++m) {
      row(base, mx, m + 1, s, channels, next_odd, next_even);
      const int64_t oy = 2 * m - 1 + a.pad_y, ox = 2 * mx - 1 + a.pad_x;
      put(oy, ox, s, s.wy[1], odd, s.wy[3], next_odd, channels);
      put(oy, ox + 1, s, s.wy[1], even, s.wy[3], next_even, channels);
      put(oy + 1, ox, s, s.wy[0], odd, s.wy[2], next_odd, channels);
      put(oy + 1, ox + 1, s, s.wy[0], even, s.wy[2], next_even, channels);
      DD_UNROLL
      for (int v = 0; v < L; ++v) {
        odd[v] = next_odd[v];
        even[v] = next_even[v];
      }
    }
  }

  DD_HD void row(int64_t base, int64_t mx, int64_t iy, const Strip<T, V>& s,
                 const Channels<T, V, M>& channels, A (&odd)[L], A (&even)[L]) const {
    A near[L], far[L];
    for (int v = 0; v < L; ++v) near[v] = far[v] = A(0);
    if (iy >= 0 && iy < a.in_h) {
      const int64_t pixel = a.in.pixel(), at = base + (iy * a.in_w + mx) * pixel;
      if (mx >= 0 && mx < a.in_w) channels.load(a, at, near);
      if (mx + 1 >= 0 && mx + 1 < a.in_w) channels.load(a, at + pixel, far);
    }
    DD_UNROLL
    for (int v = 0; v < L; ++v) {
      odd[v] = s.wx[1] * near[v] + s.wx[3] * far[v];
      even[v] = s.wx[0] * near[v] + s.wx[2] * far[v];
    }
  }

  DD_HD void put(int64_t oy, int64_t ox, const Strip<T, V>& s, A wa, const A (&x)[L], A wb,
                 const A (&y)[L], const Channels<T, V, M>& channels) const {
    if (oy < 0 || oy >= a.out_h || ox < 0 || ox >= a.out_w) return;
    A out[L];
    DD_UNROLL
    for (int v = 0; v < L; ++v) out[v] = wa * x[v] + wb * y[v];
    const int64_t pixel = a.in.pixel();
    const int64_t at =
        ((static_cast<int64_t>(s.plane) * a.out_h + oy) * a.out_w + ox) * pixel + s.channel;
    channels.store(a, at, out);
  }
};

// Chooses the kernel; Run is called with it.
template <Mode M, typename T, typename Run>
void choose_fir(const FirArgs<T>& a, bool aligned, const Run& run) {
  constexpr int full = kFullVector<T>;
  const bool vectors = a.in.channels_last && a.in.c % full == 0 && aligned;
  const bool four = a.separable && a.kw == 4 && a.up_x == a.up_y && a.down_x == a.down_y;
  const int64_t line = a.in_w * a.in.pixel();
  const bool some = a.in_h > 0 && line > 0 && line <= INT32_MAX;
  if constexpr (!std::is_same_v<T, double>) {
    if constexpr (M != Mode::masked) {
      if (four && a.up_x == 1 && a.down_x == 2 && some) {
        // Two inputs or sums for each column: one column is what fits into the registers.
        constexpr int C = M == Mode::tangent || M == Mode::both ? 1 : 2;
        const int64_t columns =
            a.in.planes() * ceil_div(a.out_w, C) * (a.in.pixel() / (vectors ? full : 1));
        const int64_t rows = run.strip(columns, a.out_h);
        return vectors ? run(FirDown2<T, full, M, C>{a, rows})
                       : run(FirDown2<T, 1, M, C>{a, rows});
      }
    }
    if constexpr (M != Mode::act && M != Mode::tangent) {
      if (four && a.up_x == 2 && a.down_x == 1) {
        const int64_t columns = a.in.planes() * a.in_w * (a.in.pixel() / (vectors ? full : 1));
        const int64_t rows = run.strip(columns, a.in_h);
        return vectors ? run(FirUp2<T, full, M>{a, rows}) : run(FirUp2<T, 1, M>{a, rows});
      }
    }
    if (vectors) return run(FirAny<T, full, M>{a});
  }
  run(FirAny<T, 1, M>{a});
}

}  // namespace dd
