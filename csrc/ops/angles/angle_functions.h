// Functions of the principal angles of one pair of subspaces, and their derivatives.
#pragma once
#include <cmath>
#include <limits>

#include "ops/angles/subspace_angles.h"

namespace subspan {

// Angles ascend; cosine[i] and sine[i] belong to angle[i] and are each accurate where they are small.
struct Angles {
  const double* angle;
  const double* cosine;
  const double* sine;
  index_t count;
  index_t unpaired;  // further angles of pi / 2
};

namespace angle_functions {

constexpr double kQuarter = 1.57079632679489661923;

template <class Term>
double sum(const Angles& angles, Term&& term) {
  double total = 0;
  for (index_t i = 0; i < angles.count; ++i) total += term(i);
  return total;
}

inline double log_square_cosine(const Angles& angles, index_t i) {
  const double c = angles.cosine[i], s = angles.sine[i];
  return c > s ? std::log1p(-s * s) : 2 * std::log(c);
}

// log of the product of all squared cosines.
inline double log_product(const Angles& angles) {
  if (angles.unpaired > 0) return -std::numeric_limits<double>::infinity();
  return sum(angles, [&](index_t i) { return log_square_cosine(angles, i); });
}

inline double largest_angle(const Angles& angles) {
  if (angles.unpaired > 0) return kQuarter;
  return angles.count > 0 ? angles.angle[angles.count - 1] : 0;
}

// The square of a distance; for those of one angle, of the largest.
inline double square(AngleFunction function, const Angles& a) {
  const double unpaired = static_cast<double>(a.unpaired);
  const auto sines = [&](index_t i) { return a.sine[i] * a.sine[i]; };
  switch (function) {
    case AngleFunction::kGeodesic:
      return sum(a, [&](index_t i) { return a.angle[i] * a.angle[i]; }) + unpaired * kQuarter * kQuarter;
    case AngleFunction::kChordal: return sum(a, sines) + unpaired;
    case AngleFunction::kProjection: return 2 * sum(a, sines) + unpaired;  // |P_A - P_B|^2 = p + q - 2 sum cos^2
    case AngleFunction::kProcrustes:
      return sum(a, [&](index_t i) { return 4 * std::pow(std::sin(a.angle[i] / 2), 2); }) + 2 * unpaired;
    case AngleFunction::kBinetCauchy: return -std::expm1(log_product(a));
    case AngleFunction::kFubiniStudy: {
      const double log = log_product(a);
      return std::pow(std::atan2(std::sqrt(-std::expm1(log)), std::exp(log / 2)), 2);
    }
    case AngleFunction::kMartin: return -log_product(a);
    case AngleFunction::kAsimov: return std::pow(largest_angle(a), 2);
    case AngleFunction::kSpectral: return 4 * std::pow(std::sin(largest_angle(a) / 2), 2);
    default: return std::pow(std::sin(largest_angle(a)), 2);  // kGap
  }
}

inline bool is_distance(AngleFunction function) {
  return function != AngleFunction::kMeanSquaredCosine && function != AngleFunction::kLargestCosine &&
         function != AngleFunction::kOverlap;
}

}  // namespace angle_functions

inline double value(AngleFunction function, bool squared, const Angles& a) {
  using namespace angle_functions;
  if (is_distance(function)) {
    const double result = square(function, a);
    return squared ? result : std::sqrt(result);
  }
  if (function == AngleFunction::kLargestCosine) return a.count > 0 ? a.cosine[0] : 0;
  const double overlap = sum(a, [&](index_t i) { return a.cosine[i] * a.cosine[i]; });
  return function == AngleFunction::kOverlap || a.count == 0 ? overlap : overlap / static_cast<double>(a.count);
}

// weights[i] = (d value / d angle[i]) / sine[i]: what the gradient is made of. Smooth squares have a limit where the
// sine is 0; where there is none, at zero distance and at a product of cosines that is zero, it is 0, a subgradient.
inline void weights(AngleFunction function, bool squared, const Angles& a, double* weights) {
  using namespace angle_functions;
  const auto fill = [&](auto&& weight) {
    for (index_t i = 0; i < a.count; ++i) weights[i] = weight(i);
  };
  const auto over = [](double numerator, double denominator) { return denominator != 0 ? numerator / denominator : 0; };
  const double count = static_cast<double>(std::max<index_t>(a.count, 1));
  switch (function) {
    case AngleFunction::kMeanSquaredCosine: return fill([&](index_t i) { return -2 * a.cosine[i] / count; });
    case AngleFunction::kOverlap: return fill([&](index_t i) { return -2 * a.cosine[i]; });
    case AngleFunction::kLargestCosine: return fill([&](index_t i) { return i == 0 ? -1.0 : 0.0; });
    default: break;
  }
  // Of the square first.
  const index_t last = a.unpaired > 0 ? -1 : a.count - 1;  // the largest angle, where it is not a constant
  const double product = std::exp(log_product(a) / 2);
  switch (function) {
    case AngleFunction::kGeodesic:
      fill([&](index_t i) { return 2 * (a.sine[i] != 0 ? a.angle[i] / a.sine[i] : 1); });
      break;
    case AngleFunction::kChordal: fill([&](index_t i) { return 2 * a.cosine[i]; }); break;
    case AngleFunction::kProjection: fill([&](index_t i) { return 4 * a.cosine[i]; }); break;
    case AngleFunction::kProcrustes: fill([&](index_t) { return 2.0; }); break;
    case AngleFunction::kBinetCauchy: fill([&](index_t i) { return over(2 * product * product, a.cosine[i]); }); break;
    case AngleFunction::kFubiniStudy: {
      const double sine = std::sqrt(-std::expm1(log_product(a))), angle = std::atan2(sine, product);
      const double ratio = sine != 0 ? angle / sine : 1;
      fill([&](index_t i) { return over(2 * ratio * product, a.cosine[i]); });
      break;
    }
    case AngleFunction::kMartin: fill([&](index_t i) { return over(2, a.cosine[i]); }); break;
    case AngleFunction::kAsimov:
      fill([&](index_t i) { return i == last ? 2 * (a.sine[i] != 0 ? a.angle[i] / a.sine[i] : 1) : 0; });
      break;
    case AngleFunction::kSpectral: fill([&](index_t i) { return i == last ? 2.0 : 0.0; }); break;
    default: fill([&](index_t i) { return i == last ? 2 * a.cosine[i] : 0; }); break;  // kGap
  }
  if (squared) return;
  const double distance = std::sqrt(square(function, a));
  for (index_t i = 0; i < a.count; ++i) weights[i] = over(weights[i] / 2, distance);
}

}  // namespace subspan
