#include "core/measure.h"

#include <chrono>
#include <vector>

#include "core/product.h"

namespace subspan {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

volatile float source = 0;
volatile float sink;  // keeps the compiler from dropping what nobody reads

// Flops per second of one thread: as many independent multiply-adds as hide their latency.
double fma_rate(double seconds) {
  constexpr int chains = 12;
  constexpr index_t rounds = 100000;
  Vec<float> sums[chains];
  for (int c = 0; c < chains; ++c) sums[c] = broadcast(source + static_cast<float>(c));  // equal chains would be merged
  Vec<float> factor = broadcast(0.999f), term = broadcast(0.001f);
  double best = 0;
  const auto start = Clock::now();
  do {
    const auto round_start = Clock::now();
    for (index_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
      for (int c = 0; c < chains; ++c) sums[c] = sums[c] * factor + term;
    }
    for (const auto& sum : sums) sink = sum[0];
    best = std::max(best, 2.0 * chains * kLanes<float> * static_cast<double>(rounds) / seconds_since(round_start));
  } while (seconds_since(start) < seconds);
  return best * 1e-9;
}

}  // namespace

double measure_fma_peak(double seconds, int threads) {
  double total = 0;
#pragma omp parallel num_threads(threads) reduction(+ : total)
  total += fma_rate(seconds);
  return total;
}

double measure_gemm(index_t n, int repeats) {
  std::vector<float> a(static_cast<std::size_t>(n * n)), b(a), c(a);
  for (index_t i = 0; i < n * n; ++i) {
    a[static_cast<std::size_t>(i)] = static_cast<float>(i % 7) - 3;
    b[static_cast<std::size_t>(i)] = static_cast<float>(i % 5) - 2;
  }
  const Rows<float> rows_a(a.data(), DType::f32, n, 1), rows_b(b.data(), DType::f32, n, 1);
  double best = 1e30;
  for (int repeat = 0; repeat < repeats; ++repeat) {
    const auto start = Clock::now();
    Workspace workspace;
    multiply_rows(rows_a, n, rows_b, n, n, c.data(), workspace);
    best = std::min(best, seconds_since(start));
  }
  return best;
}

}  // namespace subspan
