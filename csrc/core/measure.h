// What this machine and this build can do: the denominators of the benchmark tables.
#pragma once
#include "core/simd.h"

namespace subspan {

// float32 multiply-adds on registers only, all `threads` together, in GF/s: no kernel can be faster.
double measure_fma_peak(double seconds, int threads);

// Best time in seconds of `repeats` square float32 products of size n on one thread, packing included.
double measure_gemm(index_t n, int repeats);

}  // namespace subspan
