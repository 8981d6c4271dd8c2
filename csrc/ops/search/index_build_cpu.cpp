// Turns rows into windows: entries of a row with the same column are added up, every document is stored in the type of
// the index, and a counting sort by column makes the lists.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>

#include "core/huge_pages.h"
#include "core/parallel.h"
#include "ops/search/read_rows.h"
#include "ops/search/sketch.h"

namespace subspan {
namespace {

struct Staged {
  std::uint32_t key;
  std::uint32_t code;  // the value as it will be stored
  std::uint16_t document;
};

std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

std::shared_ptr<char> window_memory(std::size_t bytes) {
  void* memory = std::aligned_alloc(kWindowAlign, bytes);
  if (memory == nullptr) throw std::bad_alloc();
  if (bytes >= kFreshBytes) wish_for_huge_pages(memory, bytes);
  std::memset(memory, 0, bytes);  // what lies between the arrays goes to files as well
  return std::shared_ptr<char>(static_cast<char*>(memory), [](char* data) { std::free(data); });
}

class WindowBuilder {
 public:
  WindowBuilder(const IndexSettings& settings, const char* op, const char* name)
      : settings_(settings), op_(op), name_(name), row_(settings.columns) {
    const index_t keys = key_of(0, settings.columns, true);
    counts_.resize(static_cast<std::size_t>(settings.values == ValueType::u8 ? 2 * keys : keys));
  }

  // The documents of a window that is there already, as they are stored.
  void take(const WindowView& window) {
    documents_ = window.documents();
    staged_.reserve(window.header().postings);
    scales_.assign(window.scales(), window.scales() + (settings_.values == ValueType::u8 ? documents_ : 0));
    const std::size_t width = value_bytes(settings_.values);
    window.for_each_list(0, window.header().directory, [&](index_t key, const PostingList& list) {
      for_each_posting(list, documents_, [&](index_t document, std::uint32_t place) {
        std::uint32_t code = 0;
        std::memcpy(&code, list.values + place * width, width);
        stage(key, document, code);
      });
    });
  }

  void append(const SparseRowsView& rows, index_t row) {
    row_.read(rows, row);
    const auto document = documents_++;
    if (settings_.values == ValueType::u8) {
      float largest = 0;
      for (const RowEntry& entry : row_.entries()) largest = std::max(largest, std::fabs(entry.value));
      const float scale = largest / 255;
      scales_.push_back(scale);
      for (const RowEntry& entry : row_.entries()) {
        // A subnormal scale can be off by so much that the quotient exceeds 255.
        const float steps = scale > 0 ? std::min(std::nearbyint(std::fabs(entry.value) / scale), 255.0f) : 0;
        stage(key_of(entry.column, settings_.columns, entry.value < 0), document, static_cast<std::uint32_t>(steps));
      }
    } else if (settings_.values == ValueType::f16) {
      for (const RowEntry& entry : row_.entries()) {
        Float16 half;
        round_to(half, entry.value);
        CHECK((half.bits & 0x7c00u) != 0x7c00u, op_, ": ", name_,
              ": expected magnitudes below 65520 for values=\"f16\", got ", entry.value, " in row ", rows.first + row);
        stage(entry.column, document, half.bits);
      }
    } else {
      for (const RowEntry& entry : row_.entries()) stage(entry.column, document, bits_of(entry.value));
    }
  }

  Window finish(index_t first) {
    WindowHeader header{};
    header.documents = static_cast<std::uint32_t>(documents_);
    header.value_type = static_cast<std::uint32_t>(settings_.values);
    header.postings = staged_.size();
    const double share = std::ceil(settings_.bitmap_share * static_cast<double>(documents_));
    header.bitmap_from = static_cast<std::uint32_t>(std::clamp(share, 1.0, 65537.0));
    const index_t one_sign = (settings_.columns + 63) / 64;
    const bool negative =
        std::any_of(counts_.begin() + one_sign * 64, counts_.end(), [](std::uint32_t n) { return n != 0; });
    header.directory = static_cast<std::uint32_t>(negative ? 2 * one_sign : one_sign);
    // Starts are 32 bits wide.
    constexpr std::uint64_t most = std::numeric_limits<std::uint32_t>::max();
    for (index_t key = 0; key < header.directory * index_t{64}; ++key) {
      const std::uint32_t count = counts_[key];
      header.lists += count != 0;
      header.ids += count >= header.bitmap_from ? bitmap_ids(documents_) : count;
    }
    CHECK(header.postings < most && header.ids < most, op_, ": ", name_,
          ": expected fewer than 2**32 entries in a window of documents, got ", header.postings,
          "; build with a smaller window");
    const WindowLayout layout(header);
    header.bytes = layout.bytes;

    std::shared_ptr<char> memory = window_memory(layout.bytes);
    std::memcpy(memory.get(), &header, sizeof header);
    fill_directory(memory.get(), header, layout);
    fill_lists(memory.get(), header, layout);
    if (!scales_.empty()) std::memcpy(memory.get() + layout.scales, scales_.data(), scales_.size() * sizeof(float));
    return {memory, WindowView(memory.get()), first};
  }

 private:
  void stage(index_t key, index_t document, std::uint32_t code) {
    staged_.push_back({static_cast<std::uint32_t>(key), code, static_cast<std::uint16_t>(document)});
    ++counts_[key];
  }

  void fill_directory(char* memory, const WindowHeader& header, const WindowLayout& layout) {
    auto* directory = reinterpret_cast<DirectoryEntry*>(memory + layout.directory);
    auto* lists = reinterpret_cast<ListStart*>(memory + layout.lists);
    std::uint32_t number = 0;
    ListStart next{0, 0};
    for (index_t key = 0; key < header.directory * index_t{64}; ++key) {
      if (key % 64 == 0) directory[key / 64].before = number;
      const std::uint32_t count = counts_[key];
      if (count == 0) continue;
      directory[key / 64].present |= std::uint64_t{1} << (key % 64);
      lists[number++] = next;
      next.values += count;
      next.ids += count >= header.bitmap_from ? static_cast<std::uint32_t>(bitmap_ids(documents_)) : count;
    }
    lists[number] = next;
  }

  void fill_lists(char* memory, const WindowHeader& header, const WindowLayout& layout) {
    struct Cursor {
      ListStart next;
      bool bitmap;
    };
    const WindowView view(memory);
    const std::size_t width = value_bytes(settings_.values);
    auto* ids = reinterpret_cast<std::uint16_t*>(memory + layout.ids);
    char* values = memory + layout.values;
    std::vector<Cursor> cursors(counts_.size());
    view.for_each_list(0, header.directory, [&](index_t key, const PostingList& list) {
      const auto start = static_cast<std::uint32_t>((list.values - values) / static_cast<std::ptrdiff_t>(width));
      cursors[key] = {{start, static_cast<std::uint32_t>(list.ids - ids)}, list.bitmap};
    });
    // Documents rise within each list: those of a taken window come first, list by list, and later ones in their order.
    for (const Staged& entry : staged_) {
      Cursor& cursor = cursors[entry.key];
      std::memcpy(values + std::size_t{cursor.next.values++} * width, &entry.code, width);  // little-endian
      if (cursor.bitmap) {
        ids[cursor.next.ids + entry.document / 16] |= static_cast<std::uint16_t>(1u << (entry.document % 16));
      } else {
        ids[cursor.next.ids++] = entry.document;
      }
    }
    view.for_each_list(0, header.directory, [&](index_t, const PostingList& list) {
      if (!list.bitmap) return;
      std::uint16_t* ranks = ids + (list.ids - ids) + 4 * bitmap_words(documents_);
      std::uint32_t before = 0;
      for (index_t word = 0; word < bitmap_words(documents_); ++word) {
        std::uint64_t bits;
        std::memcpy(&bits, list.ids + 4 * word, sizeof bits);
        ranks[word] = static_cast<std::uint16_t>(before);
        before += static_cast<std::uint32_t>(__builtin_popcountll(bits));
      }
    });
  }

  const IndexSettings& settings_;
  const char* op_;
  const char* name_;
  RowReader row_;
  index_t documents_ = 0;
  std::vector<Staged> staged_;
  std::vector<std::uint32_t> counts_;  // by key
  std::vector<float> scales_;
};

// Counts and bounds of columns with the windows from `first` on; `replaced` had been counted already.
std::shared_ptr<const std::vector<TermSummary>> summarised(const IndexContent& index, std::size_t first,
                                                           const std::vector<TermSummary>& before,
                                                           const Window* replaced, int threads) {
  auto terms = std::make_shared<std::vector<TermSummary>>(before);
  const index_t columns = index.settings.columns;
  const index_t entries = (columns + 63) / 64;
  const ValueType type = index.settings.values;
  const index_t part = std::max<index_t>(1, entries / (8 * std::max(threads, 1)));
  parallel_for((entries + part - 1) / part, threads, [&](index_t item) {
    const index_t begin = item * part, end = std::min(entries, begin + part);
    if (replaced != nullptr) {
      for (index_t sign = 0; sign * entries < replaced->view.header().directory; ++sign) {
        replaced->view.for_each_list(
            sign * entries + begin, sign * entries + end,
            [&](index_t key, const PostingList& list) { (*terms)[key - sign * entries * 64].count -= list.count; });
      }
    }
    for (std::size_t w = first; w < index.windows.size(); ++w) {
      const WindowView& view = index.windows[w].view;
      for (index_t sign = 0; sign * entries < view.header().directory; ++sign) {
        view.for_each_list(sign * entries + begin, sign * entries + end, [&](index_t key, const PostingList& list) {
          TermSummary& term = (*terms)[key - sign * entries * 64];
          term.count += list.count;
          float low = term.low, high = term.high;
          for_each_posting(list, view.documents(), [&](index_t document, std::uint32_t place) {
            float value = stored_value(type, list.values, place);
            if (type == ValueType::u8) value *= sign != 0 ? -view.scales()[document] : view.scales()[document];
            low = std::min(low, value);
            high = std::max(high, value);
          });
          term.low = low;
          term.high = high;
        });
      }
    }
  });
  return terms;
}

}  // namespace

SearchIndex::SearchIndex(const IndexSettings& settings) {
  auto empty = std::make_shared<IndexContent>();
  empty->settings = settings;
  empty->sketch = std::make_shared<Sketch>();
  empty->terms = std::make_shared<const std::vector<TermSummary>>(settings.columns);
  content_ = std::move(empty);
}

std::shared_ptr<const IndexContent> with_documents(const IndexContent& before, const SparseRowsView& rows,
                                                   int threads) {
  const IndexSettings& settings = before.settings;
  auto after = std::make_shared<IndexContent>(before);
  if (rows.rows == 0) return after;                         // with the sketch
  const index_t open = before.documents % settings.window;  // documents of a last window that has room for more
  const Window* replaced = open != 0 ? &before.windows.back() : nullptr;
  const std::size_t kept = before.windows.size() - (replaced != nullptr);
  const index_t first = before.documents - open;
  after->documents = before.documents + rows.rows;
  const index_t made = (after->documents - first + settings.window - 1) / settings.window;
  after->windows.resize(kept + static_cast<std::size_t>(made));
  parallel_for(
      made, threads,
      [&](index_t item) {
        WindowBuilder builder(settings, rows.op, rows.name);
        const index_t begin = first + item * settings.window;
        const index_t end = std::min(after->documents, begin + settings.window);
        if (item == 0 && replaced != nullptr) builder.take(replaced->verified());
        for (index_t document = std::max(begin, before.documents); document < end; ++document) {
          builder.append(rows, document - before.documents);
        }
        after->windows[kept + static_cast<std::size_t>(item)] = builder.finish(begin);
      },
      1);
  after->sketch = std::make_shared<Sketch>(before.sketch, kept);
  after->terms = summarised(*after, kept, *before.terms, replaced, threads);
  if (replaced != nullptr) {
    after->postings -= replaced->view.header().postings;
    after->bytes -= replaced->view.header().bytes;
  }
  for (std::size_t w = kept; w < after->windows.size(); ++w) {
    const WindowView& view = after->windows[w].view;
    after->postings += view.header().postings;
    after->bytes += view.header().bytes;
    if (settings.values == ValueType::u8) {
      const float* scales = view.scales();
      after->largest_scale = std::max(after->largest_scale, *std::max_element(scales, scales + view.documents()));
    }
  }
  return after;
}

}  // namespace subspan
