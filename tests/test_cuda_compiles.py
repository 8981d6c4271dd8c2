"""Every CUDA kernel compiles for the main architectures without spilling registers. Needs nvcc, not a GPU."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[1] / "csrc"
SOURCES = sorted(CSRC.rglob("*.cu"))
ARCHITECTURES = (80, 90)

#: Registers a kernel of 128 threads may use so that three blocks fit a multiprocessor (65536 registers).
REGISTERS = 168
#: Kernels that are allowed more, and why.
MORE_REGISTERS = {
    # The lower half of a 64 x 64 matrix is 160 registers in each of 16 lanes. 32 lanes need fewer, but twice the work.
    "packed_logdet_cuda.cu": {"packed_logdet_group<float, 64, 16, false>": 255},
    "spd_logdet_cuda.cu": {"spd_logdet_group<float, 64, 16, false>": 255},
}

pytestmark = [
    pytest.mark.no_sanitizer,
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on PATH"),
    pytest.mark.skipif(shutil.which("c++filt") is None, reason="no c++filt on PATH"),
]


def demangle(name: str) -> str:
    """The kernel's name and template arguments."""
    full = subprocess.run(["c++filt", name], capture_output=True, text=True, check=True).stdout
    return full.replace("(anonymous namespace)::", "").replace("subspan::", "").split("(")[0].removeprefix("void ")


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_no_spills(source: Path, tmp_path: Path) -> None:
    architectures = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
    options = ["-std=c++17", "-O3", "-Xptxas=-v", f"-I{CSRC}", *architectures]
    output = tmp_path / "kernels.o"
    build = subprocess.run(["nvcc", *options, "-c", source, "-o", output], capture_output=True, text=True, check=False)
    assert build.returncode == 0, build.stderr[-4000:]

    report = re.findall(
        r"Compiling entry function '(\w+)' for 'sm_(\d+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers",
        build.stderr,
        re.DOTALL,
    )
    assert {int(architecture) for _, architecture, *_ in report} == set(ARCHITECTURES), build.stderr[-4000:]
    wrong, exceptions = [], MORE_REGISTERS.get(source.name, {})
    for mangled, architecture, *counts in report:
        kernel = demangle(mangled)
        stack, stores, loads, registers = map(int, counts)
        allowed = exceptions.get(kernel, REGISTERS)
        print(f"{kernel} sm_{architecture}: {registers} registers, {stack} bytes of stack, {stores + loads} spilled")
        if stack or stores or loads or registers > allowed:
            wrong.append(f"{kernel} sm_{architecture}: {registers} registers of {allowed}, {stack} bytes of stack")
    assert not wrong, "\n".join(wrong)
    assert exceptions.keys() <= {demangle(mangled) for mangled, *_ in report}, "a kernel of the table is gone"
