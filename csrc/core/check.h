// CHECK(condition, message parts...) throws std::invalid_argument, which Python sees as ValueError.
#pragma once
#include <sstream>
#include <stdexcept>

namespace subspan::detail {
template <class... Parts>
[[noreturn]] inline void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}
}  // namespace subspan::detail

#define CHECK(condition, ...)                               \
  do {                                                      \
    if (!(condition)) ::subspan::detail::fail(__VA_ARGS__); \
  } while (0)
