// How a team divides a product of rows with a matrix that is composed or read strip by strip.
#pragma once
#include "core/gemm.h"

namespace subspan {

// Members take rows of their own, and the whole matrix, where each has at least `least` of them: what one member packs
// need not cross to the cache of another. Else all members take all rows, and strips of the matrix.
class RowShares {
 public:
  RowShares(index_t rows, int threads, index_t multiple, index_t least)
      : rows_(rows),
        own_(round_up((rows + threads - 1) / threads, multiple)),
        apart_(threads > 1 && own_ >= least),
        threads_(threads) {}

  bool apart() const { return apart_; }
  index_t rows() const { return apart_ ? own_ : rows_; }  // that one team works on
  int members() const { return apart_ ? 1 : threads_; }   // of that team

  // body(begin, end, team) for the rows of this member.
  template <class Body>
  void each(Team team, Body&& body) const {
    if (!apart_) return body(index_t(0), rows_, team);
    for (index_t begin = team.rank() * own_; begin < rows_; begin += team.size() * own_)
      body(begin, std::min(rows_, begin + own_), Team());
  }

 private:
  index_t rows_, own_;
  bool apart_;
  int threads_;
};

// Whether every member mixes all rows for itself, from `parts` components each, before `inner` rows of a matrix that
// the team divides are multiplied with them: if there is enough to multiply, that takes less time than fetching what
// others have mixed from their caches.
inline bool mixes_alone(index_t parts, index_t members, index_t inner) { return 4 * parts * members <= inner; }

}  // namespace subspan
