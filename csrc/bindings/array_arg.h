// Turns a Python array (torch, NumPy, CuPy, anything with DLPack) into a TensorView.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>

#include "bindings/dlpack.h"
#include "core/batch.h"
#include "core/check.h"
#include "core/huge_pages.h"
#include "core/tensor_view.h"

namespace subspan {
namespace py = pybind11;

// Three ways in, fastest first: the C exchange table of the array's type (torch >= 2.10, about 60 ns and no
// allocation), the NumPy C interface, a DLPack capsule. The view borrows; keep the ArrayArg alive while it is used.
class ArrayArg {
 public:
  ArrayArg() = default;
  ArrayArg(py::handle object, const char* op, const char* name) {
    if (const dlpack::ExchangeTable* table = exchange_table(Py_TYPE(object.ptr()))) {
      dlpack::Tensor tensor{};
      if (table->tensor_from_object(object.ptr(), &tensor) != 0) throw py::error_already_set();
      read(tensor, op, name);
    } else if (py::isinstance<py::array>(object)) {
      read(py::reinterpret_borrow<py::array>(object), op, name);
    } else {
      CHECK(py::hasattr(object, "__dlpack__"), op, ": ", name, ": expected an array with __dlpack__");
      const auto device = object.attr("__dlpack_device__")().cast<py::tuple>();
      const bool on_cpu = device[0].cast<int>() == dlpack::kCpu;
      owner_ = on_cpu ? object.attr("__dlpack__")() : object.attr("__dlpack__")(py::arg("stream") = -1);
      auto* managed = static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(owner_.ptr(), "dltensor"));
      if (managed == nullptr) throw py::error_already_set();
      read(managed->tensor, op, name);
    }
  }

  const TensorView& view() const { return view_; }

 private:
  void read(const dlpack::Tensor& tensor, const char* op, const char* name) {
    CHECK(tensor.ndim <= kMaxDims, op, ": ", name, ": expected at most ", kMaxDims, " dimensions, got ", tensor.ndim);
    view_.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
    view_.ndim = tensor.ndim;
    view_.device_id = tensor.device.id;
    view_.device = device_of(tensor.device.type);
    view_.dtype = tensor.dtype.lanes == 1 ? dtype_of(tensor.dtype.code, tensor.dtype.bits) : DType::other;
    std::int64_t packed = 1;
    for (int i = tensor.ndim - 1; i >= 0; --i) {
      view_.shape[i] = tensor.shape[i];
      view_.stride[i] = tensor.strides ? tensor.strides[i] : packed;
      packed *= tensor.shape[i];
    }
    CHECK(tensor.data != nullptr || packed == 0, op, ": ", name,
          ": expected an array with storage, got a meta or fake tensor");
    const auto address = reinterpret_cast<std::uintptr_t>(view_.data);
    const int bytes = std::max(tensor.dtype.bits / 8, 1);
    CHECK(address % static_cast<unsigned>(bytes) == 0, op, ": ", name, ": expected memory aligned to its elements of ",
          bytes, " bytes, got an odd address; clone the tensor");
  }

  void read(const py::array& array, const char* op, const char* name) {
    CHECK(array.ndim() <= kMaxDims, op, ": ", name, ": expected at most ", kMaxDims, " dimensions, got ", array.ndim());
    const py::dtype dtype = array.dtype();
    const char kind = dtype.kind();
    const int bits = static_cast<int>(dtype.itemsize()) * 8;
    if (dtype.byteorder() != '>') {
      view_.dtype = dtype_of(kind == 'f' ? dlpack::kFloat : kind == 'i' ? dlpack::kInt : 255, bits);
    }
    view_.data = const_cast<void*>(array.data());
    view_.ndim = static_cast<std::int32_t>(array.ndim());
    view_.device = Device::cpu;
    for (int i = 0; i < view_.ndim; ++i) {
      view_.shape[i] = array.shape(i);
      const std::int64_t bytes = array.strides(i);
      CHECK(bytes % dtype.itemsize() == 0, op, ": ", name, ": expected strides in whole elements, got ", bytes,
            " bytes");
      view_.stride[i] = bytes / dtype.itemsize();
    }
  }

  static Device device_of(std::int32_t type) {
    if (type == dlpack::kCpu || type == dlpack::kCudaHost) return Device::cpu;
    return type == dlpack::kCuda || type == dlpack::kCudaManaged ? Device::cuda : Device::other;
  }

  static DType dtype_of(int code, int bits) {
    if (code == dlpack::kFloat) {
      return bits == 32 ? DType::f32 : bits == 64 ? DType::f64 : bits == 16 ? DType::f16 : DType::other;
    }
    if (code == dlpack::kBfloat && bits == 16) return DType::bf16;
    if (code == dlpack::kInt) return bits == 64 ? DType::i64 : bits == 32 ? DType::i32 : DType::other;
    return DType::other;
  }

  // Looked up once per type: torch.Tensor and torch.nn.Parameter are nearly every call. Types without a table are
  // remembered too. Slots are only ever filled, under the GIL or, in a free-threaded build, with the same content.
  static const dlpack::ExchangeTable* exchange_table(PyTypeObject* type) {
    struct Slot {
      PyTypeObject* type;
      const dlpack::ExchangeTable* table;
    };
    thread_local Slot slots[4] = {};
    for (const Slot& slot : slots) {
      if (slot.type == type) return slot.table;
    }
    const dlpack::ExchangeTable* table = nullptr;
    const py::handle type_object(reinterpret_cast<PyObject*>(type));
    const py::object capsule = py::getattr(type_object, "__dlpack_c_exchange_api__", py::none());
    if (!capsule.is_none()) {
      table = static_cast<const dlpack::ExchangeTable*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
      if (table == nullptr) PyErr_Clear();
      if (table && (table->version.major != dlpack::kMajorVersion || !table->tensor_from_object)) table = nullptr;
    }
    for (Slot& slot : slots) {
      if (slot.type == nullptr) {
        Py_INCREF(type);  // a cached type must not be freed and its address reused
        slot = {type, table};
        break;
      }
    }
    return table;
  }

  py::object owner_;
  TensorView view_;
};

// An array that the kernel fills, fresh from its framework.
class OutputArg : public ArrayArg {
 public:
  OutputArg() = default;
  OutputArg(py::handle object, const char* op, const char* name) : ArrayArg(object, op, name) {
    const auto bytes = static_cast<std::size_t>(view().numel() * element_size(view().dtype));
    if (view().device == Device::cpu && bytes >= kFreshBytes) wish_for_huge_pages(view().data, bytes);
  }
};

// An argument that may be None.
template <class Arg>
class Optional {
 public:
  Optional(py::handle object, const char* op, const char* name)
      : present_(!object.is_none()), arg_(present_ ? Arg(object, op, name) : Arg()) {}
  const TensorView* view() const { return present_ ? &arg_.view() : nullptr; }

 private:
  bool present_;
  Arg arg_;
};

using OptionalArrayArg = Optional<ArrayArg>;
using OptionalOutputArg = Optional<OutputArg>;

}  // namespace subspan
