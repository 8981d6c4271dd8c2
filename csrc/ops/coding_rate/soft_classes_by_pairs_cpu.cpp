#include <vector>

#include "core/product.h"
#include "ops/coding_rate/pair_triangle.h"
#include "ops/coding_rate/soft_classes.h"

namespace subspan {
namespace {

constexpr index_t kChunkBytes = 10 << 20;  // of the matrices of a chunk of classes
constexpr index_t kSampleBlock = 512;  // samples of a panel of pairs: with its left operand in the second-level cache
template <class T>
constexpr index_t kPairBlock = 512 / kPanelWidth<T> * kPanelWidth<T>;

// The samples of one member of the team: a contiguous range of whole vectors and row tiles.
template <class T>
struct SampleRange {
  index_t begin, end;
  SampleRange(index_t samples, Team team) {
    constexpr index_t unit = std::max<index_t>(kLanes<T>, kTileRows);
    const index_t units = (samples + unit - 1) / unit;
    begin = std::min(samples, units * team.rank() / team.size() * unit);
    end = std::min(samples, units * (team.rank() + 1) / team.size() * unit);
  }
};

// Tiles of sum_j share_j pi_ji M_j, one row per sample: each vector of pairs meets its two vectors of features.
template <class T>
struct AddPairs {
  const FeaturePairs<T>& pairs;
  const T* rows;  // periodic, of the first sample of the product
  T* sums;        // periodic
  index_t samples;
  typename FeaturePairs<T>::Panel panel;

  template <int Vectors>
  [[gnu::always_inline]] void operator()(index_t row, index_t, Vec<T> (&sums_of)[kTileRows][Vectors]) const {
    // All first features before all second ones: the entries of a sample overlap, and so loads and stores of the same
    // ones are further apart.
#pragma GCC unroll 3
    for (int v = 0; v < Vectors; ++v) {
      if (panel.present[v]) add(row, panel.a[v], panel.shift[v], sums_of, v);
    }
#pragma GCC unroll 3
    for (int v = 0; v < Vectors; ++v) {
      if (panel.present[v] && panel.twice[v]) add(row, panel.a[v] + panel.shift[v], -panel.shift[v], sums_of, v);
    }
  }

  // To the features from `to` on, of each sample of the tile, those `shift` further times vector v.
  template <int Vectors>
  [[gnu::always_inline]] void add(index_t row, index_t to, index_t shift, const Vec<T> (&sums_of)[kTileRows][Vectors],
                                  int v) const {
    const index_t step = pairs.periodic();
    const T* z = rows + row * step + to + shift;
    T* sum = sums + row * step + to;
#pragma GCC unroll 8
    for (int i = 0; i < kTileRows; ++i, z += step, sum += step) {
      if (row + i >= samples) break;
      store(sum, load(sum) + sums_of[i][v] * load(z));
    }
  }
};

template <class T>
class PairSolver {
 public:
  PairSolver(const SoftClasses<T>& soft, int threads, Workspace& workspace)
      : soft_(soft), pairs_(soft.all.features), samples_(soft.all.samples), promoted_(size(soft.classes)) {
    constexpr index_t width = kPanelWidth<T>;
    const index_t most = std::max<index_t>(kChunkBytes / (pairs_.count() * static_cast<index_t>(sizeof(T))), width);
    const index_t chunks = (soft.classes + most - 1) / most;
    chunk_ = round_up((soft.classes + chunks - 1) / chunks, width);
    const index_t panels = (samples_ + width - 1) / width;
    rows_ = workspace.take<T>(samples_ * pairs_.periodic());
    membership_ = {workspace.take<T>(samples_ * chunk_), samples_, width};
    // One row more, so that a class's rows of all panels do not share a few sets of the caches.
    matrices_ = {workspace.take<T>((chunk_ + 1) * pairs_.count()), chunk_ + 1, width};
    if (soft.gradient()) {
      sums_ = workspace.take<T>(samples_ * pairs_.periodic());
      features_ = {workspace.take<T>(pairs_.features() * panels * width), pairs_.features(), width};
      share_ = workspace.take<T>(soft.classes);
      for (index_t j = 0; j < soft.classes; ++j) share_[j] = static_cast<T>(soft.row_factor(j));
    }
    for (int member = 0; member < threads; ++member) {
      factors_.emplace_back(pairs_.features(), soft.gradient(), workspace);
      triangles_.emplace_back(pairs_, workspace);
      const index_t left = soft.gradient() ? chunk_ * round_up(kSampleBlock, width) : 0;
      const index_t panel = std::max({kSampleBlock * width, kPairBlock<T> * width, pairs_.features()});
      scratch_.push_back({workspace.take<T>(panel), workspace.take<T>(left)});
    }
  }

  void run(Team team) {
    prepare(team);
    for (index_t first = 0; first < soft_.classes; first += chunk_) {
      const index_t count = std::min(chunk_, soft_.classes - first);
      pack_membership(first, count, team);
      team.barrier();
      form_matrices(count, team);
      team.barrier();
      solve_classes(first, count, team);
      team.barrier();
      if (!soft_.gradient()) continue;
      write_energies(first, count, team);
      add_gradients(first, count, team);
      team.barrier();
    }
    if (soft_.gradient()) write_gradients(team);
  }

  // Classes that float32 cannot hold; nothing was added for them.
  std::vector<index_t> promoted() const {
    std::vector<index_t> classes;
    for (index_t j = 0; j < soft_.classes; ++j) {
      if (promoted_[size(j)]) classes.push_back(j);
    }
    return classes;
  }

 private:
  struct Scratch {
    T* panel;
    T* left;
  };
  static std::size_t size(index_t count) { return static_cast<std::size_t>(count); }

  void prepare(Team team) {
    const SampleRange<T> own(samples_, team);
    const Rows<T> rows = soft_.rows();
    T* converted = scratch_[size(team.rank())].panel;
    for (index_t i = own.begin; i < own.end; ++i) {
      pairs_.extend(rows.read(i, 0, pairs_.features(), converted), rows_ + i * pairs_.periodic());
    }
    if (!soft_.gradient()) return;
    std::fill(sums_ + own.begin * pairs_.periodic(), sums_ + own.end * pairs_.periodic(), T(0));
    const index_t width = features_.width;
    for (index_t i = team.rank() * width; i < samples_; i += team.size() * width) {
      const Panels<T> panel{features_.panel(i / width), features_.depth, width};
      std::fill_n(panel.data, panel.depth * width, T(0));
      pack_rows(rows, i, std::min(width, samples_ - i), 0, pairs_.features(), panel);
    }
  }

  // Classes as columns, so that a Gram matrix is a product over samples.
  void pack_membership(index_t first, index_t count, Team team) {
    const index_t width = membership_.width;
    for (index_t c = team.rank() * width; c < count; c += team.size() * width) {
      const Panels<T> panel{membership_.panel(c / width), membership_.depth, width};
      pack_rows(soft_.membership, first + c, std::min(width, count - c), 0, samples_, panel);
    }
  }

  // matrices_ row c = sum_i pi_ci (pairs of sample i).
  void form_matrices(index_t count, Team team) const {
    const index_t width = matrices_.width;
    T* panel = scratch_[size(team.rank())].panel;
    for (index_t p = team.rank(); p * width < pairs_.count(); p += team.size()) {
      const Panels<T> to{matrices_.panel(p), matrices_.depth, width};
      for (index_t i = 0; i < samples_; i += kSampleBlock) {
        const index_t block = std::min(kSampleBlock, samples_ - i);
        pairs_.pack_samples(rows_ + i * pairs_.periodic(), block, p * width, panel);
        const Panels<T> left{membership_.data + i * membership_.width, membership_.depth, membership_.width};
        multiply(left, count, Panels<T>{panel, block, width}, width, block, Part::kAll, Team(),
                 StorePanels<T>{to, i > 0, T(1)});
      }
    }
  }

  // Row c of matrices_ is the Gram matrix of a class on entry, the inverse M on return.
  void solve_classes(index_t first, index_t count, Team team) {
    const GramFactor<T>& factor = factors_[size(team.rank())];
    const PairTriangle<T>& triangle = triangles_[size(team.rank())];
    for (index_t c = team.rank(); c < count; c += team.size()) {
      const index_t j = first + c;
      triangle.unpack(matrices_, c, static_cast<T>(soft_.alpha(j)), factor.matrix());
      GramRate rate;
      if (!factor.factor(rate)) {
        promoted_[size(j)] = 1;
        clear(c);
        continue;
      }
      soft_.log_det[j] = rate.log_det;
      if (soft_.gradient()) triangle.pack(factor.invert_upper(), matrices_, c);
    }
  }

  void clear(index_t c) const {
    for (index_t p = 0; p < pairs_.count(); p += matrices_.width) {
      std::fill_n(matrices_.at(c, p), matrices_.width, T(0));
    }
  }

  // Energies z_i M_c z_i: a product over pairs. A tile's sums stay in registers while its rows of matrices_ are read
  // panel after panel.
  void write_energies(index_t first, index_t count, Team team) const {
    const SampleRange<T> own(samples_, team);
    const index_t width = features_.width;
    T* panel = scratch_[size(team.rank())].panel;
    for (index_t p = 0; p < pairs_.count(); p += kPairBlock<T>) {
      const index_t block = std::min(kPairBlock<T>, pairs_.count() - p);
      // Panels of samples are shared between members; each takes its vectors of them.
      for (index_t i = own.begin / width * width; i < own.end; i += width) {
        const index_t begin = std::max(i, own.begin), end = std::min(i + width, own.end);
        pairs_.pack_pairs(features_.panel(i / width), p, block, panel);
        const StoreRows<T> finish{soft_.d_membership + first * samples_ + begin, samples_, count, end - begin, p > 0};
        with_vectors<T>((end - begin + kLanes<T> - 1) / kLanes<T>, [&](auto vectors) {
          for (index_t c = 0; c < count; c += kTileRows) {
            Vec<T> sums[kTileRows][vectors.value] = {};
            for (index_t k = 0; k < block; k += kPanelWidth<T>) {
              add_strided_tile<vectors.value>(matrices_.at(c, p + k), kPanelWidth<T>, 1, panel + k * width + begin - i,
                                              width, kPanelWidth<T>, sums);
            }
            finish(c, 0, sums);
          }
        });
      }
    }
  }

  // sums_ += pairs of sum_c share_c pi_ci M_c, met with the features.
  void add_gradients(index_t first, index_t count, Team team) const {
    const SampleRange<T> own(samples_, team);
    const Rows<T> shares = soft_.membership.scaled(share_);
    for (index_t i = own.begin; i < own.end; i += kSampleBlock) {
      const index_t block = std::min(kSampleBlock, own.end - i);
      const Panels<T> left{scratch_[size(team.rank())].left, count, kPanelWidth<T>};
      pack_columns(shares, first, count, i, block, left);
      for (index_t p = 0; p < pairs_.count(); p += matrices_.width) {
        const AddPairs<T> finish{pairs_, rows_ + i * pairs_.periodic(), sums_ + i * pairs_.periodic(), block,
                                 pairs_.panel(p)};
        const Panels<T> right{matrices_.at(0, p), matrices_.depth, matrices_.width};
        multiply(left, block, right, matrices_.width, count, Part::kAll, Team(), finish);
      }
    }
  }

  void write_gradients(Team team) const {
    const SampleRange<T> own(samples_, team);
    for (index_t i = own.begin; i < own.end; ++i) {
      pairs_.fold(sums_ + i * pairs_.periodic(), soft_.d_Z + i * pairs_.features());
    }
  }

  const SoftClasses<T>& soft_;
  FeaturePairs<T> pairs_;
  index_t samples_, chunk_;
  std::vector<char> promoted_;
  std::vector<GramFactor<T>> factors_;      // one per member
  std::vector<PairTriangle<T>> triangles_;  // the same
  std::vector<Scratch> scratch_;
  T* rows_;               // periodic
  Panels<T> membership_;  // [samples][classes of the chunk]
  Panels<T> matrices_;    // [classes of the chunk][pairs]
  Panels<T> features_;    // [features][samples]
  T* sums_ = nullptr;     // periodic gradients
  T* share_ = nullptr;    // 2 a_j alpha_j
};

}  // namespace

template <class T>
void soft_classes_by_pairs(const SoftClasses<T>& soft) {
  GramProblem one = soft.all;
  one.side = Side::kFeatures;
  const int threads = useful_threads(static_cast<double>(soft.classes) * one.flops(soft.gradient()) / 4, soft.threads);
  Workspace workspace;
  PairSolver<T> solver(soft, threads, workspace);
  parallel_team(threads, [&](Team team) { solver.run(team); });
  const std::vector<index_t> promoted = solver.promoted();
  if (!promoted.empty()) soft_classes_one_by_one(soft, promoted.data(), static_cast<index_t>(promoted.size()));
}

template void soft_classes_by_pairs(const SoftClasses<float>&);
template void soft_classes_by_pairs(const SoftClasses<double>&);

}  // namespace subspan
