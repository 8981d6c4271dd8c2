#include "core/dispatch.h"
#include "core/pack.h"
#include "ops/dense/affine_product.h"
#include "ops/phm/factors.h"
#include "ops/phm/phm_lowrank.h"

namespace subspan {
namespace {

constexpr index_t kBatchRows = 2048;  // rows of x whose products are in memory at once

template <class T>
TensorView packed_matrix(T* data, index_t rows, index_t columns) {
  TensorView view;
  view.data = data;
  view.ndim = 2;
  view.shape[0] = rows, view.shape[1] = columns;
  view.stride[0] = columns, view.stride[1] = 1;
  view.dtype = sizeof(T) == 4 ? DType::f32 : DType::f64;
  view.device = Device::cpu;
  return view;
}

template <class T>
struct LowRank {
  index_t terms, p, q, l, k, rank;
  const T* A;     // (terms, p, q)
  TensorView U;   // (l, terms rank)
  TensorView V;   // (terms rank, k)
  const T* bias;  // (p l) or absent

  LowRank(const TensorView& A_view, const TensorView& U_view, const TensorView& V_view, const TensorView* bias_view,
          index_t item, Workspace& workspace)
      : terms(A_view.size(-3)),
        p(A_view.size(-2)),
        q(A_view.size(-1)),
        l(U_view.size(-2)),
        k(V_view.size(-1)),
        rank(U_view.size(-1)) {
    T* rule = workspace.take<T>(terms * p * q);
    T* left = workspace.take<T>(terms * l * rank);
    T* right = workspace.take<T>(terms * k * rank);
    for (index_t i = 0; i < terms; ++i) {
      copy(A_view, item, i, rule + i * p * q, q);
      copy(U_view, item, i, left + i * rank, terms * rank);
      copy(V_view, item, i, right + i * rank * k, k);
    }
    A = rule, U = packed_matrix(left, l, terms * rank), V = packed_matrix(right, terms * rank, k);
    bias = nullptr;
    if (!bias_view) return;
    T* added = workspace.take<T>(p * l);
    const T* from = static_cast<const T*>(batch_item(*bias_view, 1, item));
    for (index_t o = 0; o < p * l; ++o) added[o] = from[o * bias_view->step(-1)];
    bias = added;
  }

  // Matrix i of an item, to rows `step` apart.
  static void copy(const TensorView& view, index_t item, index_t i, T* to, index_t step) {
    const T* from = static_cast<const T*>(batch_item(view, 3, item)) + i * view.step(-3);
    for (index_t r = 0; r < view.size(-2); ++r) {
      for (index_t c = 0; c < view.size(-1); ++c) to[r * step + c] = from[r * view.step(-2) + c * view.step(-1)];
    }
  }

  // `rows` rows of x, packed as (rows q, k).
  void operator()(T* x, index_t rows, T* y, int threads) const {
    const index_t width = terms * rank;
    Workspace workspace;
    T* products = workspace.take<T>(rows * q * width);
    T* mixed = workspace.take<T>(rows * p * width);
    affine_product_cpu(packed_matrix(x, rows * q, k), V, nullptr, packed_matrix(products, rows * q, width), {},
                       threads);
    parallel_for(rows, threads, [&](index_t row) { mix(products + row * q * width, mixed + row * p * width); });
    affine_product_cpu(packed_matrix(mixed, rows * p, width), U, nullptr, packed_matrix(y, rows * p, l), {}, threads);
    if (!bias) return;
    for (index_t row = 0; row < rows; ++row) {
      for (index_t o = 0; o < p * l; ++o) y[row * p * l + o] += bias[o];
    }
  }

  void mix(const T* products, T* mixed) const {
    const index_t width = terms * rank;
    for (index_t i = 0; i < terms; ++i) {
      for (index_t r = 0; r < p; ++r) {
        const T* weights = A + (i * p + r) * q;
        for (index_t j = i * rank; j < (i + 1) * rank; ++j) {
          T total = 0;
          for (index_t c = 0; c < q; ++c) total += weights[c] * products[c * width + j];
          mixed[r * width + j] = total;
        }
      }
    }
  }
};

}  // namespace

void phm_lowrank_cpu(const TensorView& x, const TensorView& A, const TensorView& U, const TensorView& V,
                     const TensorView* bias, const TensorView& y, int threads) {
  dispatch_float(A.dtype, "phm_linear_lowrank", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const index_t rows = x.size(-2), features = x.size(-1), outputs = A.size(-2) * U.size(-2);
    const double flops = 2.0 * static_cast<double>(rows * A.size(-3) * U.size(-1)) *
                         static_cast<double>(features + outputs + A.size(-2) * A.size(-1));
    for_each_of(batch_count(x, 2), flops, threads, [&](index_t item, int own) {
      Workspace workspace;
      const LowRank<T> product(A, U, V, bias, item, workspace);
      const Rows<T> in(batch_item(x, 2, item), x.dtype, x.step(-2), x.step(-1));
      const bool in_place = in.in_place() && (x.step(-2) == features || rows == 1);
      T* copy = in_place ? nullptr : workspace.take<T>(std::min(rows, kBatchRows) * features);
      for (index_t first = 0; first < rows; first += kBatchRows) {
        const index_t count = std::min(kBatchRows, rows - first);
        for (index_t r = 0; r < count && !in_place; ++r) {
          T* to = copy + r * features;
          const T* from = in.read(first + r, 0, features, to);
          if (from != to) std::copy_n(from, features, to);
        }
        T* packed = in_place ? const_cast<T*>(in.read(first, 0, features, nullptr)) : copy;
        product(packed, count, y.ptr<T>() + (item * rows + first) * outputs, own);
      }
    });
  });
}

}  // namespace subspan
