// The identity: V neighbouring elements in memory. The kernel to copy.
#pragma once

#include "dd_common.h"

namespace dd {

template <typename T>
struct IdentityArgs {
  const T* x;
  T* out;
  int64_t count;
};

template <typename T, int V>
struct Identity {
  IdentityArgs<T> a;

  DD_HD uint64_t jobs() const { return a.count / V; }

  DD_HD void operator()(uint64_t t) const {
    const int64_t at = static_cast<int64_t>(t) * V;
    wide_t<T> x[V];
    load_pack<T, V>(a.x + at, x);
    store_pack<T, V>(a.out + at, x);
  }
};

template <typename T, typename Run>
void choose_identity(const IdentityArgs<T>& a, bool aligned, const Run& run) {
  constexpr int full = kFullVector<T>;
  if (aligned && a.count % full == 0) return run(Identity<T, full>{a});
  run(Identity<T, 1>{a});
}

}  // namespace dd
