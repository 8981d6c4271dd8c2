// Products of many bases at once in the type of the data; then of each pair what the function needs: the sum of squares
// of its product, or the singular values. Pairs with an angle so small that its cosine does not determine it, few as a
// rule, go through PrincipalPairs, one by one and in float64.
#include "ops/angles/pairwise_angles.h"
#include "ops/angles/pairwise_products.h"
#include "ops/angles/principal_pairs.h"

namespace subspan {
namespace {

// Functions that are known from |A^T B|_F^2 = sum cos^2 alone, unless they are small.
bool from_overlap(AngleFunction function) {
  return function == AngleFunction::kChordal || function == AngleFunction::kProjection ||
         function == AngleFunction::kMeanSquaredCosine || function == AngleFunction::kOverlap;
}

// Pairs of one batch item that wait for PrincipalPairs, as many as there are lanes.
template <class Finish>
class ClosePairs {
 public:
  ClosePairs(const BasisSet& A, const BasisSet& B, const AngleParameters& parameters, bool keep, Finish finish)
      : A_(A), B_(B), parameters_(parameters), keep_(keep), finish_(finish) {}

  void add(index_t i, index_t j) {
    of_A_[waiting_] = i;
    of_B_[waiting_++] = j;
    if (waiting_ == kLanes<double>) flush();
  }
  void flush() {
    if (waiting_ == 0) return;
    Workspace workspace;
    const PrincipalPairs pairs(A_.view, B_.view, parameters_, of_A_, of_B_, waiting_, keep_, workspace);
    for (index_t lane = 0; lane < waiting_; ++lane) finish_(of_A_[lane], of_B_[lane], pairs, lane);
    waiting_ = 0;
  }

 private:
  const BasisSet &A_, &B_;
  const AngleParameters& parameters_;
  bool keep_;
  Finish finish_;
  index_t waiting_ = 0;
  index_t of_A_[kLanes<double>], of_B_[kLanes<double>];
};

// What is written of a pair (i, j), and of (j, i) where both sets are one.
template <class T>
struct Values {
  T* values;
  std::int32_t* info;
  index_t bases_A, bases_B, angles;
  bool symmetric;
  const AngleParameters& parameters;

  template <class Write>
  void at(index_t i, index_t j, Write&& write) const {
    write(i * bases_B + j);
    if (symmetric && i != j) write(j * bases_B + i);
  }
  void number(index_t i, index_t j, double value) const {
    at(i, j, [&](index_t pair) { values[pair] = static_cast<T>(value); });
  }
  void write(index_t i, index_t j, const Angles& angles_of) const {
    if (!per_angle(parameters.function)) return number(i, j, value(parameters.function, parameters.squared, angles_of));
    const double* from = parameters.function == AngleFunction::kAngles ? angles_of.angle : angles_of.cosine;
    at(i, j, [&](index_t pair) {
      for (index_t a = 0; a < angles; ++a) values[pair * angles + a] = static_cast<T>(from[a]);
    });
  }
  // A subspace and itself.
  void write_zero(index_t i, double poison, index_t unpaired) const {
    Workspace workspace;
    double* numbers = workspace.take<double>(2 * angles);
    std::fill(numbers, numbers + angles, poison);
    std::fill(numbers + angles, numbers + 2 * angles, 1 + poison);
    write(i, i, {numbers, numbers + angles, numbers, angles, unpaired});
    status(i, i, poison == 0 ? 0 : -1);
  }
  void status(index_t i, index_t j, std::int32_t status) const {
    if (info) at(i, j, [&](index_t pair) { info[pair] = status; });
  }
};

template <class T>
double square_sum(const TensorView& products, index_t j) {
  const T* block = static_cast<const T*>(products.data) + j * products.stride[0];
  double sum = 0;
  for (index_t a = 0; a < products.shape[1]; ++a) {
    for (index_t b = 0; b < products.shape[2]; ++b) {
      const double entry = static_cast<double>(block[a * products.stride[1] + b]);
      sum += entry * entry;
    }
  }
  return sum + sum * 0;  // NaN where it is infinite
}

// Of a function that the overlap determines; false where it is too small for that.
template <class T>
bool write_overlap(const Values<T>& out, index_t i, index_t j, double overlap, double unpaired) {
  const AngleParameters& parameters = out.parameters;
  const double count = static_cast<double>(out.angles);
  out.status(i, j, overlap * 0 == 0 ? 0 : -1);
  if (parameters.function == AngleFunction::kOverlap) return out.number(i, j, overlap), true;
  if (parameters.function == AngleFunction::kMeanSquaredCosine)
    return out.number(i, j, count > 0 ? overlap / count : 0), true;
  if (count - overlap < 0.5) return false;
  const double square = (parameters.function == AngleFunction::kChordal ? 1 : 2) * (count - overlap) + unpaired;
  return out.number(i, j, parameters.squared ? square : std::sqrt(square)), true;
}

// Angles of lane `lane` from cosines alone, which decide where none is below pi / 4; false where they do not. Beyond
// the rank of either basis cosines are rounding errors of zero.
template <class T>
bool far_angles(const Vec<T>* cosines, index_t lane, index_t count, index_t rank, double* to, index_t unpaired,
                Angles& angles) {
  double *angle = to, *cosine = to + count, *sine = to + 2 * count;
  for (index_t i = 0; i < count; ++i) {
    const double c = static_cast<double>(cosines[i][lane]);
    if (2 * c * c > 1) return false;
    cosine[i] = i < rank ? c : 0 * c;
    sine[i] = std::sqrt(1 - cosine[i] * cosine[i]);
    angle[i] = std::atan2(sine[i], cosine[i]);
  }
  angles = {angle, cosine, sine, count, unpaired};
  return true;
}

template <class T>
void run_item(const BasisSet& A, const BasisSet& B, const Values<T>& out, int threads) {
  const AngleParameters& parameters = out.parameters;
  const index_t chunk = PairwiseProducts<T>::chunk(A), columns = B.count() * B.width(), count = out.angles;
  const index_t unpaired = parameters.padded ? std::max(A.width(), B.width()) - count : 0;
  const bool overlap = from_overlap(parameters.function);
  Workspace shared;
  const PairwiseProducts<T> multiplied(A, B, shared.take<T>(PairwiseProducts<T>::packed_elements(B)));
  parallel_team(threads, [&](Team team) { multiplied.pack_share(team); });
  index_t *ranks_A = shared.take<index_t>(A.count()), *ranks_B = shared.take<index_t>(B.count());
  count_independent<T>(A, ranks_A);
  count_independent<T>(B, ranks_B);
  const auto finish = [&](index_t i, index_t j, const PrincipalPairs& pairs, index_t lane) {
    out.write(i, j, pairs.angles(lane));
    out.status(i, j, pairs.info(lane) < 0 ? -1 : 0);
  };
  parallel_for((A.count() + chunk - 1) / chunk, threads, [&](index_t turn) {
    const index_t first = turn * chunk, bases = std::min(chunk, A.count() - first);
    Workspace workspace;
    T* products = workspace.take<T>(bases * A.width() * columns);
    const index_t from = out.symmetric ? first * A.width() / kPanelWidth<T> * kPanelWidth<T> : 0;
    multiplied.multiply_chunk(first, bases, from, products);
    ClosePairs close(A, B, parameters, false, finish);
    const bool wide = A.width() <= B.width();
    Vec<T>* x = workspace.take<Vec<T>>(A.width() * B.width());
    Vec<T>* cosines = workspace.take<Vec<T>>(count);
    double* numbers = workspace.take<double>(3 * count);
    for (index_t i = 0; i < bases; ++i) {
      TensorView row = products_of(products, i, A, B);
      if (out.symmetric && ranks_A[first + i] == A.width()) {
        out.write_zero(first + i, square_sum<T>(row, first + i) * 0, unpaired);
      } else if (out.symmetric) {
        close.add(first + i, first + i);
      }
      const index_t start = out.symmetric ? first + i + 1 : 0;
      if (overlap) {
        for (index_t j = start; j < B.count(); ++j) {
          const double sum = square_sum<T>(row, j);
          if (!write_overlap(out, first + i, j, sum, static_cast<double>(unpaired))) close.add(first + i, j);
        }
        continue;
      }
      row.data = static_cast<T*>(row.data) + start * row.stride[0];
      row.shape[0] -= start;
      for (index_t group = 0; group < lane_groups<T>(row.shape[0]); ++group) {
        const LaneGroup<T> lanes(group, row.shape[0]);
        interleave<T>(row, lanes, x, wide ? B.width() : 1, wide ? 1 : A.width());
        svd_interleaved<T>(x, std::max(A.width(), B.width()), count, static_cast<Vec<T>*>(nullptr), cosines);
        for (index_t lane = 0; lane < lanes.present; ++lane) {
          const index_t j = start + lanes.first + lane;
          Angles angles;
          const index_t rank = std::min(ranks_A[first + i], ranks_B[j]);
          if (!far_angles<T>(cosines, lane, count, rank, numbers, unpaired, angles)) {
            close.add(first + i, j);
            continue;
          }
          double poison = 0;
          for (index_t a = 0; a < count; ++a) poison += angles.cosine[a] * 0;
          for (index_t a = 0; a < 3 * count; ++a) numbers[a] += poison;
          out.write(first + i, j, angles);
          out.status(first + i, j, poison == 0 ? 0 : -1);
        }
      }
    }
    close.flush();
  });
}

// --- the gradient -----------------------------------------------------------------------------------------------

template <class T>
struct Gradient {
  const T* upstream;
  T* phi;
  const AngleParameters& parameters;
  index_t bases_B, angles, columns, p, q;

  T* block(index_t i, index_t j) const { return phi + i * p * columns + j * q; }

  // upstream . d value / d angle / sine of each angle.
  void weigh(index_t i, index_t j, const Angles& of, double* h) const {
    const index_t pair = i * bases_B + j;
    if (per_angle(parameters.function)) {
      const bool angle = parameters.function == AngleFunction::kAngles;
      for (index_t a = 0; a < angles; ++a) {
        const double g = static_cast<double>(upstream[pair * angles + a]);
        h[a] = angle ? (of.sine[a] != 0 ? g / of.sine[a] : 0) : -g;
      }
      return;
    }
    weights(parameters.function, parameters.squared, of, h);
    for (index_t a = 0; a < angles; ++a) h[a] *= static_cast<double>(upstream[pair]);
  }
};

template <class T>
void run_gradient_item(const BasisSet& A, const BasisSet& B, const Gradient<T>& out, int threads) {
  const AngleParameters& parameters = out.parameters;
  const index_t chunk = PairwiseProducts<T>::chunk(A), count = out.angles;
  const index_t length = std::max(A.width(), B.width());
  const index_t unpaired = parameters.padded ? length - count : 0;
  const bool wide = A.width() <= B.width();
  Workspace shared;
  const PairwiseProducts<T> multiplied(A, B, shared.take<T>(PairwiseProducts<T>::packed_elements(B)));
  parallel_team(threads, [&](Team team) { multiplied.pack_share(team); });
  index_t *ranks_A = shared.take<index_t>(A.count()), *ranks_B = shared.take<index_t>(B.count());
  count_independent<T>(A, ranks_A);
  count_independent<T>(B, ranks_B);
  const auto finish = [&](index_t i, index_t j, const PrincipalPairs& pairs, index_t lane) {
    Workspace workspace;
    double* h = workspace.take<double>(count);
    out.weigh(i, j, pairs.angles(lane), h);
    for (index_t a = 0; a < out.p; ++a) {
      for (index_t b = 0; b < out.q; ++b) {
        double sum = 0;
        for (index_t k = 0; k < count; ++k) {
          const double u = pairs.swapped() ? pairs.narrow_coefficient(lane, a, k) : pairs.wide_coefficient(lane, a, k);
          const double v = pairs.swapped() ? pairs.wide_coefficient(lane, b, k) : pairs.narrow_coefficient(lane, b, k);
          sum += u * h[k] * v;
        }
        out.block(i, j)[a * out.columns + b] = static_cast<T>(sum);
      }
    }
  };
  parallel_for((A.count() + chunk - 1) / chunk, threads, [&](index_t turn) {
    const index_t first = turn * chunk, bases = std::min(chunk, A.count() - first);
    Workspace workspace;
    T* products = workspace.take<T>(bases * A.width() * out.columns);
    multiplied.multiply_chunk(first, bases, 0, products);
    ClosePairs close(A, B, parameters, true, finish);
    Vec<T>* x = workspace.take<Vec<T>>(count * length);
    Vec<T>* right = workspace.take<Vec<T>>(count * count);
    Vec<T>* cosines = workspace.take<Vec<T>>(count);
    double* numbers = workspace.take<double>(3 * count);
    double* h = workspace.take<double>(count);
    for (index_t i = 0; i < bases; ++i) {
      const TensorView row = products_of(products, i, A, B);
      for (index_t group = 0; group < lane_groups<T>(B.count()); ++group) {
        const LaneGroup<T> lanes(group, B.count());
        interleave<T>(row, lanes, x, wide ? length : 1, wide ? 1 : length);
        svd_interleaved<T>(x, length, count, right, cosines);
        for (index_t lane = 0; lane < lanes.present; ++lane) {
          const index_t j = lanes.first + lane;
          Angles angles;
          const index_t rank = std::min(ranks_A[first + i], ranks_B[j]);
          if (!far_angles<T>(cosines, lane, count, rank, numbers, unpaired, angles)) {
            close.add(first + i, j);
            continue;
          }
          out.weigh(first + i, j, angles, h);
          // The longer side's vectors come times their cosines; one without length has no direction.
          for (index_t k = 0; k < count; ++k)
            h[k] = angles.cosine[k] <= jacobi::kNegligible<T> ? 0 * angles.cosine[k] : h[k] / angles.cosine[k];
          T* block = out.block(first + i, j);
          for (index_t a = 0; a < out.p; ++a) {
            for (index_t b = 0; b < out.q; ++b) {
              double sum = 0;
              for (index_t k = 0; k < count; ++k) {
                const T shorter = right[k * count + (wide ? a : b)][lane],
                        longer = x[k * length + (wide ? b : a)][lane];
                sum += static_cast<double>(shorter) * static_cast<double>(longer) * h[k];
              }
              block[a * out.columns + b] = static_cast<T>(sum);
            }
          }
        }
      }
    }
    close.flush();
  });
}

int set_threads(const TensorView& A, const TensorView& B, int threads) {
  const double columns_A = static_cast<double>(A.size(-3) * A.size(-1));
  const double columns_B = static_cast<double>(B.size(-3) * B.size(-1));
  return useful_threads(columns_A * columns_B * static_cast<double>(2 * A.size(-2) + 100), threads);
}

}  // namespace

void pairwise_angles_cpu(const TensorView& A, const TensorView& B, const TensorView& values, const TensorView* info,
                         const AngleParameters& parameters, int threads) {
  dispatch_float(compute_dtype(A.dtype), "principal_angles", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const index_t count = std::min(A.size(-1), B.size(-1)), pairs = A.size(-3) * B.size(-3);
    const index_t numbers = per_angle(parameters.function) ? pairs * count : pairs;
    for (index_t item = 0; item < batch_count(A, 3); ++item) {
      const BasisSet of_A = BasisSet::of(A, item), of_B = BasisSet::of(B, item);
      std::int32_t* status = info ? info->ptr<std::int32_t>() + item * pairs : nullptr;
      const Values<T> out{
          values.ptr<T>() + item * numbers, status, A.size(-3), B.size(-3), count, of_A.is(of_B), parameters};
      run_item(of_A, of_B, out, set_threads(A, B, threads));
    }
  });
}

void pairwise_angles_gradient_cpu(const TensorView& A, const TensorView& B, const TensorView& upstream,
                                  const TensorView& phi, const AngleParameters& parameters, int threads) {
  dispatch_float(compute_dtype(A.dtype), "principal_angles", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const index_t count = std::min(A.size(-1), B.size(-1)), pairs = A.size(-3) * B.size(-3);
    const index_t numbers = per_angle(parameters.function) ? pairs * count : pairs;
    const index_t p = A.size(-1), q = B.size(-1);
    for (index_t item = 0; item < batch_count(A, 3); ++item) {
      const Gradient<T> out{upstream.ptr<T>() + item * numbers,
                            phi.ptr<T>() + item * pairs * p * q,
                            parameters,
                            B.size(-3),
                            count,
                            B.size(-3) * q,
                            p,
                            q};
      run_gradient_item(BasisSet::of(A, item), BasisSet::of(B, item), out, set_threads(A, B, threads));
    }
  });
}

}  // namespace subspan
