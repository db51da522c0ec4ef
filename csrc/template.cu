#include "dd_kernels.h"
#include "dd_run.cuh"

namespace dd {

template <typename T>
void identity_on_device(const IdentityArgs<T>& a, bool aligned, void* stream) {
  choose_identity(a, aligned, DeviceRun{stream});
}

template void identity_on_device(const IdentityArgs<float>&, bool, void*);
template void identity_on_device(const IdentityArgs<double>&, bool, void*);
template void identity_on_device(const IdentityArgs<f16>&, bool, void*);
template void identity_on_device(const IdentityArgs<bf16>&, bool, void*);

}  // namespace dd
