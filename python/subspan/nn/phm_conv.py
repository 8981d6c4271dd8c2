"""Hypercomplex convolutions as modules."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..ops import phm_conv as functional
from ..ops.phm_conv import Size, compose, sizes
from .phm_parameters import SharesRules, add_rule, check_sizes, reset_components, reset_rule


class _PHMConvolution(SharesRules):
    A: Tensor
    bias: Tensor | None
    dims: int
    transposed = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        n: int,
        options: dict[str, Size],
        bias: bool,
        rule: str,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        op = type(self).__name__
        check_sizes(op, n, in_channels=in_channels, out_channels=out_channels)
        self.in_channels, self.out_channels, self.n, self.rule = in_channels, out_channels, n, rule
        self.kernel_size = sizes(op, "kernel_size", kernel_size, self.dims, 1)
        self.options = {
            name: sizes(op, name, value, self.dims, 0 if "padding" in name else 1) for name, value in options.items()
        }
        like: dict[str, Any] = {"device": device, "dtype": dtype}
        add_rule(self, "A", rule, n, like)
        S = torch.empty(n, out_channels // n, in_channels // n, *self.kernel_size, **like)
        self.S = torch.nn.Parameter(S)
        self.register_parameter("bias", torch.nn.Parameter(torch.empty(out_channels, **like)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Entries of the weight with the variance that torch's convolutions have, and their bias."""
        if self.S.is_meta:
            return
        inputs = self.in_channels * math.prod(self.kernel_size)
        if self.transposed:  # torch's own rule, which takes the outputs
            inputs = self.out_channels * math.prod(self.kernel_size)
        reset_rule(self.A, self.rule)
        reset_components(self.S, self.A, inputs)
        if self.bias is not None:
            with torch.no_grad():
                self.bias.uniform_(-(inputs**-0.5), inputs**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """([items,] out_channels, *sizes) of ([items,] in_channels, *sizes)."""
        name = f"phm_conv_transpose{self.dims}d" if self.transposed else f"phm_conv{self.dims}d"
        result: Tensor = getattr(functional, name)(x, self.A, self.S, self.bias, **self.options)
        return result

    def to_dense(self) -> torch.nn.Module:
        """torch's layer of the same weights."""
        kind = getattr(torch.nn, f"ConvTranspose{self.dims}d" if self.transposed else f"Conv{self.dims}d")
        like = {"device": self.S.device, "dtype": self.S.dtype}
        sizes_of = (self.in_channels, self.out_channels, self.kernel_size)
        dense: torch.nn.Module = kind(*sizes_of, bias=self.bias is not None, **self.options, **like)
        with torch.no_grad():
            dense.weight.copy_(compose(self.A, self.S, self.transposed))  # type: ignore[operator]
            if self.bias is not None:
                dense.bias.copy_(self.bias)  # type: ignore[operator]
        return dense

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, n={self.n}"
        options = "".join(f", {name}={value}" for name, value in self.options.items())
        return f"{text}{options}, bias={self.bias is not None}, rule={self.rule!r}"


_INTRODUCTION = """{kind} hypercomplex convolution of {what}, with 1/n of the parameters.

    .. math:: {formula}, \\qquad W_t = \\sum_{{i=1}}^n A_i \\otimes S_{{i, \\cdot, \\cdot, t}}

    Args:
        in_channels: channels of x, a multiple of n.
        out_channels: channels of y, a multiple of n.
        kernel_size: an integer, or {dims} of them.
        n: dimension of the algebra.
        {options}: likewise, as of ``torch.nn.{torch}``.
        bias: whether there is a b.
        rule: "learned" for a parameter ``A``, or the name of an :func:`subspan.algebra`, whose rule is a buffer ``A``.
            Either way the weight starts with the variance that ``torch.nn.{torch}`` has.
        groups, padding_mode: 1 and "zeros", as torch's layers have them by default; nothing else is offered.
        device, dtype: of the parameters.

    Raises:
        TypeError, ValueError: an unknown rule, channels that n does not divide, a dimension that the algebra lacks,
            other groups or another padding mode.

    Source:
        Grassucci, Zhang, Comminiello 2022, PHNNs: Lightweight Neural Networks via Parameterized Hypercomplex
        Convolutions. {source}

    >>> import torch, subspan
    >>> layer = subspan.nn.{name}(8, 4, 3, n=4)
    >>> print(tuple(layer.S.shape), sum(p.numel() for p in layer.parameters()))
    {shapes}
    """


def _document(layer: type[_PHMConvolution], source: str) -> None:
    dims, taps = layer.dims, 3**layer.dims
    layer.__doc__ = _INTRODUCTION.format(
        kind="A transposed" if layer.transposed else "A",
        what={1: "sequences", 2: "images", 3: "volumes"}[dims],
        formula=r"y = x *^\top W + b" if layer.transposed else "y = x * W + b",
        dims=dims,
        options="stride, padding, output_padding, dilation" if layer.transposed else "stride, padding, dilation",
        torch=f"ConvTranspose{dims}d" if layer.transposed else f"Conv{dims}d",
        name=layer.__name__,
        source=source,
        shapes=f"(4, 1, 2{', 3' * dims}) {64 + 8 * taps + 4}",
    )


def _check_offered(op: str, groups: int, padding_mode: str) -> None:
    """Options of torch's layers that these do not have are taken at torch's defaults only."""
    if groups != 1:
        raise ValueError(f"{op}: groups: expected 1, got {groups!r}: a sum of Kronecker products has one group")
    if padding_mode != "zeros":
        remedy = "for others torch.nn.functional.pad before the layer, and padding=0"
        raise ValueError(f"{op}: padding_mode: expected 'zeros', got {padding_mode!r}: {remedy}")


class _Convolution(_PHMConvolution):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        n: int,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        bias: bool = True,
        *,
        rule: str = "learned",
        groups: int = 1,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _check_offered(type(self).__name__, groups, padding_mode)
        options = {"stride": stride, "padding": padding, "dilation": dilation}
        super().__init__(in_channels, out_channels, kernel_size, n, options, bias, rule, device, dtype)


class _Transposed(_PHMConvolution):
    transposed = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        n: int,
        stride: Size = 1,
        padding: Size = 0,
        output_padding: Size = 0,
        dilation: Size = 1,
        bias: bool = True,
        *,
        rule: str = "learned",
        groups: int = 1,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _check_offered(type(self).__name__, groups, padding_mode)
        options = {"stride": stride, "padding": padding, "output_padding": output_padding, "dilation": dilation}
        super().__init__(in_channels, out_channels, kernel_size, n, options, bias, rule, device, dtype)


class PHMConv1d(_Convolution):
    dims = 1


class PHMConv2d(_Convolution):
    dims = 2


class PHMConv3d(_Convolution):
    dims = 3


class PHMConvTranspose1d(_Transposed):
    dims = 1


class PHMConvTranspose2d(_Transposed):
    dims = 2


class PHMConvTranspose3d(_Transposed):
    dims = 3


_document(PHMConv1d, "HyperNets' ``PHConv1D`` has A and S as ``A`` and ``F``, and a bias that it does not add.")
_document(PHMConv2d, "HyperNets' ``PHConv2d`` has A and S as ``A`` and ``F``, and a bias that it does not add.")
_document(PHMConv3d, "HyperNets' ``PHConv3D`` has A and S as ``A`` and ``F``, and a bias that it does not add.")
_document(PHMConvTranspose1d, "The adjoint of a convolution with A and S transposed.")
_document(PHMConvTranspose2d, "The adjoint of a convolution with A and S transposed.")
_document(PHMConvTranspose3d, "The adjoint of a convolution with A and S transposed.")
