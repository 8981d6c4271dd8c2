"""Log determinants of soft classes as products of large matrices, for about as many classes as samples.

The Gram matrices A_j = sum_i pi_ji z_i z_i^T of all classes are one product pi (k x n) times KR (n x P), where row i of
KR is the upper triangle of z_i z_i^T and P = d (d + 1) / 2: half the multiplications of a Gram matrix per class, and no
copy of Z per class. With c_j = d / (t_j eps2), t_j = sum_i pi_ji, and M_j = (I + c_j A_j)^{-1} both gradients of
sum_j g_j logdet(I + c_j A_j) are products of that size too. Let G_j be the triangle of M_j, doubled off the diagonal,
where an entry stands for two:

    energy = G KR^T,  e_ji = z_i^T M_j z_i        d pi_ji = g_j c_j (e_ji - sum_l pi_jl e_jl / t_j)
    D = pi^T diag(g c) G  (n x P)                 d z_i = (D_i + D_i^T) z_i, D_i the triangle in row i

The second term of d pi is the derivative through t_j: c_j tr(A_j M_j) = sum_l pi_jl c_j e_jl.

Classes are taken some at a time. Alive at the peak are KR, G (k x P, saved for backward) and one chunk of classes; in
backward G, D and a chunk's share of D.

On CUDA, where they are asked for, kernels form KR, factor packed triangles and apply D + D^T; the products are torch's.
Otherwise, under a tracer or a functorch transform, and where a gradient is differentiated, all is torch operations.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual
from torch.linalg import solve_triangular

from .. import _native, _route, _route_torch
from .._check import COMPUTE_DTYPE
from .factor import (
    factor_dtype,
    factor_identity_plus,
    identity,
    log_det_identity_plus,
    log_pivots,
    one_where,
    result_dtype,
    without_autocast,
)

#: Elements of the full matrices of one chunk in torch operations, 128 MiB in float64.
FULL_ELEMENTS = 1 << 24
#: Elements of the packed matrices of one chunk where kernels factor them; 32 MiB in float32 stay in an H100's L2.
PACKED_ELEMENTS = 1 << 23

#: What the kernels of this file are asked for by, in _route.CUDA_DEFAULT.
NAME = "soft_class_log_dets"


def kernels(array: Tensor) -> Any:
    """The module whose kernels serve arrays such as this one, or None."""
    if not array.is_cuda or not _route.cuda_asked(NAME):
        return None
    return _native.cuda()


def _usable_kernels(*arrays: Tensor) -> Any:
    """As `kernels`, None also where torch has to see every operation."""
    if not all(map(_route_torch.values_available, arrays)):
        return None
    if torch.is_grad_enabled() and any(array.requires_grad for array in arrays):
        return None
    if any(array.is_neg() or unpack_dual(array).tangent is not None for array in arrays):
        return None
    return kernels(arrays[0])


def _place(array: Tensor) -> tuple[int, int]:
    """The stream to launch on, and the number of the device."""
    if not array.is_cuda:
        return 0, 0
    return torch.cuda.current_stream(array.device).cuda_stream, array.device.index


def _tf32_allowed() -> bool:
    backend = torch.backends.cuda.matmul
    precision = getattr(backend, "fp32_precision", None)  # once it has been set, asking the older name raises
    return bool(backend.allow_tf32) if precision is None else precision == "tf32"


def product_dtype(Z: Tensor) -> torch.dtype:
    """The type that products are formed in: that of the other composites, or, with kernels, the input's own.

    TF32 would keep three digits of a Gram matrix, so where torch is allowed to use it the products are float64.
    """
    if _usable_kernels(Z) is None or Z.dtype == torch.float64 or _tf32_allowed():
        return factor_dtype(Z)
    return torch.float32


# --- packed triangles -------------------------------------------------------------------------------------------------


def triangle_places(features: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of each entry of a packed triangle, row after row."""
    first, second = torch.triu_indices(features, features, device=like.device)
    return first, second


def full_places(features: int, like: Tensor) -> Tensor:
    """(d, d): where the packed triangle holds each entry of the symmetric matrix."""
    index = torch.arange(features, device=like.device)
    low, high = torch.minimum(index[:, None], index), torch.maximum(index[:, None], index)
    return low * (2 * features - low - 1) // 2 + high


def khatri_rao(Z: Tensor, dtype: torch.dtype) -> Tensor:
    """(*batch, n, P): in row i the upper triangle of z_i z_i^T."""
    features = Z.shape[-1]
    module = _usable_kernels(Z)
    if module is not None:
        stream, device = _place(Z)
        rows = Z if COMPUTE_DTYPE[Z.dtype] == dtype else Z.to(dtype)
        if features <= module.khatri_rao_max_features(dtype.itemsize, device):
            products = Z.new_empty((*Z.shape[:-1], features * (features + 1) // 2), dtype=dtype)
            module.khatri_rao_pack(rows, products, stream)
            return products
    rows = Z.to(dtype)
    first, second = triangle_places(features, Z)
    return rows[..., first] * rows[..., second]


def khatri_rao_adjoint(d_products: Tensor, Z: Tensor) -> Tensor:
    """(*batch, n, d): (D_i + D_i^T) z_i for the triangle D_i in row i, zero below the diagonal."""
    features, dtype = Z.shape[-1], d_products.dtype
    module = _usable_kernels(d_products, Z)
    if module is not None:
        stream, device = _place(Z)
        rows = Z if COMPUTE_DTYPE[Z.dtype] == dtype else Z.to(dtype)
        if features <= module.khatri_rao_max_features(dtype.itemsize, device):
            d_rows = Z.new_empty(Z.shape, dtype=dtype)
            module.khatri_rao_unpack(d_products.contiguous(), rows, d_rows, stream)
            return d_rows
    places = full_places(features, Z)
    rows, parts = Z.to(dtype), []
    one = math.prod(Z.shape[:-2]) * features * features
    for d_part, part in zip(*(_chunks(array, one, FULL_ELEMENTS) for array in (d_products, rows)), strict=True):
        symmetric = d_part[..., places] + torch.diag_embed(d_part[..., places.diagonal()])
        parts.append((symmetric @ part[..., None]).squeeze(-1))
    return torch.cat(parts, -2)


def _chunks(array: Tensor, one: int, elements: int) -> tuple[Tensor, ...]:
    """Views of some rows at a time, each row standing for `one` elements of a temporary; at least one view."""
    chunks: tuple[Tensor, ...] = array.split(max(1, elements // max(one, 1)), -2)
    return chunks


def packed_log_dets(grams: Tensor, scale: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor | None]:
    """log det (I + c_j A_j) of packed triangles A_j, (*batch, P), and its gradient by the entries of c_j A_j.

    The gradient is the triangle of M_j = (I + c_j A_j)^{-1}, doubled off the diagonal. It may take the memory of grams.
    """
    features = (math.isqrt(8 * grams.shape[-1] + 1) - 1) // 2
    module = _usable_kernels(grams, scale)
    if module is not None and features <= module.packed_logdet_max_size(grams.element_size(), _place(grams)[1]):
        log_dets = torch.empty_like(scale)
        gradient = grams if with_gradient else None
        module.packed_logdet(grams, scale, log_dets, None, gradient, _place(grams)[0])
        return log_dets, gradient
    exact = factor_dtype(grams)
    full = (grams.to(exact) * scale.to(exact)[..., None])[..., full_places(features, grams)]
    if not with_gradient:
        return log_det_identity_plus(full).to(grams.dtype), None
    factor, valid = factor_identity_plus(full)
    half = solve_triangular(factor, identity(features, factor), upper=False)
    inverse = half.mT @ half * valid[..., None, None]
    first, second = triangle_places(features, grams)
    gradient = inverse[..., first, second] * torch.where(first == second, 1, 2)
    return (log_pivots(full, factor).sum(-1) * valid).to(grams.dtype), gradient.to(grams.dtype)


# --- soft classes -----------------------------------------------------------------------------------------------------


def class_grams_packed(Z: Tensor, membership: Tensor) -> Tensor:
    """(*batch, k, P): the packed triangles of A_j = sum_i pi_ji z_i z_i^T."""
    products = khatri_rao(Z, product_dtype(Z))
    return membership.to(products.dtype) @ products


def class_scales(membership: Tensor, features: int, eps2: float) -> tuple[Tensor, Tensor]:
    """c_j = d / (t_j eps2) and 1 / t_j. Both are 0 for a class of mass 0: the rate of nothing is constant."""
    mass = membership.sum(-1)
    some = mass != 0  # true for NaN
    reciprocal = torch.where(some, torch.where(some, mass, 1).reciprocal(), 0)
    return features / eps2 * reciprocal, reciprocal


def _valid_membership(membership: Tensor, dtype: torch.dtype) -> Tensor:
    """In the type of the products; what is negative becomes NaN."""
    weights = membership.to(dtype)
    return weights * one_where(weights.detach() >= 0, weights)


def _class_chunks(membership: Tensor, products: Tensor, Z: Tensor) -> tuple[Tensor, ...]:
    batch, features = math.prod(Z.shape[:-2]), Z.shape[-1]
    if _usable_kernels(Z, membership) is None:
        return _chunks(membership, batch * features * features, FULL_ELEMENTS)
    return _chunks(membership, batch * products.shape[-1], PACKED_ELEMENTS)


def log_dets_and_gradients(
    Z: Tensor, membership: Tensor, eps2: float, with_gradient: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The log determinants (*batch, k), and with_gradient G in chunks of classes, each (*batch, c, P)."""
    dtype = product_dtype(Z)
    weights, products = _valid_membership(membership, dtype), khatri_rao(Z, dtype)
    log_dets, gradients = [], []
    for chunk in _class_chunks(weights, products, Z):
        scale, _ = class_scales(chunk, Z.shape[-1], eps2)
        values, gradient = packed_log_dets(chunk @ products, scale, with_gradient)
        log_dets.append(values)
        if gradient is not None:
            gradients.append(gradient)
    return torch.cat(log_dets, -1), tuple(gradients)


def apply_gradients(
    upstream: Tensor,
    Z: Tensor,
    membership: Tensor,
    eps2: float,
    gradients: tuple[Tensor, ...],
    needed: tuple[bool, ...],
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of sum_j upstream_j logdet_j by Z and by membership, from G in chunks of classes."""
    weights = _valid_membership(membership, gradients[0].dtype)
    scale, per_mass = class_scales(weights, Z.shape[-1], eps2)
    strength = (upstream.to(scale.dtype) * scale)[..., None]
    d_Z = d_membership = None
    if needed[1]:
        energy = _energies(Z, gradients)
        through_mass = (weights * energy).sum(-1) * per_mass
        d_membership = (strength * (energy - through_mass[..., None])).to(membership.dtype)
    if needed[0]:
        d_Z = khatri_rao_adjoint(_d_products(weights * strength, gradients), Z).to(Z.dtype)
    return d_Z, d_membership


def _energies(Z: Tensor, gradients: tuple[Tensor, ...]) -> Tensor:
    """z_i^T M_j z_i, (*batch, k, n)."""
    products = khatri_rao(Z, gradients[0].dtype)
    return torch.cat([gradient @ products.mT for gradient in gradients], -2)


def _d_products(strength: Tensor, gradients: tuple[Tensor, ...]) -> Tensor:
    """sum_j strength_ji G_j, (*batch, n, P)."""
    first, *others = zip(strength.split([gradient.shape[-2] for gradient in gradients], -2), gradients, strict=True)
    total: Tensor = first[0].mT @ first[1]
    for part, gradient in others:
        total = total + part.mT @ gradient
    return total


class SoftClassLogDets(torch.autograd.Function):
    """(log determinants, G in chunks of classes); G is saved, k x P, unless the gradient is to be differentiated."""

    generate_vmap_rule = True

    @staticmethod
    def forward(Z: Tensor, membership: Tensor, eps2: float) -> tuple[Tensor, ...]:
        log_dets, gradients = log_dets_and_gradients(Z, membership, eps2, True)
        return log_dets, *gradients

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        Z, membership, ctx.eps2 = inputs
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(Z, membership, *output[1:])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        if upstream[0] is None:
            return None, None, None
        d_Z, d_membership = _backward(upstream[0], ctx.saved_tensors, ctx.eps2, ctx.needs_input_grad)
        return d_Z, d_membership, None


@without_autocast
def _backward(upstream: Tensor, saved: Any, eps2: float, needed: tuple[bool, ...]) -> Any:
    Z, membership, *gradients = saved
    if torch.is_grad_enabled():  # to be differentiated: said in differentiable operations
        gradients = log_dets_and_gradients(Z, membership, eps2, True)[1]
    return apply_gradients(upstream, Z, membership, eps2, tuple(gradients), needed)


@without_autocast
def soft_class_log_dets(Z: Tensor, membership: Tensor, eps2: float) -> tuple[Tensor, Tensor]:
    """logdet(I + d / (t_j eps2) sum_i pi_ji z_i z_i^T) and t_j = sum_i pi_ji, both (*batch, k).

    Z is (*batch, n, d), membership pi (*batch, k, n) with the same batch dimensions and entries >= 0; a negative one
    makes its class NaN. A class of mass 0 has log determinant 0, and gradient 0.
    """
    mass = _valid_membership(membership, factor_dtype(Z)).sum(-1).to(result_dtype(Z))
    watched = not (_route_torch.values_available(Z) and _route_torch.values_available(membership))
    if watched or (torch.is_grad_enabled() and (Z.requires_grad or membership.requires_grad)):
        log_dets = SoftClassLogDets.apply(Z, membership, eps2)[0]  # type: ignore[no-untyped-call]
    else:
        log_dets = log_dets_and_gradients(Z, membership, eps2, False)[0]
    return log_dets.to(result_dtype(Z)), mass
