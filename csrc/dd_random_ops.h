// sample_posterior and q_sample_pair: the work on four elements of one sample, for both devices.
#pragma once

#include "dd_philox.h"

namespace dd {

struct Source {
  const void* data;
  Dtype dtype;
};

// Memory offset of element e (in NCHW order) of sample n.
DD_HD int64_t offset_of(const Batch& b, int64_t n, int64_t e) {
  const int64_t base = n * b.c * b.space;
  if (!b.channels_last) return base + e;
  uint64_t channel, pixel;
  divide(static_cast<uint64_t>(e), static_cast<uint64_t>(b.space), channel, pixel);
  return base + static_cast<int64_t>(pixel) * b.c + static_cast<int64_t>(channel);
}

// A step outside the table gives NaN: the device cannot raise, and nothing else would be seen.
template <int Columns>
DD_HD void table_row(const float* tables, int64_t step, int64_t rows, float (&out)[Columns]) {
  for (int i = 0; i < Columns; ++i)
    out[i] = step >= 0 && step < rows ? tables[step * Columns + i] : NAN;
}

struct PhiloxArgs {
  Draw draw;
  int64_t n, blocks;
  uint32_t stream;
  int64_t* words;   // [n, blocks, 4]
  float* normals;   // [n, blocks, 4]

  DD_HD void operator()(int64_t sample, int64_t block) const {
    const int64_t at = draw.index == nullptr ? sample : draw.index[sample];
    const Words w = philox(static_cast<uint64_t>(*draw.seed), static_cast<uint64_t>(at),
                           static_cast<uint32_t>(block), stream);
    float four[4];
    draw(sample, block, stream, four);
    for (int i = 0; i < 4; ++i) {
      words[(sample * blocks + block) * 4 + i] = w.v[i];
      normals[(sample * blocks + block) * 4 + i] = four[i];
    }
  }
};

// out = tables[t, 0] * x0 + tables[t, 1] * x_next + tables[t, 2] * noise
template <typename A>
struct Posterior {
  Source x0, x_next, noise;  // noise.data null: drawn
  const int64_t* t;
  const float* tables;
  int64_t rows;
  Draw draw;
  Batch shape;
  A* out;

  DD_HD void operator()(int64_t n, int64_t block) const {
    float four[4] = {0, 0, 0, 0};
    if (noise.data == nullptr) draw(n, block, 0, four);
    float row[3];
    table_row(tables, t[n], rows, row);
    const A a = row[0], b = row[1], std = row[2];
    const int64_t elements = shape.c * shape.space;
    for (int i = 0; i < 4; ++i) {
      const int64_t e = block * 4 + i;
      if (e >= elements) return;
      const int64_t at = offset_of(shape, n, e);
      const A z = noise.data == nullptr ? A(four[i]) : load_any<A>(noise.data, noise.dtype, at);
      const A mean = load_any<A>(x0.data, x0.dtype, at) * a +
                     load_any<A>(x_next.data, x_next.dtype, at) * b;
      out[at] = mean + z * std;
    }
  }
};

// x_t = tables[t, 0] * x0 + tables[t, 1] * noise_t; x_{t+1} likewise from x_t.
template <typename A>
struct QSamplePair {
  Source x0, noise_next, noise_t;  // x0 of dtype u8: images [n, h, w, c], to [-1, 1]
  const bool* flip;                // null: no image is mirrored
  const int64_t* t;
  const float* tables;
  int64_t rows, width;
  Draw draw;
  Batch shape;
  A* x_t;
  A* x_next;

  DD_HD A data(int64_t n, int64_t e) const {
    if (x0.dtype != Dtype::u8) return load_any<A>(x0.data, x0.dtype, offset_of(shape, n, e));
    uint64_t channel, pixel, y, x;
    divide(static_cast<uint64_t>(e), static_cast<uint64_t>(shape.space), channel, pixel);
    divide(pixel, static_cast<uint64_t>(width), y, x);
    if (flip != nullptr && flip[n]) x = static_cast<uint64_t>(width) - 1 - x;
    const int64_t at = n * shape.c * shape.space +
                       static_cast<int64_t>((y * width + x) * shape.c + channel);
    const float value = static_cast<float>(static_cast<const uint8_t*>(x0.data)[at]);
#ifdef __CUDA_ARCH__
    // Two roundings, as everywhere else.
    return A(__fadd_rn(__fmul_rn(value, 1.0f / 127.5f), -1.0f));
#else
    return A(value * (1.0f / 127.5f) - 1.0f);
#endif
  }

  DD_HD void operator()(int64_t n, int64_t block) const {
    float next[4] = {0, 0, 0, 0}, now[4] = {0, 0, 0, 0};
    const bool drawn = noise_t.data == nullptr;
    if (drawn) {
      draw(n, block, 0, next);
      draw(n, block, 1, now);
    }
    float row[4];
    table_row(tables, t[n], rows, row);
    const A signal = row[0], sigma = row[1], signal_next = row[2], sigma_next = row[3];
    const int64_t elements = shape.c * shape.space;
    for (int i = 0; i < 4; ++i) {
      const int64_t e = block * 4 + i;
      if (e >= elements) return;
      const int64_t at = offset_of(shape, n, e);
      const A z = drawn ? A(now[i]) : load_any<A>(noise_t.data, noise_t.dtype, at);
      const A z_next = drawn ? A(next[i]) : load_any<A>(noise_next.data, noise_next.dtype, at);
      const A value = data(n, e) * signal + z * sigma;
      x_t[at] = value;
      x_next[at] = value * signal_next + z_next * sigma_next;
    }
  }
};

template <typename Job>
void run_on_host(const Job& job, int64_t n, int64_t blocks) {
  for (int64_t i = 0; i < n; ++i)
    for (int64_t block = 0; block < blocks; ++block) job(i, block);
}

// One thread for each (sample, block of four elements).
template <typename Job>
void run_on_device(const Job& job, int64_t n, int64_t blocks, void* stream);

}  // namespace dd
