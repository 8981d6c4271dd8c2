#include "ops/coding_rate/soft_classes.h"

namespace subspan {
namespace {

// The classes of a chunk are factored by different threads, then summed in their order.
constexpr index_t kChunkBytes = 8 << 20;

// tile(a, i) of P G, multiplied by G and summed over a: the quadratic forms g_i P g_i.
struct SumForms {
  const Panels<double>& gram;
  index_t size;
  double* forms;

  template <int Vectors>
  [[gnu::always_inline]] void operator()(index_t row, index_t column, Vec<double> (&sums)[kTileRows][Vectors]) const {
    for (int v = 0; v < Vectors; ++v) {
      Vec<double> total = load(forms + column + v * kLanes<double>);
      for (int i = 0; i < kTileRows && row + i < size; ++i) {
        total += sums[i][v] * load(gram.at(row + i, column + v * kLanes<double>));
      }
      store(forms + column + v * kLanes<double>, total);
    }
  }
};

// The Gram matrix Z Z^T, full, zero beyond its last column.
Panels<double> sample_gram(const Rows<double>& rows, index_t samples, index_t features, int threads,
                           Workspace& workspace) {
  constexpr index_t block = 256;
  const index_t depth = round_up(samples, std::max<index_t>(kTileRows, kLanes<double>));
  const Panels<double> gram{workspace.take<double>(panel_elements<double>(depth, samples)), depth,
                            panel_width<double>(samples)};
  std::fill_n(gram.data, panel_elements<double>(depth, samples), 0.0);
  const Panels<double> packed{workspace.take<double>(panel_elements<double>(block, samples)), block,
                              panel_width<double>(samples)};
  for (index_t k = 0; k < features; k += block) {
    const index_t part = std::min(block, features - k);
    pack_rows(rows, 0, samples, k, part, packed);
    parallel_team(threads, [&](Team team) {
      multiply(packed, samples, packed, samples, part, Part::kAll, team, StorePanels<double>{gram, k > 0, 1.0});
    });
  }
  return gram;
}

}  // namespace

// K_j = I + alpha_j R_j G R_j with R_j = diag(sqrt(pi_j)) and G = Z Z^T. With P_j = R_j K_j^{-1} R_j the gradient is
// (2 sum_j a_j alpha_j P_j) Z, one product for all classes, and z_i M_j z_i = G_ii - alpha_j g_i P_j g_i.
template <class T>
void soft_classes_by_samples(const SoftClasses<T>& soft) {
  Workspace workspace;
  const index_t samples = soft.all.samples, features = soft.all.features;
  const double cube = static_cast<double>(samples) * static_cast<double>(samples) * static_cast<double>(samples);
  const int threads = useful_threads(4 * static_cast<double>(soft.classes) * cube, soft.threads);
  const Rows<double> rows(soft.all.data, soft.all.dtype, soft.all.row_step, soft.all.column_step);
  const Panels<double> gram = sample_gram(rows, samples, features, threads, workspace);
  const index_t elements = panel_elements<double>(gram.depth, samples);
  const index_t chunk =
      std::clamp<index_t>(kChunkBytes / (elements * 8), threads, std::max<index_t>(soft.classes, threads));
  double* weighted = workspace.take<double>(soft.gradient() ? chunk * elements : 0);  // P_j
  double* sum = workspace.take<double>(soft.gradient() ? elements : 0);
  if (soft.gradient()) std::fill_n(sum, elements, 0.0);

  const auto solve = [&](index_t j, double* P) {
    Workspace inner;
    T* scratch = inner.take<T>(samples);
    double* root = inner.take<double>(samples);
    const T* pi = soft.membership.read(j, 0, samples, scratch);
    for (index_t i = 0; i < samples; ++i) root[i] = std::sqrt(static_cast<double>(pi[i]));
    const GramFactor<double> factor(samples, soft.gradient(), inner);
    const Panels<double>& matrix = factor.matrix();
    const double alpha = soft.alpha(j);
    for (index_t i = 0; i < samples; ++i) {
      for (index_t k = 0; k <= i; ++k) *matrix.at(k, i) = alpha * root[k] * root[i] * *gram.at(k, i);
    }
    GramRate rate;
    factor.factor(rate);
    soft.log_det[j] = rate.log_det;
    if (!soft.gradient()) return;
    const Panels<double>& inverse = factor.invert();
    const Panels<double> forms_of{P, gram.depth, gram.width};
    std::fill_n(P, elements, 0.0);
    for (index_t i = 0; i < samples; ++i) {
      for (index_t k = 0; k < samples; ++k) *forms_of.at(i, k) = root[i] * root[k] * *inverse.at(i, k);
    }
    const index_t width = panel_elements<double>(1, samples);
    double* forms = inner.take<double>(width);
    std::fill_n(forms, width, 0.0);
    multiply(forms_of, samples, gram, samples, samples, Part::kAll, Team(), SumForms{gram, samples, forms});
    T* energies = soft.d_membership + j * samples;
    for (index_t i = 0; i < samples; ++i) energies[i] = static_cast<T>(*gram.at(i, i) - alpha * forms[i]);
  };

  for (index_t first = 0; first < soft.classes; first += chunk) {
    const index_t count = std::min(chunk, soft.classes - first);
    parallel_for(count, threads, [&](index_t c) { solve(first + c, weighted + c * elements); });
    if (!soft.gradient()) continue;
    const index_t pieces = gram.depth;  // any split gives the same sums
    parallel_for(pieces, threads, [&](index_t piece) {
      const index_t begin = elements * piece / pieces, end = elements * (piece + 1) / pieces;
      for (index_t c = 0; c < count; ++c) {
        const double factor = soft.row_factor(first + c);
        const double* P = weighted + c * elements;
        for (index_t e = begin; e < end; ++e) sum[e] += factor * P[e];
      }
    });
  }
  if (!soft.gradient()) return;
  const GradientRows<double> of{rows, samples, features, nullptr, nullptr};
  const GradientTarget target{soft.d_Z, sizeof(T) == 8, 1.0, true};
  parallel_team(threads, [&](Team team) {
    write_left_product<T>(Panels<double>{sum, gram.depth, gram.width}, of, target, team);
  });
}

template void soft_classes_by_samples(const SoftClasses<float>&);
template void soft_classes_by_samples(const SoftClasses<double>&);

}  // namespace subspan
