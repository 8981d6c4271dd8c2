#include "core/dispatch.h"
#include "ops/angles/chunks.h"
#include "ops/orthogonal/stiefel_coefficients.h"

namespace subspan {
namespace {

// One frame of the call.
struct FrameItem {
  const StiefelArrays* arrays;
  index_t item;

  double flops(bool rows) const {
    const double count = static_cast<double>(arrays->X.size(rows ? -2 : -1));
    return 16 * count * static_cast<double>(arrays->X.size(-1) * arrays->X.size(-2)) + 30 * count * count * count;
  }
};

template <class T>
T* moment(const TensorView* view, index_t item) {
  return view ? static_cast<T*>(const_cast<void*>(batch_item(*view, 2, item))) : nullptr;
}

// A team passes over X, gradient and buffer twice: for products, and for what is written. A frame that fits into the
// second cache is packed by the first pass, so that the second finds it there.
template <class T>
class Item {
 public:
  Item(const FrameItem& frame, const StiefelStep& step, int team_size, Workspace& workspace)
      : step_(step),
        steps_(frame.arrays->steps),
        X_(frame.arrays->X, frame.item, step.rows),
        gradient_(frame.arrays->gradient, frame.item, step.rows),
        has_buffer_(frame.arrays->buffer != nullptr),
        buffer_(has_buffer_ ? *frame.arrays->buffer : frame.arrays->X, frame.item, step.rows),
        second_(moment<T>(frame.arrays->second, frame.item)),
        largest_(moment<T>(frame.arrays->largest, frame.item)),
        own_gradient_(has_buffer_ && (step.canonical || step.adaptive)),
        separate_gradient_(own_gradient_ && !step.nesterov),
        chunks_(X_.length()),
        S_(X_.count(), chunks_, workspace),
        with_w_(X_.count(), chunks_, workspace),
        of_w_(X_.count(), chunks_, workspace),
        with_t_(step.nesterov ? X_.count() : 0, chunks_, workspace),
        of_t_(step.nesterov ? X_.count() : 0, chunks_, workspace),
        t_with_w_(step.nesterov ? X_.count() : 0, chunks_, workspace),
        with_gradient_(separate_gradient_ ? X_.count() : 0, chunks_, workspace),
        squares_(workspace.take<double>(chunks_.count())),
        coefficients_(X_.count(), step.nesterov, step.polar, workspace),
        next_X_(X_.count(), 2, workspace),
        next_buffer_(has_buffer_ ? X_.count() : 0, 3, workspace),
        scratch_(workspace.take<T>(kBuffers * X_.buffer_size() * team_size)),
        doubles_(workspace.take<double>(4 * X_.buffer_size() * team_size)) {
    std::fill_n(squares_, chunks_.count(), 0.0);
    const index_t packed = sources() * X_.count() * round_up(X_.length(), kBlockLength);
    if (packed * static_cast<index_t>(sizeof(T)) <= kMostKept) kept_ = workspace.take<T>(packed);
  }

  // By every member of the team.
  void run(Team team) {
    chunks_.each_block(team,
                       [&](index_t chunk, index_t first, index_t size) { add_products(chunk, first, size, team); });
    team.barrier();
    if (team.rank() == 0) set_coefficients();
    team.barrier();
    chunks_.each_block(team, [&](index_t, index_t first, index_t size) { write(first, size, team); });
  }

 private:
  static constexpr int kBuffers = 5;
  static constexpr index_t kMostKept = 400 << 10;  // bytes, of a second cache of 512 kB or more
  struct Sources {
    Block<T> X, w, t, gradient;
  };

  index_t sources() const { return step_.nesterov ? 3 : 2; }

  void add_products(index_t chunk, index_t first, index_t size, Team team) {
    const index_t k = X_.count();
    const Sources in = read(first, size, team);
    const Block<double> x = in_double(in.X, k, size, doubles(team, 0)), w = in_double(in.w, k, size, doubles(team, 1));
    add_dots(x, x, size, true, S_.part(chunk));
    add_dots(x, w, size, false, with_w_.part(chunk));
    add_dots(w, w, size, true, of_w_.part(chunk));
    if (step_.nesterov) {
      const Block<double> t = in_double(in.t, k, size, doubles(team, 2));
      add_dots(x, t, size, false, with_t_.part(chunk));
      add_dots(t, t, size, true, of_t_.part(chunk));
      add_dots(t, w, size, false, t_with_w_.part(chunk));
    }
    if (!separate_gradient_) return;
    const Block<double> g = in_double(in.gradient, k, size, doubles(team, 3));
    add_dots(x, g, size, false, with_gradient_.part(chunk));
    if (step_.adaptive) squares_[chunk] += square_of(g, size);
  }

  double square_of(const Block<double>& block, index_t size) const {
    Vec<double> sum{};
    for (index_t j = 0; j < X_.count(); ++j) {
      for (index_t i = 0; i < size; i += kLanes<double>) sum += load(block[j] + i) * load(block[j] + i);
    }
    double total = 0;
    for (index_t lane = 0; lane < kLanes<double>; ++lane) total += sum[lane];
    return total;
  }

  void set_coefficients() {
    StiefelProducts in;
    in.S = &S_.total(true);
    in.with_w = &with_w_.total(false);
    in.of_w = &of_w_.total(true);
    if (step_.nesterov) {
      in.with_t = &with_t_.total(false);
      in.of_t = &of_t_.total(true);
      in.t_with_w = &t_with_w_.total(false);
    }
    if (separate_gradient_) in.with_gradient = &with_gradient_.total(false);
    for (index_t chunk = 0; chunk < chunks_.count(); ++chunk) in.gradient_square += squares_[chunk];
    // An entry that is not finite shows in the products, in its own rows and columns; it must reach all of the frame.
    double probe = 0;
    for (const Square* product : {in.S, in.with_w, in.of_w, in.with_t, in.of_t, in.with_gradient}) {
      for (index_t i = 0; product && i < product->elements(); ++i) probe += product->data()[i] * 0;
    }
    double second = second_ ? static_cast<double>(*second_) : 0,
           largest = largest_ ? static_cast<double>(*largest_) : 0;
    coefficients_.run(in, step_, own_gradient_, steps_, second_ ? &second : nullptr, largest_ ? &largest : nullptr);
    if (second_) *second_ = static_cast<T>(second + probe);
    if (largest_) *largest_ = static_cast<T>(largest + probe);
    append(next_X_, coefficients_.X_of_X, probe);
    append(next_X_, coefficients_.X_of_u, probe);
    if (!has_buffer_) return;
    append(next_buffer_, coefficients_.buffer_of_X, probe);
    append(next_buffer_, coefficients_.buffer_of_w, probe);
    if (step_.nesterov) append(next_buffer_, coefficients_.buffer_of_t, probe);
  }

  static void append(Combination<T>& to, const Square& coefficients, double probe) {
    if (probe != 0) std::fill_n(coefficients.data(), coefficients.elements(), probe);
    to.append(coefficients);
  }

  // X, w = momentum buffer + share gradient and t = gradient + momentum w.
  Sources read(index_t first, index_t size, Team team) const {
    T* const w = place(first, 1, team);
    T* const t = step_.nesterov ? place(first, 2, team) : w;
    const Block<T> X = X_.read(first, size, place(first, 0, team));
    const Block<T> g = gradient_.read(first, size, scratch(team, 3));
    const Block<T> before = has_buffer_ ? buffer_.read(first, size, scratch(team, 4)) : g;
    const T sign = step_.maximize ? T(-1) : T(1), momentum = has_buffer_ ? static_cast<T>(step_.momentum) : T(0);
    const T share = has_buffer_ ? static_cast<T>(step_.share) : T(1);
    T* const signed_gradient = scratch(team, 3);
    for (index_t j = 0; j < X_.count(); ++j) {
      const T *gradient = g[j], *old = before[j];
      const index_t offset = j * kBlockLength;
      for (index_t i = 0; i < round_up(size, kLanes<T>); i += kLanes<T>) {
        const Vec<T> full = load(gradient + i) * sign;
        const Vec<T> next = momentum == 0 ? full * share : load(old + i) * momentum + full * share;
        store(w + offset + i, next);
        if (t != w) store(t + offset + i, full + next * momentum);
        if (separate_gradient_) store(signed_gradient + offset + i, full);
      }
    }
    return {X, {w, kBlockLength}, {t, kBlockLength}, {signed_gradient, kBlockLength}};
  }

  // What `read` gave in the first pass, without the gradient.
  Sources read_again(index_t first, index_t size, Team team) const {
    if (!kept_) return read(first, size, team);
    const Block<T> w{place(first, 1, team), kBlockLength}, t{place(first, 2, team), kBlockLength};
    if (X_.in_place(size)) return {X_.read(first, size, nullptr), w, t, w};
    return {{place(first, 0, team), kBlockLength}, w, t, w};
  }

  // Where source `which` of a block is packed.
  T* place(index_t first, index_t which, Team team) const {
    return kept_ ? kept_ + (first / kBlockLength * sources() + which) * X_.buffer_size() : scratch(team, which);
  }

  void write(index_t first, index_t size, Team team) const {
    const Sources in = read_again(first, size, team);
    T* out = scratch(team, 3);
    if (has_buffer_) {
      const Block<T> sources[] = {in.X, in.w, in.t};
      next_buffer_.run(sources, size, out);
      buffer_.write(first, size, out);
    }
    const Block<T> sources[] = {in.X, step_.nesterov ? in.t : in.w};
    next_X_.run(sources, size, out);
    X_.write(first, size, out);
  }

  T* scratch(Team team, index_t which) const { return scratch_ + (kBuffers * team.rank() + which) * X_.buffer_size(); }
  double* doubles(Team team, int which) const { return doubles_ + (4 * team.rank() + which) * X_.buffer_size(); }

  StiefelStep step_;
  double steps_;
  LongVectors<T> X_, gradient_;
  bool has_buffer_;
  LongVectors<T> buffer_;
  T *second_, *largest_;
  bool own_gradient_, separate_gradient_;
  Chunks chunks_;
  DotSums S_, with_w_, of_w_, with_t_, of_t_, t_with_w_, with_gradient_;
  double* squares_;
  StiefelCoefficients coefficients_;
  Combination<T> next_X_, next_buffer_;
  T* scratch_;
  double* doubles_;
  T* kept_ = nullptr;
};

void run_item(const FrameItem& frame, const StiefelStep& step, int threads) {
  dispatch_float(frame.arrays->X.dtype, "stiefel_step", [&](auto tag) {
    using T = typename decltype(tag)::type;
    Workspace workspace;
    Item<T> item(frame, step, threads, workspace);
    parallel_team(threads, [&](Team team) { item.run(team); });
  });
}

}  // namespace

// A frame that is a large part of what is left is worked on by all threads, the rest one frame to a thread.
void stiefel_step_cpu(const std::vector<StiefelArrays>& arrays, const StiefelStep& step, int threads) {
  std::vector<FrameItem> items;
  for (const StiefelArrays& one : arrays) {
    if (one.X.numel() == 0) continue;
    for (index_t item = 0; item < batch_count(one.X, 2); ++item) items.push_back({&one, item});
  }
  std::stable_sort(items.begin(), items.end(),
                   [&](const FrameItem& a, const FrameItem& b) { return a.flops(step.rows) > b.flops(step.rows); });
  double left = 0;
  for (const FrameItem& item : items) left += item.flops(step.rows);
  std::size_t shared = 0;
  for (; shared < items.size(); ++shared) {
    const double flops = items[shared].flops(step.rows);
    if (flops * 2 * threads < left) break;
    run_item(items[shared], step, useful_threads(flops / 4, threads));
    left -= flops;
  }
  parallel_for(static_cast<index_t>(items.size() - shared), useful_threads(left, threads),
               [&](index_t i) { run_item(items[shared + static_cast<std::size_t>(i)], step, 1); });
}

}  // namespace subspan
