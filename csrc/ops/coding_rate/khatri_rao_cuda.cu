// khatri_rao_pack and its adjoint on the device: see khatri_rao.h for what they compute. Both are bound by the memory
// traffic of the products, which they write, or read, once and in order. Nothing is allocated and nothing synchronises.
#include <algorithm>

#include "core/check.h"
#include "core/cuda/half_storage.cuh"
#include "core/cuda/matrix_batch.cuh"
#include "core/cuda/packed_triangle.cuh"
#include "ops/coding_rate/khatri_rao.h"

namespace subspan {
namespace {

constexpr int kPackThreads = 256;
constexpr int kPackRounds = 8;   // entries of a sample's triangle that one thread writes
constexpr int kPackSamples = 8;  // samples that share the work of finding an entry's row and column
constexpr std::size_t kPackSharedBytes = 32 * 1024;
constexpr int kWarps = kBlockThreads / kWarp;

// All samples of the batch as one list.
template <class Stored>
struct Samples {
  MatrixBatch<Stored> batch;
  std::int64_t rows;  // of each matrix
  std::int64_t count;
  int features, entries;

  explicit Samples(const TensorView& Z)
      : batch(Z),
        rows(Z.size(-2)),
        count(batch.count * rows),
        features(static_cast<int>(Z.size(-1))),
        entries(static_cast<int>(triangle_size(features))) {}

  __device__ const Stored* operator[](std::int64_t sample) const {
    return batch[sample / rows] + sample % rows * batch.row_stride;
  }
  __device__ Computed<Stored> read(const Stored* row, int feature) const {
    return computed(row[feature * batch.col_stride]);
  }
};

// A block writes one tile of entries of a few samples.
template <class Stored>
__global__ void __launch_bounds__(kPackThreads)
    khatri_rao_pack(const Samples<Stored> samples, Computed<Stored>* products, int per_block, int tiles,
                    std::int64_t first) {
  using T = Computed<Stored>;
  const std::int64_t block = first + blockIdx.x, first_sample = block / tiles * per_block;
  const int features = samples.features, entries = samples.entries;
  const int count = samples.count - first_sample < per_block ? samples.count - first_sample : per_block;
  T* z = dynamic_shared<T>();  // count rows
  for (int s = 0; s < count; ++s) {
    const Stored* row = samples[first_sample + s];
    for (int f = threadIdx.x; f < features; f += kPackThreads) z[s * features + f] = samples.read(row, f);
  }
  __syncthreads();

  T* out = products + first_sample * entries;
  int entry = block % tiles * (kPackThreads * kPackRounds) + threadIdx.x;
  for (int round = 0; round < kPackRounds && entry < entries; ++round, entry += kPackThreads) {
    const TrianglePosition at = triangle_position(entry, features);
#pragma unroll 4
    for (int s = 0; s < count; ++s) {
      out[std::int64_t(s) * entries + entry] = z[s * features + at.row] * z[s * features + at.col];
    }
  }
}

// `warps_per_sample` warps share a sample, each taking every so many-th row of its triangle: row a gives d_a += D_a. z
// and d += z_a D_a., which a warp adds up in shared memory of its own. Feature f there belongs to lane f % 32 alone.
template <class Stored>
__global__ void __launch_bounds__(kBlockThreads)
    khatri_rao_unpack(const Computed<Stored>* d_products, const Samples<Stored> samples, Computed<Stored>* d_Z,
                      int warps_per_sample, std::int64_t first) {
  using T = Computed<Stored>;
  const int features = samples.features;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int team = warp / warps_per_sample, rank = warp % warps_per_sample;
  const std::int64_t sample = first + std::int64_t(blockIdx.x) * (kWarps / warps_per_sample) + team;
  // Teams past the end work on the last sample and write nothing: an early return would miss the barriers.
  const bool live = sample < samples.count;
  const std::int64_t source = live ? sample : samples.count - 1;

  T* z = dynamic_shared<T>() + std::int64_t(team) * (1 + warps_per_sample) * features;
  T* all_sums = z + features;
  T* sums = all_sums + rank * features;
  const Stored* row = samples[source];
  for (int f = rank * kWarp + lane; f < features; f += warps_per_sample * kWarp) z[f] = samples.read(row, f);
  for (int f = lane; f < features; f += kWarp) sums[f] = 0;
  __syncthreads();

  const T* triangle = d_products + source * samples.entries;
  for (int a = rank; a < features; a += warps_per_sample) {
    const T* entries = triangle + row_start(a, features);
    const T z_a = z[a];
    T dot = 0;
#pragma unroll 4
    for (int b = a / kWarp * kWarp + lane; b < features; b += kWarp) {
      if (b < a) continue;
      const T entry = entries[b];
      dot += entry * z[b];
      sums[b] += entry * z_a;
    }
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) dot += __shfl_xor_sync(kAllLanes, dot, step);
    if (lane == a % kWarp) sums[a] += dot;
  }
  __syncthreads();
  if (!live) return;
  for (int f = rank * kWarp + lane; f < features; f += warps_per_sample * kWarp) {
    T total = all_sums[f];
    for (int other = 1; other < warps_per_sample; ++other) total += all_sums[other * features + f];
    d_Z[sample * features + f] = total;
  }
}

// A sample and the sums of the warps that share it.
std::size_t unpack_bytes(std::int64_t features, int warps_per_sample, std::size_t element) {
  return kWarps / warps_per_sample * (1 + warps_per_sample) * static_cast<std::size_t>(features) * element;
}

void check_features(const TensorView& Z, const char* op) {
  const std::int64_t limit = khatri_rao_cuda_max_features(compute_dtype(Z.dtype), Z.device_id);
  CHECK(Z.size(-1) <= limit, op, ": Z: expected at most ", limit, " features (shared memory of the device), got ",
        Z.size(-1));
}

}  // namespace

std::int64_t khatri_rao_cuda_max_features(DType dtype, int device) {
  const std::size_t one = unpack_bytes(1, kWarps, static_cast<std::size_t>(element_size(dtype)));
  return std::min<std::int64_t>(kMaxTriangleOrder, static_cast<std::int64_t>(shared_bytes_limit(device) / one));
}

void khatri_rao_pack_cuda(const TensorView& Z, const TensorView& products, void* stream) {
  check_khatri_rao_pack(Z, products, kKernelDevice);
  check_features(Z, "khatri_rao_pack");
  if (products.numel() == 0) return;
  DeviceGuard guard(Z.device_id);
  dispatch_stored(Z.dtype, "khatri_rao_pack", [&](auto tag) {
    using Stored = typename decltype(tag)::type;
    using T = Computed<Stored>;
    const Samples<Stored> samples(Z);
    const std::size_t row_bytes = samples.features * sizeof(T);
    const int per_block = static_cast<int>(std::clamp<std::size_t>(kPackSharedBytes / row_bytes, 1, kPackSamples));
    constexpr int tile = kPackThreads * kPackRounds;
    const int tiles = (samples.entries + tile - 1) / tile;
    const std::int64_t blocks = (samples.count + per_block - 1) / per_block * tiles;
    for_each_grid(blocks, 1, [&](std::int64_t first, std::int64_t count) {
      launch(khatri_rao_pack<Stored>, count, kPackThreads, per_block * row_bytes, stream, samples, products.ptr<T>(),
             per_block, tiles, first);
    });
  });
}

void khatri_rao_unpack_cuda(const TensorView& d_products, const TensorView& Z, const TensorView& d_Z, void* stream) {
  check_khatri_rao_unpack(d_products, Z, d_Z, kKernelDevice);
  check_features(Z, "khatri_rao_unpack");
  if (d_Z.numel() == 0) return;
  DeviceGuard guard(Z.device_id);
  dispatch_stored(Z.dtype, "khatri_rao_unpack", [&](auto tag) {
    using Stored = typename decltype(tag)::type;
    using T = Computed<Stored>;
    const Samples<Stored> samples(Z);
    const int warps_per_sample = samples.features <= kWarp ? 1 : kWarps;
    const int per_block = kWarps / warps_per_sample;
    for_each_grid(samples.count, per_block, [&](std::int64_t first, std::int64_t count) {
      launch(khatri_rao_unpack<Stored>, (count + per_block - 1) / per_block, kBlockThreads,
             unpack_bytes(samples.features, warps_per_sample, sizeof(T)), stream, d_products.ptr<const T>(), samples,
             d_Z.ptr<T>(), warps_per_sample, first);
    });
  });
}

}  // namespace subspan
