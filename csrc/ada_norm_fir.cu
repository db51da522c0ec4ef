#include "dd_kernels.h"
#include "dd_run.cuh"

namespace dd {

template <Mode M, typename T>
void fir_on_device(const FirArgs<T>& a, bool aligned, void* stream) {
  choose_fir<M>(a, aligned, DeviceRun{stream});
}

#define DD_NORM_FIR(T)                                                     \
  template void fir_on_device<Mode::norm>(const FirArgs<T>&, bool, void*); \
  template void fir_on_device<Mode::both>(const FirArgs<T>&, bool, void*);
DD_NORM_FIR(float)
DD_NORM_FIR(double)
DD_NORM_FIR(f16)
DD_NORM_FIR(bf16)

}  // namespace dd
