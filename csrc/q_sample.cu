#include "dd_random_launch.cuh"

namespace dd {
template void run_on_device(const QSamplePair<float>&, int64_t, int64_t, void*);
template void run_on_device(const QSamplePair<double>&, int64_t, int64_t, void*);
}  // namespace dd
