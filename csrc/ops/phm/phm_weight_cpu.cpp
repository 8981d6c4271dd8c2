#include "core/dispatch.h"
#include "core/parallel.h"
#include "ops/phm/factors.h"
#include "ops/phm/phm_weight.h"

namespace subspan {
namespace {

// Row a of all S_i makes rows (p, a) of W for every p.
template <class T>
void compose_row(const Factors<T>& factors, index_t a, T* W) {
  for (index_t c = 0; c < factors.q; ++c) {
    mix_rows(factors.S + a * factors.row_step, factors.term_step, factors.terms,
             factors.by_column + c * factors.p * factors.terms, factors.p, factors.k,
             W + a * factors.columns() + c * factors.k, factors.l * factors.columns());
  }
}

// Rows of S whose gradients make one share of that of A; their number may not depend on the threads.
constexpr index_t kShareRows = 16;

template <class T>
struct Gradient {
  const TensorView& A;
  const TensorView& S;
  const TensorView& dW;
  const TensorView* dA;
  const TensorView* dS;

  void item(index_t item, int threads) const {
    Workspace workspace;
    const Factors<T> factors(A, S, item, workspace);
    const index_t share_count = (factors.l + kShareRows - 1) / kShareRows;
    T* shares = dA ? workspace.take<T>(share_count * factors.coefficients()) : nullptr;
    const T* upstream = static_cast<const T*>(batch_item(dW, 2, item));
    index_t row_step = dW.step(-2);
    if (dW.step(-1) != 1 && factors.columns() > 1) {
      T* copy = workspace.take<T>(factors.rows() * factors.columns());
      for (index_t r = 0; r < factors.rows(); ++r) {
        for (index_t c = 0; c < factors.columns(); ++c) {
          copy[r * factors.columns() + c] = upstream[r * row_step + c * dW.step(-1)];
        }
      }
      upstream = copy, row_step = factors.columns();
    }
    parallel_for(share_count, threads, [&](index_t share) {
      const index_t a0 = share * kShareRows, a1 = std::min(factors.l, a0 + kShareRows);
      const SubMatrices<T> part{
          upstream + a0 * row_step, factors.l * row_step, factors.k, row_step, a0, a1, 0, factors.k};
      if (dS) contract_to_S(part, factors, dS->ptr<T>() + item * factors.terms * factors.l * factors.k);
      if (!dA) return;
      contract_to_A(part, factors, factors.S + a0 * factors.row_step, factors.term_step, factors.row_step,
                    shares + share * factors.coefficients());
    });
    if (dA) add_shares(shares, share_count, factors, dA->ptr<T>() + item * factors.coefficients());
  }
};

double work(const TensorView& A, const TensorView& S) {
  return 2.0 * static_cast<double>(A.size(-3) * A.size(-2) * A.size(-1)) * static_cast<double>(S.size(-2) * S.size(-1));
}

}  // namespace

void phm_weight_cpu(const TensorView& A, const TensorView& S, const TensorView& W, int threads) {
  dispatch_float(A.dtype, "phm_weight", [&](auto tag) {
    using T = typename decltype(tag)::type;
    for_each_of(batch_count(A, 3), work(A, S), threads, [&](index_t item, int own) {
      Workspace workspace;
      const Factors<T> factors(A, S, item, workspace);
      T* to = W.ptr<T>() + item * factors.rows() * factors.columns();
      parallel_for(factors.l, own, [&](index_t a) { compose_row(factors, a, to); });
    });
  });
}

void phm_weight_gradient_cpu(const TensorView& A, const TensorView& S, const TensorView& dW, const TensorView* dA,
                             const TensorView* dS, int threads) {
  dispatch_float(A.dtype, "phm_weight_gradient", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const Gradient<T> gradient{A, S, dW, dA, dS};
    for_each_of(batch_count(A, 3), 2 * work(A, S), threads, [&](index_t item, int own) { gradient.item(item, own); });
  });
}

}  // namespace subspan
