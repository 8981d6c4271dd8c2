"""The cases, by family. A family is a module with a tuple CASES."""

from harness.case import Case

from . import coding_rate, core, sinkhorn

FAMILIES: dict[str, tuple[Case, ...]] = {"core": core.CASES, "coding_rate": (*coding_rate.CASES, *sinkhorn.CASES)}
