"""The cases, by family. A family is a tuple of cases, from one module or several."""

from harness.case import Case

from . import (
    angles,
    coding_rate,
    core,
    crate,
    grassmann,
    householder,
    logits,
    losses,
    newton_schulz,
    optimizers,
    orthogonal_modules,
    orthonormalize,
    phm,
    phm_models,
    similarity,
    sinkhorn,
    skew,
    soft_classes,
    sparse,
    sparse_scores,
)

FAMILIES: dict[str, tuple[Case, ...]] = {
    "core": core.CASES,
    "coding_rate": (*coding_rate.CASES, *soft_classes.CASES, *sinkhorn.CASES, *losses.CASES, *crate.CASES),
    "angles": (*angles.CASES, *logits.CASES, *grassmann.CASES, *similarity.CASES),
    "orthogonal": (
        *householder.CASES,
        *orthonormalize.CASES,
        *skew.CASES,
        *newton_schulz.CASES,
        *orthogonal_modules.CASES,
        *optimizers.CASES,
    ),
    "phm": (*phm.CASES, *phm_models.CASES),
    "sparse": (*sparse.CASES, *sparse_scores.CASES),
}
