#include "dd_kernels.h"
#include "dd_run.cuh"

namespace dd {

template <Mode M, typename T>
void fir_on_device(const FirArgs<T>& a, bool aligned, void* stream) {
  choose_fir<M>(a, aligned, DeviceRun{stream});
}

template void fir_on_device<Mode::plain>(const FirArgs<float>&, bool, void*);
template void fir_on_device<Mode::plain>(const FirArgs<double>&, bool, void*);
template void fir_on_device<Mode::plain>(const FirArgs<f16>&, bool, void*);
template void fir_on_device<Mode::plain>(const FirArgs<bf16>&, bool, void*);

}  // namespace dd
