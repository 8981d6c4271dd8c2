"""The cases, by family. A family is a tuple of cases, from one module or several."""

from harness.case import Case

from . import coding_rate, core, crate, logits, losses, similarity, sinkhorn, soft_classes
from . import coding_rate, core, crate, grassmann, losses, sinkhorn, soft_classes

FAMILIES: dict[str, tuple[Case, ...]] = {
    "angles": (*similarity.CASES, *logits.CASES),
    "core": core.CASES,
    "coding_rate": (*coding_rate.CASES, *soft_classes.CASES, *sinkhorn.CASES, *losses.CASES, *crate.CASES),
    "angles": (*grassmann.CASES,),
}
