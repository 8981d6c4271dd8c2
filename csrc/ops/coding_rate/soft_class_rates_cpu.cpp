#include "ops/coding_rate/soft_class_rates.h"
#include "ops/coding_rate/soft_classes.h"

namespace subspan {
namespace {

// From as many classes on, one product over pairs of features is cheaper than a Gram matrix per class.
constexpr index_t kPairClasses = 24;

template <class T>
void check_membership(const TensorView& membership, const char* op) {
  const index_t samples = membership.size(-1), classes = membership.size(-2);
  for (index_t item = 0; item < batch_count(membership, 2); ++item) {
    const T* values = static_cast<const T*>(batch_item(membership, 2, item));
    for (index_t j = 0; j < classes; ++j) {
      for (index_t i = 0; i < samples; ++i) {
        const T value = values[j * membership.step(-2) + i * membership.step(-1)];
        CHECK(!(value < 0), op, ": labels: expected a membership >= 0, got ", value);
      }
    }
  }
}

// sum_i weights_i, or sum_i weights_i values_i, of one row: four sums, since one would wait for itself.
template <class T>
double row_sum(const Rows<T>& rows, index_t row, index_t length, const T* values) {
  constexpr index_t chunk = 256, ways = 4;
  T scratch[chunk];
  double sums[ways] = {};
  for (index_t i = 0; i < length; i += chunk) {
    const index_t count = std::min(chunk, length - i);
    const T* weights = rows.read(row, i, count, scratch);
    for (index_t k = 0; k < count; ++k) {
      sums[k % ways] += static_cast<double>(weights[k]) * (values ? static_cast<double>(values[i + k]) : 1.0);
    }
  }
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

template <class T>
Rows<T> membership_rows(const TensorView& membership, index_t item) {
  return {batch_item(membership, 2, item), membership.dtype, membership.step(-2), membership.step(-1)};
}

// One batch item. The caller says what each class adds to the value, and reads log_det and mass.
template <class T>
class Item {
 public:
  Item(const TensorView& Z, const TensorView& membership, index_t item, double eps2, int threads, Workspace& workspace)
      : soft_{gram_problem(Z, item),
              membership_rows<T>(membership, item),
              membership.size(-2),
              eps2,
              workspace.take<double>(membership.size(-2)),
              workspace.take<ClassTerm>(membership.size(-2)),
              workspace.take<double>(membership.size(-2))} {
    soft_.threads = threads;
    const double entries = static_cast<double>(soft_.classes * soft_.all.samples);
    parallel_for(soft_.classes, useful_threads(entries, threads),
                 [&](index_t j) { soft_.mass[j] = row_sum<T>(soft_.membership, j, soft_.all.samples, nullptr); });
    std::fill_n(soft_.log_det, soft_.classes, 0.0);
    std::fill_n(soft_.terms, soft_.classes, ClassTerm{});
  }

  const GramProblem& problem() const { return soft_.all; }
  index_t classes() const { return soft_.classes; }
  double mass(index_t j) const { return soft_.mass[j]; }
  double log_det(index_t j) const { return soft_.log_det[j]; }
  void set_term(index_t j, ClassTerm term) { soft_.terms[j] = term; }

  // Log determinants; with targets also the gradient, that of Z added to what is there.
  void solve(T* d_Z, T* d_membership) {
    soft_.d_Z = d_Z;
    soft_.d_membership = d_membership;
    if (soft_.all.samples == 0 || soft_.all.features == 0) {
      if (d_membership) std::fill_n(d_membership, soft_.classes * soft_.all.samples, T(0));
      return;
    }
    if (soft_.all.samples < soft_.all.features) {
      soft_classes_by_samples(soft_);
    } else if (soft_.classes >= kPairClasses) {
      soft_classes_by_pairs(soft_);
    } else {
      Workspace workspace;
      index_t* all = workspace.take<index_t>(soft_.classes);
      for (index_t j = 0; j < soft_.classes; ++j) all[j] = j;
      soft_classes_one_by_one(soft_, all, soft_.classes);
    }
    if (!d_membership) return;
    const double entries = static_cast<double>(soft_.classes * soft_.all.samples);
    parallel_for(soft_.classes, useful_threads(2 * entries, soft_.threads), [&](index_t j) { finish(j); });
  }

 private:
  // Row j of d_membership: from the energies z_i M_j z_i to the gradient.
  void finish(index_t j) const {
    T* row = soft_.d_membership + j * soft_.all.samples;
    const double mass = soft_.mass[j], alpha = soft_.alpha(j);
    const ClassTerm term = soft_.terms[j];
    if (mass == 0) {
      std::fill_n(row, soft_.all.samples, T(0));
      return;
    }
    const double through_mass = term.slope * soft_.log_det[j] -
                                term.factor * alpha * row_sum<T>(soft_.membership, j, soft_.all.samples, row) / mass;
    for (index_t i = 0; i < soft_.all.samples; ++i) {
      row[i] = static_cast<T>(term.factor * alpha * static_cast<double>(row[i]) + through_mass);
    }
  }

  SoftClasses<T> soft_;
};

// body(item, threads) for every batch item: items to threads where there are enough of them.
template <class Body>
void for_each_soft_item(const TensorView& Z, const TensorView& membership, bool gradient, int threads, Body&& body) {
  const index_t items = batch_count(Z, 2);
  if (items >= threads) {
    const double flops = static_cast<double>(items * membership.size(-2)) * gram_problem(Z, 0).flops(gradient);
    parallel_for(items, useful_threads(flops, threads), [&](index_t item) { body(item, 1); });
  } else {
    for (index_t item = 0; item < items; ++item) body(item, threads);
  }
}

template <class T>
T* item_of(const TensorView* packed, index_t item, index_t elements) {
  return packed ? packed->ptr<T>() + item * elements : nullptr;
}

}  // namespace

void class_mass_cpu(const TensorView& membership, const TensorView& mass, int threads) {
  dispatch_float(compute_dtype(membership.dtype), "class_coding_rates", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const index_t classes = membership.size(-2), rows = batch_count(membership, 2) * classes;
    parallel_for(rows, useful_threads(static_cast<double>(membership.numel()), threads), [&](index_t row) {
      const Rows<T> item = membership_rows<T>(membership, row / classes);
      mass.ptr<T>()[row] = static_cast<T>(row_sum<T>(item, row % classes, membership.size(-1), nullptr));
    });
  });
}

void soft_class_coding_rates_cpu(const TensorView& Z, const TensorView& membership, const TensorView& rates,
                                 double eps2, int threads) {
  dispatch_float(compute_dtype(Z.dtype), "class_coding_rates", [&](auto tag) {
    using T = typename decltype(tag)::type;
    check_membership<T>(membership, "class_coding_rates");
    for_each_soft_item(Z, membership, false, threads, [&](index_t index, int team) {
      Workspace workspace;
      Item<T> item(Z, membership, index, eps2, team, workspace);
      item.solve(nullptr, nullptr);
      T* out = rates.ptr<T>() + index * item.classes();
      for (index_t j = 0; j < item.classes(); ++j) out[j] = static_cast<T>(0.5 * item.log_det(j));
    });
  });
}

void soft_class_gradient_cpu(const TensorView& Z, const TensorView& membership, const TensorView& upstream,
                             const TensorView& d_Z, const TensorView& d_membership, double eps2, int threads) {
  dispatch_float(compute_dtype(Z.dtype), "class_coding_rates", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const index_t elements = Z.size(-1) * Z.size(-2), entries = membership.size(-1) * membership.size(-2);
    for_each_soft_item(Z, membership, true, threads, [&](index_t index, int team) {
      Workspace workspace;
      Item<T> item(Z, membership, index, eps2, team, workspace);
      const T* g = static_cast<const T*>(batch_item(upstream, 1, index));
      for (index_t j = 0; j < item.classes(); ++j) {
        item.set_term(j, {0.5 * static_cast<double>(g[j * upstream.step(-1)]), 0});
      }
      T* gradient = item_of<T>(&d_Z, index, elements);
      std::fill_n(gradient, elements, T(0));
      item.solve(gradient, item_of<T>(&d_membership, index, entries));
    });
  });
}

void soft_rate_reduction_cpu(const TensorView& Z, const TensorView& membership, const TensorView& delta,
                             const TensorView* d_Z, const TensorView* d_membership, double eps2, double gamma,
                             int threads) {
  dispatch_float(compute_dtype(Z.dtype), "rate_reduction", [&](auto tag) {
    using T = typename decltype(tag)::type;
    check_membership<T>(membership, "rate_reduction");
    const index_t elements = Z.size(-1) * Z.size(-2), entries = membership.size(-1) * membership.size(-2);
    const double samples = static_cast<double>(Z.size(-2));
    for_each_soft_item(Z, membership, d_Z != nullptr, threads, [&](index_t index, int team) {
      Workspace workspace;
      Item<T> item(Z, membership, index, eps2, team, workspace);
      T* out = delta.ptr<T>() + index;
      T* gradient = item_of<T>(d_Z, index, elements);
      T* membership_gradient = item_of<T>(d_membership, index, entries);
      double result = 0;
      if (elements != 0) {
        GramProblem all = item.problem();
        all.alpha = static_cast<double>(all.features) / (samples * eps2);
        const GradientTarget target{gradient, sizeof(T) == 8, all.alpha, false};
        result = 0.5 * solve_gram(all, gradient ? &target : nullptr, team).log_det;
        const double share = -gamma / (2 * samples);
        for (index_t j = 0; j < item.classes(); ++j) item.set_term(j, {share * item.mass(j), share});
        item.solve(gradient, membership_gradient);
        for (index_t j = 0; j < item.classes(); ++j) result += share * item.mass(j) * item.log_det(j);
      } else if (membership_gradient) {
        std::fill_n(membership_gradient, entries, T(0));
      }
      *out = static_cast<T>(result);
    });
  });
}

}  // namespace subspan
