// Philox4x32-10 and Box-Muller: the same integers and the same formula as kernels/philox.py.
// Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
#pragma once

#include "dd_common.h"

namespace dd {

struct Words {
  uint32_t v[4];
};

// The key is the seed's two halves; the counter is (block, stream, index low, index high).
DD_HD Words philox(uint64_t seed, uint64_t index, uint32_t block, uint32_t stream) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  uint32_t c0 = block, c1 = stream;
  uint32_t c2 = static_cast<uint32_t>(index), c3 = static_cast<uint32_t>(index >> 32);
  DD_UNROLL
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t(0xD2511F53u) * c0, p1 = uint64_t(0xCD9E8D57u) * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

DD_HD void box_muller(uint32_t a, uint32_t b, float& first, float& second) {
  const float scale = 2.3283064365386963e-10f;  // 2^-32
  // In (0, 1]: the logarithm stays finite.
  const float radius = sqrtf(-2.0f * logf((static_cast<float>(a) + 1.0f) * scale));
  const float angle = static_cast<float>(b) * static_cast<float>(6.283185307179586 / 4294967296.0);
#ifdef __CUDA_ARCH__
  float sine, cosine;
  sincosf(angle, &sine, &cosine);
  first = radius * cosine;
  second = radius * sine;
#else
  first = radius * cosf(angle);
  second = radius * sinf(angle);
#endif
}

// Four standard normal numbers: elements 4 * block .. 4 * block + 3 of a sample.
DD_HD void normals(uint64_t seed, uint64_t index, uint32_t block, uint32_t stream, float (&out)[4]) {
  const Words w = philox(seed, index, block, stream);
  box_muller(w.v[0], w.v[1], out[0], out[1]);
  box_muller(w.v[2], w.v[3], out[2], out[3]);
}

// The random inputs of an op: seed [1] and index [n] (null: 0..n-1), or noise handed in.
struct Draw {
  const int64_t* seed;
  const int64_t* index;

  DD_HD void operator()(int64_t n, int64_t block, uint32_t stream, float (&out)[4]) const {
    const int64_t at = index == nullptr ? n : index[n];
    normals(static_cast<uint64_t>(*seed), static_cast<uint64_t>(at),
            static_cast<uint32_t>(block), stream, out);
  }
};

}  // namespace dd
