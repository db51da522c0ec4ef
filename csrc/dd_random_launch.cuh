// The one kernel of the ops that draw random numbers.
#pragma once

#include "dd_cuda.cuh"
#include "dd_random_ops.h"

namespace dd {

template <typename Job>
__global__ void __launch_bounds__(kThreads, 2) per_block_of_four(Job job, uint64_t n, uint64_t blocks) {
  uint64_t sample, block;
  divide(thread_number(), blocks, sample, block);
  if (sample < n) job(static_cast<int64_t>(sample), static_cast<int64_t>(block));
}

template <typename Job>
void run_on_device(const Job& job, int64_t n, int64_t blocks, void* stream) {
  per_block_of_four<<<grid_of(n * blocks), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      job, static_cast<uint64_t>(n), static_cast<uint64_t>(blocks));
  check_launch("a random-number kernel");
}

}  // namespace dd
