// A kernel on the device: one thread for each job.
#pragma once

#include "dd_cuda.cuh"

namespace dd {

template <typename Kernel>
__global__ void __launch_bounds__(kThreads, 2) each_job(Kernel kernel, uint64_t jobs) {
  const uint64_t t = thread_number();
  if (t < jobs) kernel(t);
}

struct DeviceRun {
  void* stream;

  template <typename Kernel>
  void operator()(const Kernel& kernel) const {
    const uint64_t jobs = kernel.jobs();
    each_job<<<grid_of(static_cast<int64_t>(jobs)), kThreads, 0,
               static_cast<cudaStream_t>(stream)>>>(kernel, jobs);
    check_launch("a kernel");
  }

  // Rows that one thread walks: as many as leave the device full.
  int64_t strip(int64_t columns, int64_t rows) const {
    int64_t strip = 32;
    while (strip > 2 && columns * ceil_div(rows, strip) < (int64_t(1) << 18)) strip /= 2;
    return strip;
  }
};

}  // namespace dd
