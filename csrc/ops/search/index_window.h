// A window of an index: the postings of up to 65536 consecutive documents, by term, in one block of memory that is also
// what a file holds.
//
//   WindowHeader | directory | lists | ids | values | scales, each array aligned to 64 bytes, the rest zero
//
//   directory  For every 64 columns, which of them occur, and how many occur before: a column finds its list with one
//              load and a count of bits. Where a u8 window has negative values, a second directory follows, and a
//              column has two lists, of its positive and of its negative values.
//   lists      For each list, where its ids and its values start; one more entry ends the last.
//   ids        Of a list shorter than `bitmap_from`, its documents within the window, 16 bits each, rising. Of a longer
//              one a bitmap of the documents, in words of 64 bits, then for every word how many bits the words before
//              it have, 16 bits each: adding it to all scores with vectors then costs less than going from id to id,
//              and it takes less memory.
//   values     One for each posting, as float32, float16, or 8 bits of magnitude.
//   scales     Of a u8 window: the magnitude that 255 steps of a document's values make, / 255. Each document has its
//              own: what is stored of a document does not depend on those around it, so that adding documents gives
//              what building at once gives.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "core/check.h"
#include "core/half.h"
#include "core/tensor_view.h"

namespace subspan {

enum class ValueType : std::uint32_t { f32 = 0, f16 = 1, u8 = 2 };

constexpr index_t kMostWindowDocuments = 65536;
constexpr index_t kMostIndexColumns = index_t{1} << 24;  // a window's directory takes a quarter of a byte for each
constexpr std::size_t kWindowAlign = 64;

inline std::size_t value_bytes(ValueType type) { return type == ValueType::f32 ? 4 : type == ValueType::f16 ? 2 : 1; }

struct DirectoryEntry {
  std::uint64_t present;
  std::uint32_t before;
  std::uint32_t zero;
};

struct ListStart {
  std::uint32_t values;
  std::uint32_t ids;
};

struct WindowHeader {
  std::uint64_t bytes;  // of the whole block
  std::uint64_t postings;
  std::uint64_t ids;  // entries of 16 bits
  std::uint32_t documents;
  std::uint32_t lists;
  std::uint32_t directory;  // entries, of both signs
  std::uint32_t bitmap_from;
  std::uint32_t value_type;
  std::uint32_t zero[5];
};
static_assert(sizeof(WindowHeader) == 64 && sizeof(DirectoryEntry) == 16 && sizeof(ListStart) == 8,
              "the layout of a file");

// Where the arrays of a window start, from the numbers in its header.
struct WindowLayout {
  std::size_t directory, lists, ids, values, scales, bytes;

  explicit WindowLayout(const WindowHeader& header) {
    const auto type = static_cast<ValueType>(header.value_type);
    std::size_t end = sizeof(WindowHeader);
    const auto place = [&](std::size_t bytes) {
      const std::size_t start = end;
      end += (bytes + kWindowAlign - 1) / kWindowAlign * kWindowAlign;
      return start;
    };
    directory = place(header.directory * sizeof(DirectoryEntry));
    lists = place((header.lists + std::size_t{1}) * sizeof(ListStart));
    ids = place(header.ids * 2);
    values = place(header.postings * value_bytes(type) + kWindowAlign);  // vectors read past the last value
    scales = place(type == ValueType::u8 ? header.documents * sizeof(float) : 0);
    bytes = end;
  }
};

inline index_t bitmap_words(index_t documents) { return (documents + 63) / 64; }
// In entries of 16 bits: the words, then a rank for each.
inline index_t bitmap_ids(index_t documents) { return bitmap_words(documents) * 5; }

// The postings of one term, or of one sign of it, in a window.
struct PostingList {
  const std::uint16_t* ids = nullptr;
  const char* values = nullptr;
  std::uint32_t count = 0;
  bool bitmap = false;
};

class WindowView {
 public:
  WindowView() = default;
  explicit WindowView(const char* data) : data_(data) {
    const WindowLayout layout(header());
    directory_ = reinterpret_cast<const DirectoryEntry*>(data + layout.directory);
    lists_ = reinterpret_cast<const ListStart*>(data + layout.lists);
    ids_ = reinterpret_cast<const std::uint16_t*>(data + layout.ids);
    values_ = data + layout.values;
    scales_ = reinterpret_cast<const float*>(data + layout.scales);
    value_bytes_ = value_bytes(type());
  }

  const char* data() const { return data_; }
  const WindowHeader& header() const { return *reinterpret_cast<const WindowHeader*>(data_); }
  ValueType type() const { return static_cast<ValueType>(header().value_type); }
  index_t documents() const { return header().documents; }
  const float* scales() const { return scales_; }
  const DirectoryEntry* directory() const { return directory_; }
  const ListStart* starts() const { return lists_; }
  bool has_negative_lists(index_t columns) const {
    return header().directory > static_cast<index_t>((columns + 63) / 64);
  }

  // `column` counts on through the directory of negative values: key_of(column, columns, negative).
  PostingList find(index_t key) const {
    const DirectoryEntry& entry = directory_[key / 64];
    const std::uint64_t bit = std::uint64_t{1} << (key % 64);
    if ((entry.present & bit) == 0) return {};
    return list(entry.before + static_cast<std::uint32_t>(__builtin_popcountll(entry.present & (bit - 1))));
  }
  // Brings to the cache what `find` reads.
  void prefetch(index_t key) const {
    const DirectoryEntry& entry = directory_[key / 64];
    const std::uint64_t below = (std::uint64_t{1} << (key % 64)) - 1;
    __builtin_prefetch(lists_ + entry.before + __builtin_popcountll(entry.present & below));
  }
  PostingList list(std::uint32_t number) const {
    const ListStart start = lists_[number];
    const std::uint32_t count = lists_[number + 1].values - start.values;
    return {ids_ + start.ids, values_ + start.values * value_bytes_, count, count >= header().bitmap_from};
  }
  // body(key, list) for all lists whose keys are in 64 first ... 64 end - 1, rising.
  template <class Body>
  void for_each_list(index_t first, index_t end, Body&& body) const {
    for (index_t entry = first; entry < end; ++entry) {
      std::uint32_t number = directory_[entry].before;
      for (std::uint64_t left = directory_[entry].present; left != 0; left &= left - 1) {
        body(entry * 64 + __builtin_ctzll(left), list(number++));
      }
    }
  }

 private:
  const char* data_ = nullptr;
  const DirectoryEntry* directory_ = nullptr;
  const ListStart* lists_ = nullptr;
  const std::uint16_t* ids_ = nullptr;
  const char* values_ = nullptr;
  const float* scales_ = nullptr;
  std::size_t value_bytes_ = 0;
};

// Where negative values of a u8 window are listed: after all columns, from a multiple of 64.
inline index_t key_of(index_t column, index_t columns, bool negative) {
  return negative ? (columns + 63) / 64 * 64 + column : column;
}

// body(document within the window, place of its value) for every posting of a list, documents rising.
template <class Body>
inline void for_each_posting(const PostingList& list, index_t documents, Body&& body) {
  if (!list.bitmap) {
    for (std::uint32_t i = 0; i < list.count; ++i) body(index_t{list.ids[i]}, i);
    return;
  }
  std::uint32_t place = 0;
  for (index_t word = 0; word < bitmap_words(documents); ++word) {
    std::uint64_t bits;
    std::memcpy(&bits, list.ids + 4 * word, sizeof bits);
    for (; bits != 0; bits &= bits - 1) body(word * 64 + __builtin_ctzll(bits), place++);
  }
}

// The place of a document's value in a list, or -1.
inline index_t place_of(const PostingList& list, index_t documents, index_t document) {
  if (list.bitmap) {
    const index_t word = document / 64;
    std::uint64_t bits;
    std::memcpy(&bits, list.ids + 4 * word, sizeof bits);
    const std::uint64_t bit = std::uint64_t{1} << (document % 64);
    if ((bits & bit) == 0) return -1;
    return list.ids[4 * bitmap_words(documents) + word] + __builtin_popcountll(bits & (bit - 1));
  }
  const std::uint16_t* end = list.ids + list.count;
  const std::uint16_t* found = std::lower_bound(list.ids, end, document);
  return found != end && *found == document ? found - list.ids : -1;
}

// Value number i of a list, without the scale of its document and the sign of its list.
inline float stored_value(ValueType type, const char* values, std::size_t i) {
  if (type == ValueType::u8) return static_cast<float>(reinterpret_cast<const std::uint8_t*>(values)[i]);
  if (type == ValueType::f16) return static_cast<float>(reinterpret_cast<const Float16*>(values)[i]);
  return reinterpret_cast<const float*>(values)[i];
}

}  // namespace subspan
