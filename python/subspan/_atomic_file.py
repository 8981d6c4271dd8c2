"""Files that are the old or the new ones whatever happens while they are written."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from typing import IO

try:
    import fcntl
except ImportError:  # another system: files are replaced as safely, what killed writers leave stays
    fcntl = None  # type: ignore[assignment,unused-ignore]


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file to write, which takes the place of ``path`` once it is complete and on the disk.

    Until then it has the name ``path.<12 hexadecimal digits>.tmp`` and is locked. A writer that is killed leaves it;
    the next one for the same path removes those that nobody has locked.
    """
    target = os.path.abspath(os.fspath(path))
    _remove_left_over(target)
    name, file = _locked(target)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(name, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def _locked(target: str) -> tuple[str, IO[bytes]]:
    while True:
        name = f"{target}.{secrets.token_hex(6)}.tmp"
        file = open(name, "xb")  # noqa: SIM115
        # Another process may have taken it for left over before it was locked, and have removed it.
        if not _lock(file.fileno()) or os.fstat(file.fileno()).st_nlink:
            return name, file
        file.close()


def _lock(descriptor: int) -> bool:
    """Whether the lock was free; no where the file system has none."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove_left_over(target: str) -> None:
    folder, base = os.path.split(target)
    pattern = re.compile(re.escape(base) + r"\.[0-9a-f]{12}\.tmp")
    with contextlib.suppress(OSError):
        for name in filter(pattern.fullmatch, os.listdir(folder)):
            path = os.path.join(folder, name)
            with contextlib.suppress(OSError), open(path, "rb") as file:
                if _lock(file.fileno()):
                    os.unlink(path)
