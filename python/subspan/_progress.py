"""Progress of what takes long: a function of the caller, or a bar where tqdm is installed."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any


class Progress:
    """``with Progress(...) as report``: report(done) tells how many of ``total`` are done.

    Without tqdm, ``progress=True`` shows nothing.
    """

    def __init__(self, op: str, progress: bool | Callable[[int, int], None], total: int, unit: str) -> None:
        if not isinstance(progress, bool) and not callable(progress):
            raise TypeError(f"{op}: progress: expected True, False or a function, got {type(progress).__name__}")
        self._call = progress if callable(progress) else None
        self._total = total
        self._bar: Any = None
        if progress is True:
            try:
                from tqdm import tqdm
            except ImportError:
                return
            self._bar = tqdm(total=total, unit=f" {unit}", desc=op)

    @property
    def watched(self) -> bool:
        return self._call is not None or self._bar is not None

    def __enter__(self) -> Progress:
        return self

    def __call__(self, done: int) -> None:
        if self._call is not None:
            self._call(done, self._total)
        if self._bar is not None:
            self._bar.update(done - self._bar.n)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
