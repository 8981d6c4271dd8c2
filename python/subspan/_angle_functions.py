"""The functions of principal angles by name, with the numbers that the kernels know them by (angle_functions.h)."""

from __future__ import annotations

ANGLES, COSINES = 0, 1
#: Of subspace_distance.
METRICS = {
    "geodesic": 2,
    "chordal": 3,
    "projection": 4,
    "procrustes": 5,
    "fubini_study": 6,
    "binet_cauchy": 7,
    "asimov": 8,
    "spectral": 9,
    "gap": 10,
    "martin": 11,
}
#: Of subspace_similarity.
SIMILARITIES = {"mean_cos2": 12, "max_cos": 13, "overlap": 14}

NAMES = {number: name for names in (METRICS, SIMILARITIES) for name, number in names.items()}
NAMES |= {ANGLES: "angles", COSINES: "cosines"}
