#include "core/dispatch.h"
#include "ops/sparse/matching_pursuit.h"
#include "ops/sparse/pursuit_step.h"

namespace subspan {
namespace {

// The atoms that the rows of one item chose.
class Choices {
 public:
  Choices(const TensorView& indices, index_t item, index_t atoms)
      : data_(static_cast<const std::int32_t*>(batch_item(indices, 2, item))),
        row_step_(indices.step(-2)),
        step_(indices.step(-1)),
        atoms_(atoms) {}

  index_t operator()(index_t row, index_t step) const {
    const index_t atom = data_[row * row_step_ + step * step_];
    CHECK(0 <= atom && atom < atoms_, "matching_pursuit: indices: expected atoms in 0 ... ", atoms_ - 1, ", got ",
          atom);
    return atom;
  }

 private:
  const std::int32_t* data_;
  index_t row_step_, step_, atoms_;
};

template <class T>
struct Item {
  Item(const TensorView& x, const TensorView& W, const TensorView& indices, index_t item)
      : x(rows_of<T>(x, item)),
        W(rows_of<T>(W, item)),
        choices(indices, item, W.size(-2)),
        rows(x.size(-2)),
        length(x.size(-1)),
        atoms(W.size(-2)),
        steps(indices.size(-1)) {}

  Rows<T> x, W;
  Choices choices;
  index_t rows, length, atoms, steps;
};

template <class T>
void values_of(const Item<T>& item, T* values, T* residuals, bool relu, int threads) {
  constexpr index_t kBlock = 8;
  parallel_for((item.rows + kBlock - 1) / kBlock, threads, [&](index_t block) {
    Workspace workspace;
    T *residual = workspace.take<T>(item.length), *scratch = workspace.take<T>(item.length);
    for (index_t row = block * kBlock; row < std::min(item.rows, (block + 1) * kBlock); ++row) {
      read_row(item.x, row, item.length, residual);
      for (index_t step = 0; step < item.steps; ++step) {
        const T* atom = item.W.read(item.choices(row, step), 0, item.length, scratch);
        values[row * item.steps + step] = take_step(residual, atom, item.length, relu);
      }
      if (residuals) std::copy_n(residual, item.length, residuals + row * item.length);
    }
  });
}

// Gradients of the atoms of as many rows at a time as fit this many bytes are formed side by side, then added to the
// atoms' rows of d_W, each by one thread in the order of the rows.
constexpr index_t kBlockBytes = index_t{8} << 20;

template <class T>
class Gradient {
 public:
  Gradient(const Item<T>& item, const Rows<T>* g_values, const Rows<T>* g_residual, T* d_x, T* d_W, bool relu)
      : item_(item), g_values_(g_values), g_residual_(g_residual), d_x_(d_x), d_W_(d_W), relu_(relu) {}

  void run(int threads) const {
    const index_t picks = item_.steps * item_.length;
    const index_t most = kBlockBytes / (static_cast<index_t>(sizeof(T)) * std::max<index_t>(picks, 1));
    const index_t block = std::clamp<index_t>(most, 1, std::max<index_t>(item_.rows, 1));
    if (d_W_) clear(threads);
    Workspace workspace;
    T* d_atoms = d_W_ ? workspace.take<T>(block * picks) : nullptr;
    Pick* order = d_W_ ? workspace.take<Pick>(block * item_.steps) : nullptr;
    for (index_t first = 0; first < item_.rows; first += block) {
      const index_t count = std::min(block, item_.rows - first);
      parallel_for(count, threads, [&](index_t i) { row(first + i, d_W_ ? d_atoms + i * picks : nullptr); });
      if (d_W_) scatter(first, count, d_atoms, order, threads);
    }
  }

 private:
  struct Pick {
    index_t atom, place;
    bool operator<(const Pick& other) const { return atom != other.atom ? atom < other.atom : place < other.place; }
  };

  void clear(int threads) const {
    parallel_for(item_.atoms, threads, [&](index_t m) { std::fill_n(d_W_ + m * item_.length, item_.length, T(0)); });
  }

  // The steps again, then backwards; see matching_pursuit.h.
  void row(index_t row, T* d_atoms) const {
    const index_t length = item_.length, steps = item_.steps;
    Workspace workspace;
    T* residuals = workspace.take<T>((steps + 1) * length);
    T *values = workspace.take<T>(steps), *upstream = workspace.take<T>(steps);
    T *u = workspace.take<T>(length), *scratch = workspace.take<T>(length);
    read_row(item_.x, row, length, residuals);
    for (index_t step = 0; step < steps; ++step) {
      T* next = residuals + (step + 1) * length;
      std::copy_n(next - length, length, next);
      values[step] = take_step(next, atom(row, step, scratch), length, relu_);
    }
    if (g_values_) {
      read_row(*g_values_, row, steps, upstream);
    } else {
      std::fill_n(upstream, steps, T(0));
    }
    if (g_residual_) {
      read_row(*g_residual_, row, length, u);
    } else {
      std::fill_n(u, length, T(0));
    }
    for (index_t step = steps; step-- > 0;) {
      const T* own = atom(row, step, scratch);
      const T value = values[step];
      const T y = relu_ && value <= 0 ? T(0) : upstream[step] - dot(u, own, length);
      if (d_atoms) {
        const T* residual = residuals + step * length;
        T* to = d_atoms + step * length;
        for (index_t k = 0; k < length; ++k) to[k] = y * residual[k] - value * u[k];
      }
      add_scaled(u, y, own, length);
    }
    if (d_x_) std::copy_n(u, length, d_x_ + row * length);
  }

  const T* atom(index_t row, index_t step, T* scratch) const {
    return item_.W.read(item_.choices(row, step), 0, item_.length, scratch);
  }

  void scatter(index_t first, index_t count, const T* d_atoms, Pick* order, int threads) const {
    const index_t steps = item_.steps, length = item_.length, picks = count * steps;
    for (index_t i = 0; i < picks; ++i) order[i] = {item_.choices(first + i / steps, i % steps), i};
    std::sort(order, order + picks);
    // Every task the atoms that begin in its part of the order.
    constexpr index_t kPart = 32;
    parallel_for((picks + kPart - 1) / kPart, threads, [&](index_t part) {
      index_t i = part * kPart;
      const index_t end = std::min(picks, i + kPart);
      while (i < end && i > 0 && order[i].atom == order[i - 1].atom) ++i;
      while (i < picks && (i < end || order[i].atom == order[i - 1].atom)) {
        T* to = d_W_ + order[i].atom * length;
        add_scaled(to, T(1), d_atoms + order[i].place * length, length);
        ++i;
      }
    });
  }

  const Item<T>& item_;
  const Rows<T>*g_values_, *g_residual_;
  T *d_x_, *d_W_;
  bool relu_;
};

}  // namespace

void pursuit_values_cpu(const TensorView& x, const TensorView& W, const TensorView& indices, const TensorView& values,
                        const TensorView* residual, bool relu, int threads) {
  dispatch_float(values.dtype, "matching_pursuit", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const double flops = 4 * static_cast<double>(indices.size(-1)) * static_cast<double>(x.size(-2) * x.size(-1));
    for_each_pursuit(batch_count(x, 2), flops, threads, [&](index_t i, int used) {
      const Item<T> item(x, W, indices, i);
      T* residuals = residual ? residual->ptr<T>() + i * item.rows * item.length : nullptr;
      values_of(item, values.ptr<T>() + i * item.rows * item.steps, residuals, relu, used);
    });
  });
}

void pursuit_gradient_cpu(const TensorView& x, const TensorView& W, const TensorView& indices,
                          const PursuitUpstream& upstream, const TensorView* d_x, const TensorView* d_W, bool relu,
                          int threads) {
  dispatch_float(compute_dtype(x.dtype), "matching_pursuit", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const double work = static_cast<double>(indices.size(-1)) * static_cast<double>(x.size(-2) * x.size(-1));
    const double flops = 12 * work + static_cast<double>(W.size(-2) * W.size(-1));
    for_each_pursuit(batch_count(x, 2), flops, threads, [&](index_t i, int used) {
      const Item<T> item(x, W, indices, i);
      const Rows<T> g_values = rows_of<T>(upstream.values ? *upstream.values : x, i);
      const Rows<T> g_residual = rows_of<T>(upstream.residual ? *upstream.residual : x, i);
      Gradient<T>(item, upstream.values ? &g_values : nullptr, upstream.residual ? &g_residual : nullptr,
                  d_x ? d_x->ptr<T>() + i * item.rows * item.length : nullptr,
                  d_W ? d_W->ptr<T>() + i * item.atoms * item.length : nullptr, relu)
          .run(used);
    });
  });
}

}  // namespace subspan
