#include "dd_kernels.h"
#include "dd_run.cuh"

namespace dd {

template <bool Grad, typename T>
void act_on_device(const ActArgs<T>& a, bool aligned, void* stream) {
  choose_act<Grad>(a, aligned, DeviceRun{stream});
}

#define DD_ACT(T)                                                           \
  template void act_on_device<false>(const ActArgs<T>&, bool, void*); \
  template void act_on_device<true>(const ActArgs<T>&, bool, void*);
DD_ACT(float)
DD_ACT(double)
DD_ACT(f16)
DD_ACT(bf16)

}  // namespace dd
