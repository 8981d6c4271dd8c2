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

// Reads one entry of every line of a block before the block is wanted. That, unlike a prefetch, sets the hardware to
// follow the arrays, which it does as fast as memory is; rows that are transposed are read in an order that it does not
// recognise. All arrays side by side: while one starts anew at the end of a page, the others go on.
class BlocksAhead {
 public:
  void add(const TensorView& view, index_t item, bool rows) {
    const index_t bytes = element_size(view.dtype), count = view.size(rows ? -2 : -1);
    const index_t entry_step = view.step(rows ? -1 : -2) * bytes, vector_step = view.step(rows ? -2 : -1) * bytes;
    length_ = view.size(rows ? -1 : -2);
    entry_bytes_ = vector_step == bytes ? entry_step : bytes;
    const bool in_runs = entry_step == bytes, in_one = vector_step == bytes && entry_step == count * bytes;
    runs_ = in_runs ? count : 1;
    if (in_runs || in_one) arrays_[used_++] = {static_cast<const char*>(batch_item(view, 2, item)), vector_step};
  }

  // Gives whether there is a block that begins at `first`.
  bool operator()(index_t first) const {
    const index_t bytes = std::min(kBlockLength, length_ - first) * entry_bytes_;
    for (index_t run = 0; run < runs_; ++run) {
      for (index_t i = 0; i < bytes; i += kLine) {
        for (int a = 0; a < used_; ++a) {
          const volatile char* at = arrays_[a].begin + run * arrays_[a].run_step + first * entry_bytes_ + i;
          (void)*at;
        }
      }
    }
    return first < length_;
  }

 private:
  static constexpr index_t kLine = 64;
  struct Array {
    const char* begin;
    index_t run_step;
  };
  Array arrays_[3] = {};
  int used_ = 0;
  index_t length_ = 0, runs_ = 0, entry_bytes_ = 0;
};

// A team passes over X, gradient and buffer twice: for products, and for what is written. A frame that fits into the
// second cache is packed by the first pass, so that the second finds it there. Products of float32 are summed up in it
// over a block, and in float64 over blocks; where the square of a tangent vector's norm is a difference of products, in
// float64 altogether.
template <class T>
class Item {
 public:
  // `next`: the frame that this thread will probably come to next.
  Item(const FrameItem& frame, const FrameItem* next, const StiefelStep& step, int team_size, Workspace& workspace)
      : step_(step),
        steps_(frame.arrays->steps),
        X_(frame.arrays->X, frame.item, step.rows),
        gradient_(frame.arrays->gradient, frame.item, step.rows),
        has_buffer_(frame.arrays->buffer != nullptr),
        buffer_(has_buffer_ ? *frame.arrays->buffer : frame.arrays->X, frame.item, step.rows),
        second_(moment<T>(frame.arrays->second, frame.item)),
        largest_(moment<T>(frame.arrays->largest, frame.item)),
        own_gradient_(step.canonical || step.adaptive),
        separate_gradient_(own_gradient_ && has_buffer_ && !step.nesterov),
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
    set_ahead(frame, ahead_);
    if (next) set_ahead(*next, after_);
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
  template <class Number>
  struct Sources {
    Block<Number> X, w, t, gradient;
  };

  void set_ahead(const FrameItem& frame, BlocksAhead& ahead) const {
    ahead.add(frame.arrays->X, frame.item, step_.rows);
    ahead.add(frame.arrays->gradient, frame.item, step_.rows);
    if (has_buffer_) ahead.add(*frame.arrays->buffer, frame.item, step_.rows);
  }

  index_t sources() const { return step_.nesterov ? 3 : 2; }

  void add_products(index_t chunk, index_t first, index_t size, Team team) {
    const index_t k = X_.count();
    if (!ahead_(first + kBlockLength)) after_(0);
    const Sources<T> in = read(first, size, team);
    if (sizeof(T) == 8 || step_.adaptive) {
      const Sources<double> converted{
          in_double(in.X, k, size, doubles(team, 0)), in_double(in.w, k, size, doubles(team, 1)),
          step_.nesterov ? in_double(in.t, k, size, doubles(team, 2)) : Block<double>{},
          separate_gradient_ ? in_double(in.gradient, k, size, doubles(team, 3)) : Block<double>{}};
      add_products_of(converted, chunk, size);
      if (step_.adaptive) squares_[chunk] += square_of(converted.gradient, size);
    } else {
      add_products_of(in, chunk, size);
    }
  }

  template <class Number>
  void add_products_of(const Sources<Number>& in, index_t chunk, index_t size) {
    add_dots(in.X, in.X, size, true, S_.part(chunk));
    add_dots(in.X, in.w, size, false, with_w_.part(chunk));
    add_dots(in.w, in.w, size, true, of_w_.part(chunk));
    if (step_.nesterov) {
      add_dots(in.X, in.t, size, false, with_t_.part(chunk));
      add_dots(in.t, in.t, size, true, of_t_.part(chunk));
      add_dots(in.t, in.w, size, false, t_with_w_.part(chunk));
    }
    if (separate_gradient_) add_dots(in.X, in.gradient, size, false, with_gradient_.part(chunk));
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
  Sources<T> read(index_t first, index_t size, Team team) const {
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
  Sources<T> read_again(index_t first, index_t size, Team team) const {
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
    const Sources<T> in = read_again(first, size, team);
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
  BlocksAhead ahead_, after_;
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

void run_item(const FrameItem& frame, const FrameItem* next, const StiefelStep& step, int threads) {
  dispatch_float(frame.arrays->X.dtype, "stiefel_step", [&](auto tag) {
    using T = typename decltype(tag)::type;
    Workspace workspace;
    Item<T> item(frame, next, step, threads, workspace);
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
    run_item(items[shared], nullptr, step, useful_threads(flops / 4, threads));
    left -= flops;
  }
  const FrameItem* rest = items.data() + shared;
  const auto count = static_cast<index_t>(items.size() - shared);
  parallel_for(count, useful_threads(left, threads),
               [&](index_t i) { run_item(rest[i], i + 1 < count ? rest + i + 1 : nullptr, step, 1); });
}

}  // namespace subspan
