// Where a kernel runs. A kernel is a struct with jobs() and operator()(job number).
#pragma once

#include "dd_common.h"

namespace dd {

struct Place {
  bool cuda;
  void* stream;
};

// A plain loop over what the device runs in parallel.
struct HostRun {
  template <typename Kernel>
  void operator()(const Kernel& kernel) const {
    const uint64_t jobs = kernel.jobs();
    for (uint64_t t = 0; t < jobs; ++t) kernel(t);
  }
  // An odd number of rows, so that small tensors also need several strips.
  int64_t strip(int64_t, int64_t) const { return 3; }
};

}  // namespace dd
