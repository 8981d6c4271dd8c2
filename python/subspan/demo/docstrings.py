"""Real text that ships with the packages this demo needs: their documentation strings, as texts to be searched."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import csr_array, vstack
from sklearn.feature_extraction.text import TfidfVectorizer

from subspan.sparse_rows import SparseRows

PACKAGES = {"numpy": "numpy", "scipy": "scipy", "sklearn": "scikit-learn", "matplotlib": "matplotlib"}
SKIPPED = {"tests", "testing", "externals", "_vendor", "sphinxext"}
SHORTEST_BODY, SHORTEST_SUMMARY = 20, 4  # words
VOCABULARY = 4096
TEST_SHARE = 0.2

# A string in triple quotes; one that begins its line is a docstring. Parsing the files takes 30 times as long.
_STRING = re.compile(
    r'(?P<alone>^[ \t]*[rR]?)?(?P<quotes>"""|\'\'\')(?P<text>.*?)(?P=quotes)', re.DOTALL | re.MULTILINE
)

#: Texts of the versions with which the figures of the documentation were measured.
PINNED = "numpy 2.4.6, scipy 1.17.1, scikit-learn 1.9.1, matplotlib 3.11.2"
PINNED_HASH = "6cdda1872565797349c2102e015eef068b8131e01cc18185aa2c4723a76fb8ee"


@dataclass
class Docstrings:
    """TF-IDF features of texts and of their summaries: rows of unit length, row i of both of one documented object."""

    bodies: csr_array
    summaries: csr_array
    train: np.ndarray
    test: np.ndarray
    hash: str

    @property
    def versions(self) -> str:
        return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES.values())

    @property
    def pinned(self) -> bool:
        return self.hash == PINNED_HASH


def load(seed: int, all_terms: bool = False) -> Docstrings:
    """Every docstring with a summary and a body, over the commonest terms or all; the share of them whose summaries are
    never trained on."""
    texts = list(dict.fromkeys(text for package in PACKAGES for text in _texts(package)))
    summaries, bodies = zip(*texts, strict=True)
    digest = hashlib.sha256("\0".join(summaries + bodies).encode()).hexdigest()
    vectorizer = TfidfVectorizer(max_features=None if all_terms else VOCABULARY, sublinear_tf=True, dtype=np.float32)
    body_rows = vectorizer.fit_transform(bodies)
    summary_rows = vectorizer.transform(summaries)
    order = np.random.default_rng(seed).permutation(len(texts))
    tested = round(TEST_SHARE * len(texts))
    return Docstrings(csr_array(body_rows), csr_array(summary_rows), order[tested:], order[:tested], digest)


def rows(matrices: list[csr_array]) -> SparseRows:
    """The rows of several matrices, one after the other, as torch tensors."""
    stacked = csr_array(vstack(matrices)) if len(matrices) > 1 else matrices[0]
    indices, values, offsets = (torch.from_numpy(part) for part in (stacked.indices, stacked.data, stacked.indptr))
    return SparseRows(indices, values, stacked.shape[1], offsets)


def _texts(package: str) -> Iterator[tuple[str, str]]:
    """Summary (first paragraph) and body of the docstrings of a package, in the order of its files."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    root = Path(spec.origin).parent
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        if SKIPPED.isdisjoint(path.relative_to(root).parts):
            yield from _texts_of(path)


def _texts_of(path: Path) -> Iterator[tuple[str, str]]:
    for string in _STRING.finditer(path.read_text(encoding="utf-8", errors="replace")):
        summary, _, body = inspect.cleandoc(string["text"].replace("\\\n", "")).partition("\n\n")
        if (
            string["alone"] is not None
            and len(summary.split()) >= SHORTEST_SUMMARY
            and len(body.split()) >= SHORTEST_BODY
        ):
            yield summary, body
