"""The documentation of every public function: its examples run, and it has the sections that a reader looks for."""

from __future__ import annotations

import doctest
import inspect

import numpy as np
import pytest

import subspan
from subspan import nn

CONTAINERS = ("SearchResult", "SparseIndex", "SparseRows")
PUBLIC = [getattr(subspan, name) for name in subspan.__all__ if name not in CONTAINERS]
MODULES = [subspan.SparseIndex, subspan.SparseRows, *(getattr(nn, name) for name in nn.__all__)]
SECTIONS = ("Args:", "Returns:", "Raises:", "Cost:", "Gradient:", "Source:", ">>>")


@pytest.mark.parametrize("function", [*PUBLIC, *MODULES], ids=lambda f: f.__name__)
def test_examples_run(function: object) -> None:
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner()
    tests = finder.find(function, function.__name__, globs={"np": np, "subspan": subspan})  # type: ignore[attr-defined]
    assert [test for test in tests if test.examples]
    for test in tests:
        runner.run(test)
    assert runner.summarize().failed == 0


@pytest.mark.parametrize("function", PUBLIC, ids=lambda f: f.__name__)
def test_sections_are_there_and_every_argument_is_named(function: object) -> None:
    text = inspect.getdoc(function)
    assert text
    missing = [section for section in SECTIONS if section not in text]
    assert not missing
    for name in inspect.signature(function).parameters:  # type: ignore[arg-type]
        assert f"    {name}:" in text or f"``{name}``" in text, name


@pytest.mark.parametrize("module", MODULES, ids=lambda f: f.__name__)
def test_modules_say_what_they_replace(module: object) -> None:
    text = inspect.getdoc(module)
    assert text and all(section in text for section in ("Args:", "Raises:", "Source:"))
