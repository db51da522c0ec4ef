// The ops that draw random numbers: checks, then the kernels.
#include "dd_kernels.h"
#include "dd_ops.h"

namespace dd {
namespace {

Source source_of(const char* op, const Optional& t) {
  if (!t) return {nullptr, Dtype::f32};
  return {t->data_ptr(), dtype_of(op, *t)};
}

template <typename T>
const T* optional_pointer(const Optional& t) {
  return t ? pointer<const T>(*t) : nullptr;
}

Draw draw_of(const char* op, const Optional& seed, const Optional& index, int64_t n) {
  require(!seed || (seed->numel() == 1 && seed->scalar_type() == ScalarType::Long), op,
          "seed must be int64[1].");
  require(!index || (has_shape(*index, {n}) && index->scalar_type() == ScalarType::Long &&
                     index->is_contiguous()),
          op, "index must be contiguous int64 [", n, "].");
  return {optional_pointer<int64_t>(seed), optional_pointer<int64_t>(index)};
}

int64_t table_rows(const char* op, const Tensor& t, const Tensor& tables, int64_t n,
                   int64_t columns) {
  require(has_shape(t, {n}) && t.scalar_type() == ScalarType::Long && t.is_contiguous(), op,
          "t must be contiguous int64 [", n, "], got ", shape(t), ".");
  require(tables.dim() == 2 && tables.size(1) == columns && tables.size(0) > 0 &&
              tables.scalar_type() == ScalarType::Float && tables.is_contiguous(),
          op, "tables must be contiguous float32 [T, ", columns, "], got ", shape(tables), ".");
  for (int64_t i = 0; t.is_cpu() && i < n; ++i) {
    const int64_t step = pointer<int64_t>(t)[i];
    require(step >= 0 && step < tables.size(0), op, "t is ", step, " at sample ", i,
            ", and the tables have ", tables.size(0), " rows.");
  }
  return tables.size(0);
}

template <typename Job>
void run_random(const Job& job, int64_t n, int64_t blocks, const On& on) {
#ifdef DD_WITH_CUDA
  if (on.cuda()) return run_on_device(job, n, blocks, on.stream());
#endif
  run_on_host(job, n, blocks);
}

}  // namespace

void sample_posterior(const Tensor& x0, const Tensor& x_next, const Tensor& t,
                      const Tensor& tables, const Optional& noise, const Optional& seed,
                      const Optional& index, const Tensor& out) {
  const char* op = "sample_posterior";
  const Batch order = batch_of(op, x_next);
  require_like(op, "x0", x0, x_next, order, false);
  require_like(op, "out", out, x_next, order, false);
  if (noise) require_like(op, "noise", *noise, x_next, order, false);
  require(noise.has_value() != seed.has_value(), op, "pass exactly one of noise and seed.");
  const int64_t rows = table_rows(op, t, tables, order.n, 3);
  const Draw draw = draw_of(op, seed, index, order.n);
  const On on(op, x_next, {&x0, &t, &tables, maybe(noise), maybe(seed), maybe(index), &out});
  if (out.numel() == 0) return;
  const int64_t blocks = ceil_div(order.c * order.space, 4);
  const Dtype dtype = dtype_of(op, out);
  require(dtype == Dtype::f32 || dtype == Dtype::f64, op, "out must be float32 or float64.");
  const auto run = [&](auto zero) {
    using A = decltype(zero);
    const Posterior<A> job{source_of(op, x0), source_of(op, x_next), source_of(op, noise),
                           pointer<int64_t>(t), pointer<float>(tables), rows, draw, order,
                           pointer<A>(out)};
    run_random(job, order.n, blocks, on);
  };
  dtype == Dtype::f32 ? run(float{}) : run(double{});
}

void q_sample_pair(const Tensor& x0, const Tensor& t, const Tensor& tables, const Optional& flip,
                   const Optional& noise_next, const Optional& noise_t, const Optional& seed,
                   const Optional& index, const Tensor& x_t, const Tensor& x_next) {
  const char* op = "q_sample_pair";
  const bool images = x0.scalar_type() == ScalarType::Byte;
  Batch order = batch_of(op, x_t);
  if (images) {
    require(x_t.dim() == 4 && has_shape(x0, {x_t.size(0), x_t.size(2), x_t.size(3), x_t.size(1)}),
            op, "uint8 images must be [N, H, W, C] for x_t ", shape(x_t), ", got ", shape(x0), ".");
    require(x0.is_contiguous(), op, "uint8 images must be contiguous.");
  } else {
    require_like(op, "x0", x0, x_t, order, false);
  }
  require(!flip || (images && has_shape(*flip, {order.n}) && flip->is_contiguous() &&
                    flip->scalar_type() == ScalarType::Bool),
          op, "flip must be contiguous bool [N], with uint8 images only.");
  require_like(op, "x_next", x_next, x_t, order);
  require(noise_next.has_value() == noise_t.has_value() &&
              noise_t.has_value() != seed.has_value(),
          op, "pass exactly one of both noises and seed.");
  for (const Optional* z : {&noise_next, &noise_t})
    if (*z) require_like(op, "noise", **z, x_t, order, false);
  const int64_t rows = table_rows(op, t, tables, order.n, 4);
  const Draw draw = draw_of(op, seed, index, order.n);
  const On on(op, x0, {&t, &tables, maybe(flip), maybe(noise_next), maybe(noise_t), maybe(seed),
                       maybe(index), &x_t, &x_next});
  if (x_t.numel() == 0) return;
  const Dtype dtype = dtype_of(op, x_t);
  require(dtype == Dtype::f32 || dtype == Dtype::f64, op, "x_t must be float32 or float64.");
  const int64_t blocks = ceil_div(order.c * order.space, 4);
  const auto run = [&](auto zero) {
    using A = decltype(zero);
    const QSamplePair<A> job{source_of(op, x0), source_of(op, noise_next), source_of(op, noise_t),
                             optional_pointer<bool>(flip), pointer<int64_t>(t),
                             pointer<float>(tables), rows, images ? x_t.size(3) : 1, draw, order,
                             pointer<A>(x_t), pointer<A>(x_next)};
    run_random(job, order.n, blocks, on);
  };
  dtype == Dtype::f32 ? run(float{}) : run(double{});
}

void philox_words(const Tensor& seed, const Tensor& index, int64_t stream, const Tensor& words,
                  const Tensor& normals) {
  const char* op = "philox";
  const int64_t n = index.numel();
  require(words.dim() == 3 && words.size(0) == n && words.size(2) == 4 &&
              words.scalar_type() == ScalarType::Long && words.is_contiguous(),
          op, "words must be contiguous int64 [", n, ", blocks, 4].");
  require(same_shape(words, normals) && normals.scalar_type() == ScalarType::Float &&
              normals.is_contiguous(),
          op, "normals must be contiguous float32 ", shape(words), ".");
  const Draw draw = draw_of(op, seed, index, n);
  const On on(op, seed, {&index, &words, &normals});
  if (words.numel() == 0) return;
  run_random(PhiloxArgs{draw, n, words.size(1), static_cast<uint32_t>(stream),
                        pointer<int64_t>(words), pointer<float>(normals)},
             n, words.size(1), on);
}

}  // namespace dd
