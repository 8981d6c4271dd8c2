// One vocabulary for algorithms on square matrices that are made of products: kLanes matrices side by side, or one that
// a team shares. A matrix is a block of `elements` entries, entry (i, j) at i * step + j; what pads it stays zero under
// linear combinations.
#pragma once
#include "core/small_matrix/gauss_jordan.h"

namespace subspan {

template <class T>
class LaneSquares {
 public:
  using Entry = Vec<T>;
  LaneSquares(index_t size, Workspace& workspace)
      : size(size), step(size), elements(size * size), workspace_(workspace) {}

  Entry* take() const { return workspace_.take<Entry>(elements); }
  // to = a b, or a^T b; `to` is neither.
  void multiply(Entry* to, Entry* a, Entry* b, bool transposed = false) const {
    const LaneMatrix<T> left{a, size, 1}, result{to, size, 1};
    multiply_interleaved(transposed ? left.transposed() : left, size, LaneMatrix<T>{b, size, 1}, size, size,
                         [&](index_t i, index_t j, Entry sum) { result(i, j) = sum; });
  }
  // In place; the symmetric part must be positive definite.
  void invert(Entry* a) const {
    Workspace inner;
    invert_interleaved<T>(a, step, size, inner.take<Entry>(invert_interleaved_work(size)));
  }
  static Entry absolute(Entry value) { return value < 0 ? -value : value; }
  static Entry larger(Entry a, Entry b) { return a > b ? a : b; }

  const index_t size, step, elements;

 private:
  Workspace& workspace_;
};

template <class T>
class PaddedSquares {
 public:
  using Entry = T;
  PaddedSquares(index_t size, int threads, Workspace& workspace)
      : size(size),
        step(PaddedSquare<T>::step_of(size)),
        elements(PaddedSquare<T>::elements(size)),
        threads_(threads),
        workspace_(workspace) {}

  T* take() const { return PaddedSquare<T>::take(size, workspace_).data; }
  void multiply(T* to, T* a, T* b, bool transposed = false) const {
    parallel_team(threads_, [&](Team team) {
      multiply_into(PaddedSquare<T>{to, size, step}, a, transposed ? index_t(1) : step, transposed ? step : index_t(1),
                    PaddedSquare<T>{b, size, step}, Update::kStore, team);
    });
  }
  void invert(T* a) const {
    Workspace inner;
    T* work = inner.take<T>(invert_padded_work<T>(size));
    parallel_team(threads_, [&](Team team) { invert_padded(PaddedSquare<T>{a, size, step}, work, team); });
  }
  static T absolute(T value) { return std::fabs(value); }
  static T larger(T a, T b) { return a > b ? a : b; }

  const index_t size, step, elements;

 private:
  int threads_;
  Workspace& workspace_;
};

// The largest sum of absolute values in a row.
template <class Squares>
typename Squares::Entry row_sum_norm(const Squares& squares, const typename Squares::Entry* a) {
  typename Squares::Entry norm{};
  for (index_t i = 0; i < squares.size; ++i) {
    typename Squares::Entry sum{};
    for (index_t j = 0; j < squares.size; ++j) sum += Squares::absolute(a[i * squares.step + j]);
    norm = Squares::larger(sum, norm);
  }
  return norm;
}

template <class Squares, class Entry>
void add_to_diagonal(const Squares& squares, Entry* a, typename Squares::Entry value) {
  for (index_t i = 0; i < squares.size; ++i) a[i * squares.step + i] += value;
}

// a = (a - a^T) * factor
template <class Squares, class Entry>
void keep_skew_part(const Squares& squares, Entry* a, typename Squares::Entry factor) {
  for (index_t i = 0; i < squares.size; ++i) {
    a[i * squares.step + i] = Entry{};
    for (index_t j = 0; j < i; ++j) {
      Entry &lower = a[i * squares.step + j], &upper = a[j * squares.step + i];
      lower = lower * factor - upper * factor;
      upper = -lower;
    }
  }
}

}  // namespace subspan
