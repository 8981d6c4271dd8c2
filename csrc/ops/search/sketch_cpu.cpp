#include <array>
#include <cmath>
#include <cstring>

#include "core/parallel.h"
#include "ops/search/sketch.h"

namespace subspan {
namespace {

// Of the sum of squares of a document's values, what its entries in the sketch have at least.
constexpr double kMass = 0.9;
// Their scores, of 16 bits, fit into the first-level cache of most processors.
constexpr index_t kSketchDocuments = 16384;
constexpr float kSteps = 127;

struct Entry {
  std::uint32_t column;
  std::uint32_t document;  // within the window
  float value;
};

// A window's entries, those of a document together, by column.
void read_entries(const WindowView& window, index_t columns, std::vector<std::uint32_t>& offsets,
                  std::vector<Entry>& entries) {
  const index_t documents = window.documents(), negative = (columns + 63) / 64 * 64;
  const auto for_each = [&](auto&& body) {
    window.for_each_list(0, window.header().directory, [&](index_t key, const PostingList& list) {
      for_each_posting(list, documents,
                       [&](index_t document, std::uint32_t place) { body(key, list, document, place); });
    });
  };
  offsets.assign(static_cast<std::size_t>(documents) + 1, 0);
  for_each([&](index_t, const PostingList&, index_t document, std::uint32_t) { ++offsets[document + 1]; });
  for (index_t i = 0; i < documents; ++i) offsets[i + 1] += offsets[i];
  entries.resize(window.header().postings);
  std::vector<std::uint32_t> next(offsets.begin(), offsets.end() - 1);
  for_each([&](index_t key, const PostingList& list, index_t document, std::uint32_t place) {
    float value = stored_value(window.type(), list.values, place);
    if (window.type() == ValueType::u8)
      value *= key >= negative ? -window.scales()[document] : window.scales()[document];
    const index_t column = key >= negative ? key - negative : key;
    entries[next[document]++] = {static_cast<std::uint32_t>(column), static_cast<std::uint32_t>(document), value};
  });
}

std::uint32_t magnitude_bits(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits & 0x7fffffffu;
}

// The largest entries of a document. Magnitudes are told apart in sixteenths of octaves below the largest, down to
// eight octaves: what is smaller is kept all or not at all.
template <class Body>
void for_largest(const Entry* begin, const Entry* end, Body&& body) {
  constexpr std::size_t steps = 128;
  std::uint32_t most = 0;
  for (const Entry* entry = begin; entry != end; ++entry) most = std::max(most, magnitude_bits(entry->value));
  const auto step_of = [&](float value) {
    return std::min<std::size_t>((most - magnitude_bits(value)) >> 19, steps - 1);
  };
  std::array<double, steps> mass{};
  double total = 0, sum = 0;
  for (const Entry* entry = begin; entry != end; ++entry) {
    const double square = static_cast<double>(entry->value) * entry->value;
    mass[step_of(entry->value)] += square;
    total += square;
  }
  std::size_t last = 0;
  while (last < steps - 1 && (sum += mass[last]) < kMass * total) ++last;
  for (const Entry* entry = begin; entry != end; ++entry) {
    if (step_of(entry->value) <= last) body(*entry);
  }
}

// Of windows begin ... end - 1 of the index.
std::shared_ptr<const SketchWindow> sketch_of(const IndexContent& index, std::size_t begin, std::size_t end) {
  auto sketch = std::make_shared<SketchWindow>();
  const index_t columns = index.settings.columns;
  sketch->first = index.windows[begin].first;
  std::vector<std::uint32_t> offsets;
  std::vector<Entry> entries, kept;
  std::vector<float> largest(static_cast<std::size_t>(columns), 0.0f);
  std::vector<std::uint32_t> next(static_cast<std::size_t>(columns), 0);  // first counts
  for (std::size_t w = begin; w < end; ++w) {
    const WindowView& window = index.windows[w].verified();
    read_entries(window, columns, offsets, entries);
    for (index_t document = 0; document < window.documents(); ++document) {
      for_largest(entries.data() + offsets[document], entries.data() + offsets[document + 1], [&](const Entry& entry) {
        kept.push_back({entry.column, entry.document + static_cast<std::uint32_t>(sketch->documents), entry.value});
        largest[entry.column] = std::max(largest[entry.column], std::fabs(entry.value));
        ++next[entry.column];
      });
    }
    sketch->documents += window.documents();
  }
  sketch->directory.resize(static_cast<std::size_t>((columns + 63) / 64));
  std::uint32_t start = 0;
  for (std::size_t column = 0; column < next.size(); ++column) {
    DirectoryEntry& entry = sketch->directory[column / 64];
    if (column % 64 == 0) entry.before = static_cast<std::uint32_t>(sketch->lists.size());
    const std::uint32_t count = next[column];
    next[column] = start;
    if (count == 0) continue;
    entry.present |= std::uint64_t{1} << (column % 64);
    sketch->lists.push_back({start, largest[column] / kSteps});
    start += count;
  }
  sketch->lists.push_back({start, 0});
  sketch->ids.resize(kept.size());
  sketch->values.resize(kept.size());
  for (const Entry& entry : kept) {
    const std::uint32_t place = next[entry.column]++;
    const float step = largest[entry.column] / kSteps;
    sketch->ids[place] = static_cast<std::uint16_t>(entry.document);
    // A subnormal step can be off by so much that the quotient is larger.
    sketch->values[place] =
        static_cast<std::int8_t>(step > 0 ? std::nearbyint(std::clamp(entry.value / step, -kSteps, kSteps)) : 0);
  }
  return sketch;
}

}  // namespace

Sketch::Sketch(const std::shared_ptr<Sketch>& other, std::size_t kept) : older_(other), kept_(kept) {
  const std::lock_guard<std::mutex> lock(other->mutex_);
  if (other->made_) return;
  older_ = other->older_;  // no chain of those that nobody needed
  kept_ = std::min(kept, other->kept_);
}

const SketchWindows& Sketch::windows(const IndexContent& index, int threads) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (made_) return windows_;
  const auto together = static_cast<std::size_t>(std::max<index_t>(1, kSketchDocuments / index.settings.window));
  SketchWindows windows((index.windows.size() + together - 1) / together);
  std::size_t kept = 0;
  if (older_ != nullptr) {
    const std::lock_guard<std::mutex> also(older_->mutex_);
    kept = kept_ / together;
    std::copy_n(older_->windows_.begin(), kept, windows.begin());
  }
  parallel_for(
      static_cast<index_t>(windows.size() - kept), threads,
      [&](index_t item) {
        const std::size_t number = kept + static_cast<std::size_t>(item);
        windows[number] = sketch_of(index, number * together, std::min(index.windows.size(), (number + 1) * together));
      },
      1);
  windows_ = std::move(windows);
  older_ = nullptr;
  made_ = true;
  return windows_;
}

std::uint64_t Sketch::bytes() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::uint64_t sum = 0;
  for (const auto& window : windows_) {
    sum += window->directory.size() * sizeof(DirectoryEntry) + window->lists.size() * sizeof(SketchList) +
           window->ids.size() * sizeof(std::uint16_t) + window->values.size();
  }
  return sum;
}

}  // namespace subspan
