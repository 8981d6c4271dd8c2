// Orthonormal columns to go with those that there are.
#pragma once
#include <cmath>
#include <limits>

#include "core/tensor_view.h"

namespace subspan {

// Columns `from` ... count - 1 of an orthonormal basis of which the first are given: entry (i, c) at i * step + c *
// next. Of the unit vectors the one farthest from the span so far, made orthogonal twice, which is enough.
template <class T>
void complete_basis(T* basis, index_t step, index_t next, index_t rows, index_t from, index_t count) {
  for (index_t c = from; c < count; ++c) {
    index_t farthest = 0;
    T smallest = std::numeric_limits<T>::infinity();
    for (index_t i = 0; i < rows; ++i) {
      T projected = 0;
      for (index_t b = 0; b < c; ++b) projected += basis[i * step + b * next] * basis[i * step + b * next];
      if (projected < smallest) smallest = projected, farthest = i;
    }
    for (index_t i = 0; i < rows; ++i) basis[i * step + c * next] = static_cast<T>(i == farthest);
    for (int time = 0; time < 2; ++time) {
      for (index_t b = 0; b < c; ++b) {
        T product = 0;
        for (index_t i = 0; i < rows; ++i) product += basis[i * step + b * next] * basis[i * step + c * next];
        for (index_t i = 0; i < rows; ++i) basis[i * step + c * next] -= product * basis[i * step + b * next];
      }
      T square = 0;
      for (index_t i = 0; i < rows; ++i) square += basis[i * step + c * next] * basis[i * step + c * next];
      for (index_t i = 0; i < rows; ++i) basis[i * step + c * next] /= std::sqrt(square);
    }
  }
}

}  // namespace subspan
