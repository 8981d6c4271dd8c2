#include <array>
#include <cmath>
#include <cstring>

#include "core/parallel.h"
#include "ops/search/index_file.h"
#include "ops/search/sketch.h"
#if defined(__SSE4_2__)
#include <nmmintrin.h>
#endif

namespace subspan {
namespace {

constexpr char kMagic[9] = "SUBSPIDX";
constexpr std::uint32_t kVersion = 1, kOrder = 0x01020304;

std::size_t aligned(std::size_t bytes) { return (bytes + kWindowAlign - 1) / kWindowAlign * kWindowAlign; }

struct FileLayout {
  std::size_t blocks, terms, windows;
  FileLayout(std::uint64_t window_count, std::uint64_t columns) {
    blocks = sizeof(FileHeader);
    terms = aligned(blocks + window_count * sizeof(BlockEntry));
    windows = aligned(terms + columns * sizeof(TermSummary));
  }
};

std::uint32_t header_checksum(FileHeader header) {
  header.header_checksum = 0;
  return crc32c(reinterpret_cast<const char*>(&header), sizeof header);
}

// What a search relies on in the lists of a window whose header is right.
void check_lists(const WindowView& window, index_t columns, const char* op) {
  const WindowHeader& header = window.header();
  const index_t documents = window.documents(), one_sign = (columns + 63) / 64;
  const auto check = [&](bool good, const char* what) {
    CHECK(good, op, ": path: expected an index, got wrong ", what);
  };
  std::uint32_t lists = 0;
  for (index_t entry = 0; entry < header.directory; ++entry) {
    const DirectoryEntry& own = window.directory()[entry];
    check(own.before == lists && own.zero == 0, "directory");
    if (entry % one_sign == one_sign - 1 && columns % 64 != 0) check(own.present >> (columns % 64) == 0, "directory");
    lists += static_cast<std::uint32_t>(__builtin_popcountll(own.present));
  }
  check(lists == header.lists, "number of lists");
  ListStart at{0, 0};
  for (std::uint32_t number = 0; number < header.lists; ++number) {
    const ListStart start = window.starts()[number], next = window.starts()[number + 1];
    check(start.values == at.values && start.ids == at.ids && start.values < next.values, "start of a list");
    const std::uint32_t count = next.values - start.values;
    const bool bitmap = count >= header.bitmap_from;
    check(count <= documents && next.values <= header.postings && next.ids <= header.ids &&
              next.ids == start.ids + static_cast<std::uint64_t>(bitmap ? bitmap_ids(documents) : count),
          "length of a list");
    at = next;
    const PostingList list = window.list(number);
    if (!bitmap) {
      check(list.ids[count - 1] < documents, "document");
      for (std::uint32_t i = 1; i < count; ++i) check(list.ids[i - 1] < list.ids[i], "order of documents");
      continue;
    }
    std::uint32_t before = 0;
    for (index_t word = 0; word < bitmap_words(documents); ++word) {
      std::uint64_t bits;
      std::memcpy(&bits, list.ids + 4 * word, sizeof bits);
      check(list.ids[4 * bitmap_words(documents) + word] == static_cast<std::uint16_t>(before), "rank");
      if (word == documents / 64) check(bits >> (documents % 64) == 0, "document");
      before += static_cast<std::uint32_t>(__builtin_popcountll(bits));
    }
    check(before == count, "bitmap");
  }
  check(at.values == header.postings && at.ids == header.ids, "end of lists");
  const char* values = window.list(0).values;
  bool finite = true;
  if (window.type() != ValueType::u8) {
    for (std::size_t i = 0; i < header.postings; ++i) finite &= std::isfinite(stored_value(window.type(), values, i));
  } else {
    for (index_t i = 0; i < documents; ++i) finite &= std::isfinite(window.scales()[i]) && window.scales()[i] >= 0;
  }
  check(finite, "values");
}

// That the arrays of a window are where they can be, before any of it but the header is looked at.
void check_header(const WindowHeader& header, const BlockEntry& block, const FileHeader& file, index_t documents,
                  const char* op) {
  constexpr std::uint64_t most = 0xffffffffu;
  const std::uint64_t one_sign = (file.columns + 63) / 64;
  bool good = header.documents == static_cast<std::uint64_t>(documents) && header.value_type == file.values &&
              header.bytes == block.bytes && header.postings < most && header.ids < most && header.bitmap_from >= 1;
  good = good && (header.directory == one_sign ||
                  (header.directory == 2 * one_sign && header.value_type == static_cast<std::uint32_t>(ValueType::u8)));
  good = good && header.lists <= std::uint64_t{header.directory} * 64;
  for (const std::uint32_t zero : header.zero) good = good && zero == 0;
  CHECK(good && WindowLayout(header).bytes == block.bytes, op, ": path: expected an index, got a wrong window header");
}

const FileHeader& checked_file_header(const char* data, std::size_t bytes, const char* op) {
  CHECK(bytes >= sizeof(FileHeader) && std::memcmp(data, kMagic, 8) == 0, op,
        ": path: expected a file of a SparseIndex, got another");
  const auto& header = *reinterpret_cast<const FileHeader*>(data);
  CHECK(header.order == kOrder, op, ": path: expected a little-endian machine");
  CHECK(header.version == kVersion, op, ": path: expected version ", kVersion, " of the format, got ", header.version);
  CHECK(header.header_checksum == header_checksum(header), op, ": path: expected a sound file, got a damaged header");
  CHECK(header.bytes == bytes, op, ": path: expected ", header.bytes, " bytes, got ", bytes, ": truncated?");
  const std::uint64_t window = header.window;
  bool good = header.columns >= 1 && header.columns <= kMostIndexColumns && header.values <= 2 && window >= 64 &&
              window <= kMostWindowDocuments && window % 64 == 0 && header.bitmap_share > 0 &&
              header.documents < (std::uint64_t{1} << 32) &&
              header.windows == (header.documents + window - 1) / window && std::isfinite(header.largest_scale) &&
              header.largest_scale >= 0;
  for (const std::uint64_t zero : header.zero) good = good && zero == 0;
  CHECK(good && FileLayout(header.windows, header.columns).windows <= bytes, op,
        ": path: expected an index, got a wrong header");
  return header;
}

}  // namespace

std::uint32_t crc32c(const char* data, std::size_t bytes) {
  std::uint64_t crc = 0xffffffffu;
#if defined(__SSE4_2__)
  for (; bytes >= 8; bytes -= 8, data += 8) {
    std::uint64_t word;
    std::memcpy(&word, data, sizeof word);
    crc = _mm_crc32_u64(crc, word);
  }
  for (; bytes > 0; --bytes, ++data)
    crc = _mm_crc32_u8(static_cast<std::uint32_t>(crc), static_cast<unsigned char>(*data));
#else
  static const std::array<std::uint32_t, 256> table = [] {
    std::array<std::uint32_t, 256> made{};
    for (std::uint32_t byte = 0; byte < 256; ++byte) {
      std::uint32_t value = byte;
      for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ ((value & 1) != 0 ? 0x82f63b78u : 0u);
      made[byte] = value;
    }
    return made;
  }();
  for (; bytes > 0; --bytes, ++data) crc = table[(crc ^ static_cast<unsigned char>(*data)) & 0xff] ^ (crc >> 8);
#endif
  return static_cast<std::uint32_t>(crc) ^ 0xffffffffu;
}

std::string file_start(const IndexContent& index) {
  const auto columns = static_cast<std::uint64_t>(index.settings.columns);
  const FileLayout layout(index.windows.size(), columns);
  std::string start(layout.windows, '\0');
  auto* blocks = reinterpret_cast<BlockEntry*>(start.data() + layout.blocks);
  FileHeader header{};
  header.bytes = layout.windows;
  for (std::size_t w = 0; w < index.windows.size(); ++w) {
    const WindowView& view = index.windows[w].verified();
    const std::uint64_t bytes = view.header().bytes;
    blocks[w] = {header.bytes, bytes, crc32c(view.data(), bytes), 0};
    header.bytes += bytes;
  }
  std::memcpy(start.data() + layout.terms, index.terms->data(), columns * sizeof(TermSummary));
  std::memcpy(header.magic, kMagic, 8);
  header.version = kVersion;
  header.order = kOrder;
  header.columns = columns;
  header.documents = static_cast<std::uint64_t>(index.documents);
  header.postings = index.postings;
  header.window = static_cast<std::uint64_t>(index.settings.window);
  header.bitmap_share = index.settings.bitmap_share;
  header.values = static_cast<std::uint32_t>(index.settings.values);
  header.windows = static_cast<std::uint32_t>(index.windows.size());
  header.largest_scale = index.largest_scale;
  header.blocks_checksum = crc32c(start.data() + layout.blocks, layout.terms - layout.blocks);
  header.terms_checksum = crc32c(start.data() + layout.terms, layout.windows - layout.terms);
  header.header_checksum = header_checksum(header);
  std::memcpy(start.data(), &header, sizeof header);
  return start;
}

void WindowCheck::run(const WindowView& window) {
  if (done_.load(std::memory_order_acquire)) return;
  CHECK(crc32c(window.data(), window.header().bytes) == checksum_, op_,
        ": path: expected a sound file, got a damaged window");
  check_lists(window, columns_, op_.c_str());
  done_.store(true, std::memory_order_release);
}

std::shared_ptr<const IndexContent> open_file(std::shared_ptr<const char> memory, std::size_t bytes, bool later,
                                              int threads, const char* op) {
  const char* data = memory.get();
  const FileHeader& header = checked_file_header(data, bytes, op);
  const FileLayout layout(header.windows, header.columns);
  const auto* blocks = reinterpret_cast<const BlockEntry*>(data + layout.blocks);
  const auto* terms = reinterpret_cast<const TermSummary*>(data + layout.terms);
  CHECK(header.blocks_checksum == crc32c(data + layout.blocks, layout.terms - layout.blocks) &&
            header.terms_checksum == crc32c(data + layout.terms, layout.windows - layout.terms),
        op, ": path: expected a sound file, got a damaged table");
  auto index = std::make_shared<IndexContent>();
  index->sketch = std::make_shared<Sketch>();
  index->settings = {static_cast<index_t>(header.columns), static_cast<ValueType>(header.values),
                     static_cast<index_t>(header.window), header.bitmap_share};
  index->documents = static_cast<index_t>(header.documents);
  index->postings = header.postings;
  index->largest_scale = header.largest_scale;
  index->terms = std::make_shared<const std::vector<TermSummary>>(terms, terms + header.columns);
  for (const TermSummary& term : *index->terms) {
    CHECK(term.count <= header.documents && term.low <= 0 && term.high >= 0 && std::isfinite(term.low) &&
              std::isfinite(term.high),
          op, ": path: expected an index, got a wrong table of columns");
  }
  std::uint64_t end = layout.windows, postings = 0;
  for (std::uint32_t w = 0; w < header.windows; ++w) {
    const BlockEntry& block = blocks[w];
    CHECK(block.offset == end && block.bytes >= sizeof(WindowHeader) && block.bytes <= bytes - end && block.zero == 0,
          op, ": path: expected an index, got a wrong table of windows");
    const index_t first = w * index->settings.window;
    check_header(*reinterpret_cast<const WindowHeader*>(data + end), block, header,
                 std::min(index->settings.window, index->documents - first), op);
    auto check = std::make_shared<WindowCheck>(index->settings.columns, block.checksum, op);
    index->windows.push_back({memory, WindowView(data + end), first, std::move(check)});
    end += block.bytes;
    postings += index->windows.back().view.header().postings;
  }
  CHECK(end == bytes && postings == header.postings, op, ": path: expected an index, got wrong totals");
  index->bytes = bytes - layout.windows;
  if (!later) {
    parallel_for(static_cast<index_t>(header.windows), threads,
                 [&](index_t w) { index->windows[static_cast<std::size_t>(w)].verified(); });
  }
  return index;
}

}  // namespace subspan
