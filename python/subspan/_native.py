"""Finds and loads the compiled modules: the best CPU level at import, CUDA on first use."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

#: x86-64 levels from best to least, with the features NumPy reports that each needs; "generic" is any other machine.
_LEVELS: dict[str, tuple[str, ...]] = {
    "v4": ("AVX512F", "AVX512CD", "AVX512BW", "AVX512DQ", "AVX512VL"),
    "v3": ("AVX2", "FMA3"),
    "v2": ("SSE42",),
    "generic": (),
}


def _machine_features() -> dict[str, bool]:
    try:
        umath = importlib.import_module("numpy._core._multiarray_umath")
    except ImportError:  # NumPy 1.x
        umath = importlib.import_module("numpy.core._multiarray_umath")
    return dict(umath.__cpu_features__)


def _runs_here(level: str) -> bool:
    features = _machine_features()
    # A feature that NumPy does not list (it drops those below its own baseline) is one that it already relies on.
    return all(features.get(feature, True) for feature in _LEVELS[level])


def available_levels() -> list[str]:
    """Levels that are built into this installation, best first."""
    return [level for level in _LEVELS if importlib.util.find_spec(f"{__package__}._cpu_{level}") is not None]


def _load_cpu() -> tuple[str, ModuleType]:
    built = available_levels()
    forced = os.environ.get("SUBSPAN_CPU_LEVEL")
    if forced is not None:
        if forced not in built:
            raise ImportError(f"subspan: SUBSPAN_CPU_LEVEL={forced}: expected one of the built levels {built}")
        return forced, importlib.import_module(f"._cpu_{forced}", __package__)
    for level in built:
        if _runs_here(level):
            return level, importlib.import_module(f"._cpu_{level}", __package__)
    raise ImportError(f"subspan: this machine runs none of the built CPU levels {built}; build from source on it")


class _Missing:
    """Stands for the CPU module where none loads: subspan still imports, so that `subspan.info` can tell why."""

    def __init__(self, problem: str) -> None:
        self._problem = problem

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def raise_problem(*_: Any) -> None:
            raise ImportError(self._problem)

        return raise_problem


cpu_level: str
cpu: Any
try:
    cpu_level, cpu = _load_cpu()
except ImportError as error:
    cpu_level, cpu = f"none ({error})", _Missing(str(error))


@functools.cache
def _cuda() -> tuple[ModuleType | None, str]:
    try:
        module = importlib.import_module("._cuda", __package__)
    except ImportError as error:
        return None, f"the CUDA module is not built or does not load: {error}"
    count, message = module.device_count()
    return module, "" if count else f"no CUDA device: {message}"


def cuda_module() -> ModuleType | None:
    """The CUDA module, also without a device, or None where it was not built."""
    return _cuda()[0]


def cuda_problem() -> str:
    """Why the CUDA kernels cannot run here; empty where they can."""
    return _cuda()[1]


def cuda() -> ModuleType:
    """The CUDA module, where `cuda_problem` found none."""
    module = cuda_module()
    if module is None:
        raise RuntimeError(f"subspan: {cuda_problem()}")
    return module
