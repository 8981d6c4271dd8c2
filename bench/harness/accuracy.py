"""Errors of a value and of its gradients against the float64 reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .upstream import upstream_of


class Exact(NamedTuple):
    value: Tensor
    gradients: list[Tensor]


def exact(reference: Callable[..., Tensor], inputs: Sequence[Tensor], backward: bool) -> Exact:
    """The reference, and its gradients, at the inputs as they are, in float64 on the CPU."""
    return _evaluate(reference, [_to_float64(x) for x in inputs], backward)


def relative_errors(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], expected: Exact, backward: bool
) -> tuple[float, float | None]:
    """Largest value error by the largest value; largest gradient error of an input, both in the Frobenius norm."""
    value, gradients = _evaluate(function, inputs, backward)
    value_error = _relative(value, expected.value, math.inf)
    if not backward:
        return value_error, None
    return value_error, max(_relative(*pair, 2) for pair in zip(gradients, expected.gradients, strict=True))


def _evaluate(function: Callable[..., Tensor], inputs: Sequence[Tensor], backward: bool) -> Exact:
    leaves = [x.detach().requires_grad_(backward and x.is_floating_point()) for x in inputs]
    with torch.set_grad_enabled(backward):
        value = function(*leaves)
        if isinstance(value, list):  # of arrays of different shapes
            value = torch.cat([part.flatten() for part in value])
        wanted = [x for x in leaves if x.requires_grad]
        gradients = torch.autograd.grad(value, wanted, upstream_of(value), allow_unused=True) if backward else ()
    # An input that the reference holds constant has no gradient, and may have none in a variant either.
    return Exact(_to_float64(value.detach()), [_to_float64(g) for g in gradients if g is not None])


def _to_float64(x: Tensor) -> Tensor:
    x = x.detach().cpu()
    return x.double() if x.is_floating_point() else x


def _relative(got: Tensor, want: Tensor, order: float) -> float:
    """Infinite where the result has the wrong shape or is not a number."""
    if got.shape != want.shape:
        return math.inf
    error = (torch.linalg.vector_norm(got - want, order) / torch.linalg.vector_norm(want, order)).item()
    return math.inf if math.isnan(error) else error
