// Launching: one-dimensional grids, and errors that say which kernel.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "dd_common.h"

namespace dd {

constexpr int kThreads = 256;

inline unsigned grid_of(int64_t threads, int block = kThreads) {
  const int64_t blocks = ceil_div(threads, block);
  if (blocks > INT32_MAX) throw std::runtime_error("the tensor is too large for one launch.");
  return static_cast<unsigned>(blocks);
}

inline void check_launch(const char* kernel) {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("launch of ") + kernel + " failed: " +
                             cudaGetErrorString(error) + ".");
}

__device__ __forceinline__ uint64_t thread_number() {
  return static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

}  // namespace dd
