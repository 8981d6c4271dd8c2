"""What a search gives."""

from __future__ import annotations

from typing import Any


class SearchResult(tuple[Any, Any]):
    """``(scores, ids)`` of a search, with what is known of them.

    Attributes:
        scores: (queries, k) float32, descending.
        ids: (queries, k) int64, documents in the order in which they came.
        certified: (queries,) whether these are certainly the k documents of largest score by the values that were
            given, before they were stored in fewer bits.
    """

    certified: Any

    def __new__(cls, scores: Any, ids: Any, certified: Any) -> SearchResult:
        result = super().__new__(cls, (scores, ids))
        result.certified = certified
        return result

    @property
    def scores(self) -> Any:
        return self[0]

    @property
    def ids(self) -> Any:
        return self[1]
