// The part of the DLPack 1.x ABI that reading an array needs (https://dmlc.github.io/dlpack), declared here because it
// is a binary interface, not a library.
#pragma once
#include <cstdint>

namespace subspan::dlpack {

constexpr std::uint32_t kMajorVersion = 1;
enum DeviceType : std::int32_t { kCpu = 1, kCuda = 2, kCudaHost = 3, kCudaManaged = 13 };
enum TypeCode : std::uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4 };

struct DeviceInfo {
  std::int32_t type;
  std::int32_t id;
};
struct TypeInfo {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};
struct Version {
  std::uint32_t major;
  std::uint32_t minor;
};
struct Tensor {
  void* data;
  DeviceInfo device;
  std::int32_t ndim;
  TypeInfo dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements; null means row-major
  std::uint64_t byte_offset;
};
struct ManagedTensor {  // content of a "dltensor" capsule
  Tensor tensor;
  void* context;
  void (*deleter)(ManagedTensor*);
};

// The C exchange table that a framework publishes on its array type as `__dlpack_c_exchange_api__` (DLPack 1.3).
struct ExchangeTable {
  Version version;
  ExchangeTable* previous;
  void* allocate;
  void* managed_from_object;
  void* managed_to_object;
  int (*tensor_from_object)(void* object, Tensor* out);
  int (*current_stream)(std::int32_t device_type, std::int32_t device_id, void** out);
};

}  // namespace subspan::dlpack
