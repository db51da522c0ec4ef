// What each .cu file defines, for every number type.
#pragma once

#include "dd_bias_act.h"
#include "dd_fir.h"
#include "dd_norm.h"
#include "dd_random_ops.h"
#include "dd_template.h"

namespace dd {

template <typename T>
void identity_on_device(const IdentityArgs<T>&, bool aligned, void* stream);

template <Mode M, typename T>
void fir_on_device(const FirArgs<T>&, bool aligned, void* stream);

template <bool Grad, typename T>
void act_on_device(const ActArgs<T>&, bool aligned, void* stream);

template <bool Backward, typename T>
void norm_on_device(const NormArgs<T>&, bool aligned, void* stream);

}  // namespace dd
