#include "dd_kernels.h"
#include "dd_run.cuh"

namespace dd {

template <Mode M, typename T>
void fir_on_device(const FirArgs<T>& a, bool aligned, void* stream) {
  choose_fir<M>(a, aligned, DeviceRun{stream});
}

#define DD_FIR(T)                                                                    \
  template void fir_on_device<Mode::act>(const FirArgs<T>&, bool, void*);      \
  template void fir_on_device<Mode::tangent>(const FirArgs<T>&, bool, void*);  \
  template void fir_on_device<Mode::masked>(const FirArgs<T>&, bool, void*);
DD_FIR(float)
DD_FIR(double)
DD_FIR(f16)
DD_FIR(bf16)

}  // namespace dd
