"""The cases, by family. A family is a tuple of cases, from one module or several."""

from harness.case import Case

from . import (
    angles,
    coding_rate,
    core,
    crate,
    grassmann,
    logits,
    losses,
    orthonormalize,
    similarity,
    sinkhorn,
    soft_classes,
)

FAMILIES: dict[str, tuple[Case, ...]] = {
    "core": core.CASES,
    "coding_rate": (*coding_rate.CASES, *soft_classes.CASES, *sinkhorn.CASES, *losses.CASES, *crate.CASES),
    "angles": (*angles.CASES, *logits.CASES, *grassmann.CASES, *similarity.CASES),
    "orthogonal": (*orthonormalize.CASES,),
}
