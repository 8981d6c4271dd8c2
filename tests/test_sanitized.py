"""The value, bad-input, array and emulated-kernel tests again, with every module under AddressSanitizer and UBSan."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
TESTS = [
    "test_every_op_values.py",
    "test_every_op_memory.py",
    "test_every_op_bad_input.py",
    "test_arrays.py",
    "test_sparse_index.py",
    "test_sparse_index_approx.py",
    "test_sparse_index_files.py",
    "test_search_command.py",
    "test_threads.py",
    "test_cuda_emulated.py",
    "test_khatri_rao_emulated.py",
    "test_packed_logdet_emulated.py",
    "test_small_eigh_emulated.py",
    "test_small_svd_emulated.py",
]
#: What else a file holds leads through the same loops again, or ends in Python.
SELECTED = {
    "test_every_op_values.py": "not repeats and not (nan_stays and inf)",
    "test_every_op_bad_input.py": "bad_input_is_refused and not vmap or anything",
    "test_threads.py": "any_number_of_threads and float32",
    "test_small_svd_emulated.py": "not scales and not (stays_alone and inf)",
}
REPORT = re.compile(r"ERROR: AddressSanitizer|runtime error:|SUMMARY: \w+Sanitizer")
SECONDS = 2400  # a build or a run that has not ended by then hangs

# An editable installation puts a finder before the search path: it would answer for the package under test.
START = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in type(f).__module__ + type(f).__name__.lower()]
"""

pytestmark = pytest.mark.no_sanitizer


def why_not() -> str:
    if shutil.which("c++") is None and shutil.which("g++") is None:
        return "no C++ compiler"
    missing = [name for name in ("scikit_build_core", "pybind11") if importlib.util.find_spec(name) is None]
    if missing:
        return f"{missing} not installed"
    return "" if (REPOSITORY / "CMakeLists.txt").exists() else "not a source tree"


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package built with sanitizers and emulated CUDA kernels, in a directory of its own."""
    if reason := why_not():
        pytest.skip(reason)
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # of all workers of a run: whichever comes first builds for all
    target = shared / "sanitized"
    with (shared / "sanitized.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (target / "complete").exists():
            build(target)
            (target / "complete").touch()
    return target


def build(target: Path) -> None:
    options = ["cmake.define.SUBSPAN_SANITIZE=ON", "cmake.define.SUBSPAN_EMULATOR=ON", "cmake.define.SUBSPAN_CUDA=OFF"]
    options += ["cmake.define.SUBSPAN_CPU_LEVELS=native", "build-dir=build/sanitized", "install.strip=false"]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps"]
    command += ["--target", str(target), *(f"--config-settings={option}" for option in options), str(REPOSITORY)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert built.returncode == 0, built.stdout[-4000:] + built.stderr[-4000:]


def run(target: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python with the sanitizer's runtime, importing the package from `target`."""

    def library(name: str) -> str:
        return subprocess.run(
            ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()

    environment = os.environ | {
        "PYTHONPATH": str(target),
        "LD_PRELOAD": f"{library('libasan.so')} {library('libstdc++.so')}",
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:exitcode=99",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "HYPOTHESIS_PROFILE": "short",
        "OMP_NUM_THREADS": "2",
        "OMP_WAIT_POLICY": "passive",  # other tests may run beside these: a thread that spins would take their core
    }
    return subprocess.run(
        [sys.executable, "-c", START + code, *arguments],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env=environment,
        cwd=REPOSITORY / "tests",
    )


def test_sanitizer_sees_a_planted_error(sanitized: Path) -> None:
    """Without this, a sanitizer that is not active would look like clean code."""
    answer = run(sanitized, "import subspan._native as native; native.cpu.sanitizer_selftest(); print('unseen')")
    assert answer.returncode != 0 and "unseen" not in answer.stdout
    assert "AddressSanitizer: heap-buffer-overflow" in answer.stderr, answer.stderr[-2000:]
    assert "sanitizer_selftest" in answer.stderr, "the report does not name the function: no symbols"


def test_package_under_test_is_the_sanitized_one(sanitized: Path) -> None:
    code = "import subspan._native as native, subspan._cuda_emulated as e; print(native.cpu.__file__, e.__file__)"
    answer = run(sanitized, code)
    assert answer.returncode == 0, answer.stderr[-2000:]
    for path in answer.stdout.split():
        assert Path(path).is_relative_to(sanitized), path


@pytest.mark.parametrize("file", TESTS)
def test_suite_is_clean_under_sanitizers(sanitized: Path, file: str) -> None:
    code = "import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    options = ["-q", "-p", "no:cacheprovider", "-m", "not no_sanitizer and not gpu", "--tb=short", "--capture=sys"]
    answer = run(sanitized, code, *options, "-k", SELECTED.get(file, ""), file)
    output = answer.stdout + answer.stderr
    assert not REPORT.search(output), output[REPORT.search(output).start() - 200 :][:6000]  # type: ignore[union-attr]
    assert answer.returncode == 0, output[-6000:]
    ran = re.search(r"(\d+) passed.* in [\d.]+s", output)
    assert ran, f"no test ran: {output[-2000:]}"
    assert not re.search(r"SKIPPED.*_cuda_emulated", output), "the emulated kernels were not tested"
