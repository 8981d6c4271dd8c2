"""`python -m subspan.info` describes every installation, a broken one too, and never raises."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from subspan import info

SECTIONS = ("subspan", "cpu", "openmp", "cuda", "versions", "environment", "ops")
PROBES = (
    "native",
    "op_paths",
    "cpu_model",
    "compiled_modules",
    "loaded_openmp",
    "openmp_threads",
    "torch_threads",
    "torch_cuda",
    "driver",
    "driver_cuda_version",
    "gpus",
    "loaded_and_installed",
    "cpu_section",
    "versions_section",
)
BLOCKED = "import sys, runpy; sys.argv = ['info', '--json']; sys.modules[{module!r}] = None; "


def run(*arguments: str, **environment: str) -> str:
    """Output of a fresh interpreter, which must end well."""
    command = [sys.executable, *arguments]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **environment})
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


@pytest.mark.no_sanitizer
def test_text_has_every_section_and_switch():
    text = run("-m", "subspan.info", SUBSPAN_CUDA_KERNELS="1")
    headings = [line for line in text.splitlines() if line and not line.startswith(" ")]
    assert headings == list(SECTIONS)
    for switch in info.SWITCHES:
        assert switch in text


@pytest.mark.no_sanitizer
def test_json_describes_this_installation():
    report = json.loads(run("-m", "subspan.info", "--json", SUBSPAN_CUDA_KERNELS="1"))
    assert list(report) == list(SECTIONS)
    level = report["cpu"]["level chosen"]
    assert level in report["cpu"]["levels available"]
    assert any(f"_cpu_{level}." in file for file in report["subspan"]["modules loaded"])
    assert report["environment"]["SUBSPAN_CUDA_KERNELS"] == "1"
    assert report["versions"]["numpy"]["loaded"] in report["versions"]["numpy"]["installed"]
    assert any("libgomp" in library for library in report["openmp"]["libraries loaded"])


def test_every_op_says_its_path_and_why():
    paths = info.op_paths()
    assert {entry["device"] for entry in paths} == {"cpu", "cuda"}
    assert {"spd_logdet", "coding_rate", "rate_reduction", "rate_operator"} <= {entry["op"] for entry in paths}
    assert all(entry["path"] and entry["why"] for entry in paths)


@pytest.mark.no_sanitizer
def test_without_torch():
    code = BLOCKED.format(module="torch") + "runpy.run_module('subspan.info', run_name='__main__')"
    report = json.loads(run("-c", code))
    assert report["versions"]["torch"]["loaded"] is None
    assert report["openmp"]["torch threads"] is None
    assert report["cpu"]["level chosen"] in report["cpu"]["levels available"]


@pytest.mark.no_sanitizer
@pytest.mark.parametrize("module", ["subspan", "subspan._native", "subspan._route", "numpy"])
def test_by_its_path_when_a_module_does_not_import(module):
    code = BLOCKED.format(module=module) + f"runpy.run_path({info.__file__!r}, run_name='__main__')"
    report = json.loads(run("-c", code))
    assert list(report) == list(SECTIONS)
    problem = report["ops"] if module == "subspan._route" else report["cpu"]["level chosen"]
    assert "ModuleNotFoundError" in problem


@pytest.mark.no_sanitizer
def test_unknown_cpu_level_is_described():
    text = run("-m", "subspan.info", SUBSPAN_CPU_LEVEL="v9")
    assert "SUBSPAN_CPU_LEVEL=v9" in text  # the loader's complaint, not only the echo of the variable


@pytest.mark.no_sanitizer
def test_standard_library_only():
    """Isolated and without site-packages nothing can be imported but the standard library."""
    report = json.loads(run("-I", "-S", info.__file__, "--json"))
    assert report["versions"]["numpy"]["loaded"] is None
    assert report["subspan"]["location"] == str(Path(info.__file__).resolve().parent)


@pytest.mark.parametrize("probe", PROBES)
def test_a_failing_probe_spoils_nothing_else(probe, monkeypatch):
    def broken(*_: object) -> None:
        raise RuntimeError(f"{probe} is broken")

    monkeypatch.setattr(info, probe, broken)
    report = info.collect()
    assert list(report) == list(SECTIONS)
    assert "subspan" in info.render(report)
    assert json.loads(json.dumps(report)) == report


def test_guarded_turns_every_failure_into_a_sentence():
    def leave() -> None:
        raise SystemExit(3)

    assert info.guarded(lambda: 1 / 0) == "unknown (ZeroDivisionError: division by zero)"
    assert info.guarded(leave) == "unknown (SystemExit: 3)"
    assert info.guarded(lambda: 7) == 7
