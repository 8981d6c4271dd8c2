"""`python -m subspan.info [--json]`: what is installed, what is loaded, and which path each op takes, with the reason.

Standard library only. Every probe is guarded on its own, so that a broken installation is described, not raised:
this is the page to attach to a bug report. The file also runs by its path, for a package that cannot be imported.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

SWITCHES = {
    "SUBSPAN_CPU_LEVEL": "forces the CPU module: v2, v3 or v4",
    "SUBSPAN_DISABLE": "1 sends every op to its composite",
    "SUBSPAN_CUDA_KERNELS": "1 prefers the CUDA kernels to the composites",
}
THREAD_SETTINGS = ("OMP_NUM_THREADS", "OMP_PROC_BIND", "CUDA_VISIBLE_DEVICES")
FRAMEWORKS = {
    "numpy": ("numpy",),
    "torch": ("torch",),
    "cupy": ("cupy", "cupy-cuda13x", "cupy-cuda12x", "cupy-cuda11x"),
}
OPENMP_NAMES = ("libgomp", "libomp", "libiomp")


def guarded(probe: Callable[[], Any]) -> Any:
    """The probe's answer, or a sentence saying why there is none."""
    try:
        return probe()
    except (Exception, SystemExit) as error:
        return f"unknown ({type(error).__name__}: {error})"


def collect() -> dict[str, Any]:
    """Everything the report says, as a dictionary that `json` can write."""
    return {  # subspan first: importing it decides what is loaded
        "subspan": guarded(subspan_section),
        "cpu": guarded(cpu_section),
        "openmp": guarded(openmp_section),
        "cuda": guarded(cuda_section),
        "versions": guarded(versions_section),
        "environment": guarded(environment_section),
        "ops": guarded(op_paths),
    }


def subspan_section() -> dict[str, Any]:
    return {
        "version": guarded(lambda: importlib.import_module("subspan").__version__),
        "installed version": guarded(lambda: importlib.metadata.version("subspan")),
        "location": str(Path(__file__).resolve().parent),
        "modules loaded": guarded(compiled_modules),
    }


def cpu_section() -> dict[str, Any]:
    return {
        "model": guarded(cpu_model),
        "cores usable": guarded(lambda: len(os.sched_getaffinity(0))),
        "level chosen": guarded(lambda: native().cpu_level),
        "levels available": guarded(lambda: list(native().available_levels())),
    }


def openmp_section() -> dict[str, Any]:
    libraries = guarded(loaded_openmp)
    section: dict[str, Any] = {"libraries loaded": libraries}
    if isinstance(libraries, list):
        for library in libraries:
            section[f"threads of {Path(library).name}"] = guarded(partial(openmp_threads, library))
        if len(libraries) > 1:
            section["note"] = "several OpenMP runtimes are loaded: a thread setting may reach only one of them"
    section["torch threads"] = guarded(torch_threads)
    return section


def cuda_section() -> dict[str, Any]:
    module = guarded(lambda: native().cuda_module())
    loaded = module is not None and not isinstance(module, str)
    return {
        "module": getattr(module, "__file__", repr(module)) if loaded else (module or "not loaded"),
        "problem": guarded(lambda: native().cuda_problem() or None),
        "driver": guarded(driver),
        "driver supports CUDA": guarded(driver_cuda_version),
        "gpus": guarded(gpus),
        "torch built for CUDA": guarded(torch_cuda),
    }


def versions_section() -> dict[str, Any]:
    section: dict[str, Any] = {"python": f"{platform.python_version()} {platform.python_implementation()}"}
    section["platform"] = guarded(platform.platform)
    for module, distributions in FRAMEWORKS.items():
        section[module] = guarded(partial(loaded_and_installed, module, distributions))
    return section


def environment_section() -> dict[str, Any]:
    return {name: os.environ.get(name) for name in (*SWITCHES, *THREAD_SETTINGS)}


def op_paths() -> list[dict[str, str]]:
    """One entry per op and device: the path that runs there, and why."""
    paths = importlib.import_module("subspan._route").paths()
    return [{key: str(entry[key]) for key in ("op", "device", "path", "why")} for entry in paths]


def compiled_modules() -> list[str]:
    """Files of the compiled modules in this process; an editable install keeps them apart from the sources."""
    files = [getattr(module, "__file__", None) for name, module in sys.modules.items() if name.startswith("subspan._")]
    return sorted(file for file in files if file is not None and not file.endswith(".py"))


def native() -> Any:
    return importlib.import_module("subspan._native")


def is_loaded(module: str) -> bool:
    return sys.modules.get(module) is not None


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def loaded_openmp() -> list[str]:
    """Paths of the OpenMP runtimes mapped into this process."""
    mappings = Path("/proc/self/maps").read_text().splitlines()
    paths = {line[line.index("/") :] for line in mappings if "/" in line}
    return sorted(path for path in paths if Path(path).name.startswith(OPENMP_NAMES))


def openmp_threads(library: str) -> int:
    return int(ctypes.CDLL(library).omp_get_max_threads())


def torch_threads() -> int | None:
    return int(sys.modules["torch"].get_num_threads()) if is_loaded("torch") else None


def torch_cuda() -> str | None:
    version: str | None = sys.modules["torch"].version.cuda if is_loaded("torch") else None
    return version


def loaded_and_installed(module: str, distributions: tuple[str, ...]) -> dict[str, str | None]:
    """The version in this process beside the version on disk: they differ after an upgrade or with two search paths."""
    installed = {}
    for name in distributions:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    loaded = guarded(lambda: str(getattr(sys.modules[module], "__version__", "unknown"))) if is_loaded(module) else None
    return {"loaded": loaded, "installed": ", ".join(f"{k} {v}" for k, v in installed.items()) or None}


def driver() -> str | None:
    path = Path("/proc/driver/nvidia/version")
    return path.read_text().splitlines()[0].partition(":")[2].strip() if path.exists() else None


def driver_cuda_version() -> str | None:
    """The newest CUDA the driver serves; needs no GPU and initialises nothing."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int(0)
    status = library.cuDriverGetVersion(ctypes.byref(version))
    return f"{version.value // 1000}.{version.value % 1000 // 10}" if status == 0 else f"unknown (CUDA error {status})"


def gpus() -> list[str]:
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    query = [command, "--query-gpu=name,compute_cap,memory.total", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    return answer.stdout.strip().splitlines()


def one_line() -> str:
    """Version, CPU level, torch and machine, to stand beside a measurement."""
    level = guarded(lambda: native().cpu_level)
    version = guarded(lambda: importlib.import_module("subspan").__version__)
    torch = guarded(lambda: sys.modules["torch"].__version__)
    return f"subspan {version} (CPU level {level}), torch {torch}, {guarded(cpu_model)}"


def render(report: dict[str, Any]) -> str:
    """The report as text: a heading per section, a line per fact, a table of the ops."""
    lines = []
    for heading, content in report.items():
        lines.append(heading)
        if isinstance(content, dict):
            width = max(len(key) for key in content)
            lines += [f"  {key:<{width}}  {plain(value)}" for key, value in content.items()]
        elif isinstance(content, list) and content:
            keys = list(content[0])
            widths = {key: max(len(key), *(len(row[key]) for row in content)) for key in keys}
            rows = [dict(zip(keys, keys, strict=True)), *content]
            lines += ["  " + "  ".join(f"{row[key]:<{widths[key]}}" for key in keys).rstrip() for row in rows]
        else:
            lines.append(f"  {plain(content)}")
        lines.append("")
    return "\n".join(lines).rstrip()


def plain(value: Any) -> str:
    """One value of the report in words."""
    if value is None:
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m subspan.info", description="Describes this installation.")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    options = parser.parse_args(arguments)
    report = collect()
    print(json.dumps(report, indent=2, default=str) if options.json else render(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
