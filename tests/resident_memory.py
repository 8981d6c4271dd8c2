"""Memory that a call takes, seen from outside: pages of the process, whoever asked for them."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

_COUNTERS = Path("/proc/self/clear_refs")
needs_counter = pytest.mark.skipif(
    not os.access(_COUNTERS, os.W_OK), reason="the system's peak of resident memory cannot be reset"
)


def extra_bytes(function: Callable[[], Any]) -> int:
    """Largest resident memory during a call, beyond that before it.

    What earlier work freed goes back to the system first, so that a call cannot live on it; Linux forgets the largest
    memory so far only then, or the peak would be that of the earlier work.
    """
    gc.collect()
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
    _COUNTERS.write_text("5")
    before = _resident("VmRSS")
    function()
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))
