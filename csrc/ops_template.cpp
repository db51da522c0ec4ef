// The identity: checks, then the kernel.
#include "dd_kernels.h"
#include "dd_ops.h"

namespace dd {

void identity(const Tensor& x, const Tensor& out) {
  const char* op = "identity";
  require_like(op, "out", out, x, batch_of(op, x));
  const On on(op, x, {&out});
  if (x.numel() == 0) return;
  const bool vectors = aligned({&x, &out});
  for_dtype(op, dtype_of(op, x), [&](auto zero) {
    using T = decltype(zero);
    const IdentityArgs<T> a{pointer<T>(x), pointer<T>(out), x.numel()};
#ifdef DD_WITH_CUDA
    if (on.cuda()) return identity_on_device(a, vectors, on.stream());
#endif
    choose_identity(a, vectors, HostRun());
  });
}

}  // namespace dd
