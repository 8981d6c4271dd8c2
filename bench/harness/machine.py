"""The machine: who else uses it, how fast it multiplies and moves memory, and what the report says about it."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import re
import time
from pathlib import Path

import numpy as np
import torch

import subspan

# --- other processes --------------------------------------------------------------------------------------------


class Interference:
    """Cores used by other processes, and stolen by a hypervisor, while the `with` blocks of this object ran; None where
    the system has no /proc/stat. A nearly idle machine reads about 0.02.
    """

    def __init__(self) -> None:
        self.elapsed, self.used = 0.0, 0.0

    def __enter__(self) -> None:
        self.start = time.perf_counter(), _busy_seconds() - _own_seconds()

    def __exit__(self, *_) -> None:
        started, used = self.start
        self.elapsed += time.perf_counter() - started
        self.used += _busy_seconds() - _own_seconds() - used

    @property
    def cores(self) -> float | None:
        cores = self.used / self.elapsed
        return None if math.isnan(cores) else max(0.0, cores)


def others_now(window: float = 0.5) -> tuple[float | None, list[str]]:
    """Cores used by others over a moment of our own rest, and the busiest processes by name."""
    before = _process_ticks()
    interference = Interference()
    with interference:
        time.sleep(window)
    after = _process_ticks()
    used = {pid: ticks - before.get(pid, (0, ""))[0] for pid, (ticks, _) in after.items() if pid != os.getpid()}
    busiest = sorted((pid for pid in used if used[pid] > 1), key=lambda pid: -used[pid])[:3]
    return interference.cores, [f"{after[pid][1]} ({pid})" for pid in busiest]


def _busy_seconds() -> float:
    """Seconds that the processors we may run on were not idle; stolen time counts as busy. Not a number if unknown."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return math.nan
    ours = {f"cpu{i}" for i in os.sched_getaffinity(0)}
    busy = 0
    for line in lines:
        name, *ticks = line.split()
        if name in ours:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, ticks[:8])
            busy += user + nice + system + irq + softirq + steal
    return busy / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def _process_ticks() -> dict[int, tuple[int, str]]:
    ticks = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, fields = re.match(r"\d+ \((.*)\) (.*)", stat.read_text(), re.DOTALL).groups()
        except (OSError, AttributeError):
            continue  # the process ended meanwhile
        used = fields.split()
        ticks[int(stat.parent.name)] = int(used[11]) + int(used[12]), name
    return ticks


# --- limits -----------------------------------------------------------------------------------------------------


def fma_peak(device: str, threads: int, seconds: float = 0.1) -> float:
    """float32 FLOP/s: on the CPU of independent fused multiply-adds in registers, on a GPU of a large torch.matmul."""
    if device == "cpu":
        return 1e9 * subspan._native.cpu.measure_fma_peak(seconds, threads)
    n = 8192
    a = torch.randn(n, n, device=device)
    return 2 * n**3 / best_cuda_seconds(lambda: a @ a, 5)


def copy_bandwidth(device: str, threads: int, footprint: float) -> float:
    """Bytes read plus written per second when copying half of `footprint` bytes onto the other half, repeatedly.

    The cost of the call itself, measured on one element, is taken off, and footprints below 256 KiB are measured at
    256 KiB, so that the bandwidth of a tiny case is that of the cache and not of a Python call.
    """
    elements = int(max(footprint, 2**18)) // 8
    source, target = torch.ones(elements, device=device), torch.empty(elements, device=device)
    if device == "cuda":
        return 8 * elements / best_cuda_seconds(lambda: target.copy_(source), 20)
    previous = torch.get_num_threads()
    torch.set_num_threads(threads)
    one_source, one_target = source[:1], target[:1]
    call = _best_seconds(lambda: one_target.copy_(one_source))
    whole = _best_seconds(lambda: target.copy_(source))
    torch.set_num_threads(previous)
    return 8 * elements / (whole - call)


def _best_seconds(call, duration: float = 0.03) -> float:
    best, end = np.inf, time.perf_counter() + duration
    while time.perf_counter() < end:
        for _ in range(16):
            start = time.perf_counter()
            call()
            best = min(best, time.perf_counter() - start)
    return best


def best_cuda_seconds(call, repeats: int) -> float:
    call()
    best = np.inf
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        best = min(best, start.elapsed_time(end) / 1e3)
    return best


# --- memory -----------------------------------------------------------------------------------------------------


def peak_extra_bytes(step, device: str) -> float | None:
    """Growth of memory during one call of `step`.

    CPU: the kernel's high-water mark of resident memory, reset before the call, after freed memory was returned to
    the system; it sees every allocator, in steps of a page, but not buffers a library already keeps from earlier
    calls. None where the system has no such counter. CUDA: torch's allocator.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident_bytes("VmRSS")
        step()
        return max(0, _resident_bytes("VmHWM") - before)
    except (OSError, AttributeError):
        return None


def _resident_bytes(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE).group(1))


# --- description ------------------------------------------------------------------------------------------------


def describe(device: str, threads: int) -> dict[str, str]:
    """What a reader must know to judge the numbers."""
    facts = {
        "CPU": _cpu_name(),
        "cores": f"{len(os.sched_getaffinity(0))} usable of {os.cpu_count()}, {threads} threads used",
        "CPU level": subspan._native.cpu_level,
        "BLAS": _blas(),
        "versions": f"subspan {subspan.__version__}, torch {torch.__version__}, numpy {np.__version__}, "
        f"Python {platform.python_version()}",
    }
    if device == "cuda":
        facts["GPU"] = torch.cuda.get_device_name()
        driver = Path("/proc/driver/nvidia/version")
        version = re.search(r"Module\s+([\d.]+)", driver.read_text()) if driver.exists() else None
        facts["driver"] = version.group(1) if version else "unknown"
        facts["CUDA of torch"] = str(torch.version.cuda)
    return facts


def _cpu_name() -> str:
    """With family and model: the name that a hypervisor passes on seldom tells one generation from the next."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    if "model name" not in facts:
        return platform.processor() or platform.machine()
    family, model = facts.get("cpu family", "unknown"), facts.get("model", "unknown")
    details = [_microarchitecture(facts), f"family {family}", f"model {model}"]
    return f"{facts['model name']} ({', '.join(filter(None, details))})"


def _microarchitecture(facts: dict[str, str]) -> str:
    if facts.get("vendor_id") != "AuthenticAMD":
        return ""
    wide = "avx512f" in facts.get("flags", "").split()
    return {"25": "Zen 4" if wide else "Zen 3", "26": "Zen 5"}.get(facts.get("cpu family", ""), "")


def _blas() -> str:
    config = torch.__config__.show()
    kernel = re.search(r"Math Kernel Library Version (\S+)", config)
    name = re.search(r"BLAS_INFO=(\w+)", config)
    blas = f"torch {name.group(1) if name else 'unknown'}" + (f" {kernel.group(1)}" if kernel else "")
    try:
        import threadpoolctl
    except ImportError:
        return blas
    pools = [pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]
    loaded = (f"{pool['internal_api']} {pool['version']} {pool.get('architecture', '')}".strip() for pool in pools)
    return "; ".join([blas, *(f"numpy {name}" for name in loaded)])
