// An index as a file, version 1. Numbers are little-endian; sections start at multiples of 64 bytes, zeros between
// them.
//
//   FileHeader | BlockEntry for each window | TermSummary for each column | the windows as index_window.h describes
//   them
//
// Every section, with the zeros after it, has a CRC-32C (Castagnoli). A file is refused unless its length, all
// checksums and everything that is used to find places in memory are right: offsets, counts, that documents of a list
// rise and are in the window. So a truncated, damaged or made-up file cannot make a search read out of bounds.
#pragma once
#include <string>

#include "ops/search/search_index.h"

namespace subspan {

struct FileHeader {
  char magic[8];          // "SUBSPIDX"
  std::uint32_t version;  // 1
  std::uint32_t order;    // 0x01020304
  std::uint64_t bytes;    // of the file
  std::uint64_t columns;
  std::uint64_t documents;
  std::uint64_t postings;
  std::uint64_t window;
  double bitmap_share;
  std::uint32_t values;
  std::uint32_t windows;
  float largest_scale;
  std::uint32_t blocks_checksum;
  std::uint32_t terms_checksum;
  std::uint32_t header_checksum;  // of this header with 0 in its place
  std::uint64_t zero[5];
};
struct BlockEntry {
  std::uint64_t offset;
  std::uint64_t bytes;
  std::uint32_t checksum;
  std::uint32_t zero;
};
static_assert(sizeof(FileHeader) == 128 && sizeof(BlockEntry) == 24, "the layout of a file");

std::uint32_t crc32c(const char* data, std::size_t bytes);

// All that comes before the windows.
std::string file_start(const IndexContent& index);

// The content of a file in memory, which `memory` keeps. With `later`, a window's checksum and lists are verified when
// a search first comes to it, the rest now. Throws std::invalid_argument, with `op` and what is wrong.
std::shared_ptr<const IndexContent> open_file(std::shared_ptr<const char> memory, std::size_t bytes, bool later,
                                              int threads, const char* op);

}  // namespace subspan
