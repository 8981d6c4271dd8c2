"""A real-text corpus that needs no download: the docstrings of the Python that runs and of packages installed in it.

A document is the body of a docstring, its query the summary line above, both as rows of TF-IDF. The same Python and
packages give the same corpus. Sparse vectors drawn at random would not do: in text, few terms are in most documents and
in most queries, and what they cost decides everything.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import scipy.sparse as sp

PACKAGES = ("numpy", "scipy", "sklearn", "torch")
# Shorter docstrings have no body to speak of; longer summaries are no queries.
LEAST_BODY, LEAST_SUMMARY, MOST_SUMMARY = 80, 15, 300


def sources() -> list[Path]:
    """The .py files of the standard library and of PACKAGES, in an order that does not depend on the file system."""
    library = Path(sysconfig.get_paths()["stdlib"])
    found = [path for path in library.rglob("*.py") if "site-packages" not in path.parts]
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            found += Path(spec.origin).parent.rglob("*.py")
    return sorted(found)


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Summary and body of every docstring of a file that has both."""
    try:
        tree = ast.parse(path.read_text(errors="ignore"))
    except (SyntaxError, ValueError, RecursionError):
        return  # files that are there to test parsers
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)):
            summary, _, body = (ast.get_docstring(node) or "").strip().partition("\n\n")
            if LEAST_SUMMARY < len(summary) < MOST_SUMMARY and len(body) > LEAST_BODY:
                yield summary, body


def texts() -> tuple[list[str], list[str]]:
    """Summaries and bodies, each body once."""
    seen: dict[str, str] = {}
    for path in sources():
        for summary, body in docstrings(path):
            seen.setdefault(body, summary)
    return list(seen.values()), list(seen)


def corpus() -> tuple[sp.csr_array, sp.csr_array]:
    """Queries and documents as CSR of float32, row i of one for row i of the other; kept in the temporary directory."""
    stamp = hashlib.sha256("".join(f"{path}{path.stat().st_size}" for path in sources()).encode()).hexdigest()[:16]
    kept = [Path(tempfile.gettempdir()) / f"subspan-docstrings-{stamp}-{part}.npz" for part in ("queries", "documents")]
    if not all(path.exists() for path in kept):
        from sklearn.feature_extraction.text import TfidfVectorizer

        summaries, bodies = texts()
        vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=2, dtype=np.float32, token_pattern=r"[A-Za-z_]{2,}")
        documents = vectorizer.fit_transform(bodies)
        for path, matrix in zip(kept, (vectorizer.transform(summaries), documents), strict=True):
            with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".npz", delete=False) as part:
                sp.save_npz(part, matrix, compressed=False)
            Path(part.name).replace(path)
    queries, documents = (sp.csr_array(sp.load_npz(path)) for path in kept)
    return queries, documents


def sampled_queries(queries: sp.csr_array, count: int, seed: int = 0) -> tuple[sp.csr_array, np.ndarray]:
    """Rows of queries that are not empty, and which they are."""
    chosen = np.random.default_rng(seed).permutation(np.flatnonzero(np.diff(queries.indptr)))[:count]
    return queries[chosen], chosen


def bootstrapped(documents: sp.csr_array, count: int, seed: int = 0, changed: float = 0.1) -> sp.csr_array:
    """More rows of the same distribution: each a row of `documents` of which a tenth of the entries are exchanged for
    others, drawn as often as they occur, and all vary by some percent. Document frequencies and what occurs together
    stay as they are; hardly a row is there twice."""
    generator = np.random.default_rng(seed)
    rows = generator.integers(documents.shape[0], size=count)
    lengths = np.diff(documents.indptr)[rows]
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    taken = np.repeat(documents.indptr[rows].astype(np.int64) - offsets[:-1], lengths) + np.arange(offsets[-1])
    exchanged = generator.random(len(taken), dtype=np.float32) < changed
    taken[exchanged] = generator.integers(documents.nnz, size=int(exchanged.sum()))
    values = documents.data[taken] * (1 + 0.05 * generator.standard_normal(len(taken), dtype=np.float32))
    made = sp.csr_array((values, documents.indices[taken], offsets), shape=(count, documents.shape[1]))
    made.sum_duplicates()
    return made
