"""Hypercomplex LSTM."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .. import _check
from ..composite.factor import without_autocast
from ..ops.phm import phm_weight
from .phm_parameters import SharesRules, add_rule, check_sizes, reset_components, reset_rule

States = tuple[Tensor, Tensor]


class PHMLSTM(SharesRules):
    r"""An LSTM whose weights are sums of Kronecker products, with 1/n of the parameters: composed once per sequence.

    .. math:: (i, f, g, o)_t = W x_t + R\, h_{t-1} + b, \qquad
        W_{\text{gate}} = \sum_{i=1}^n A_i \otimes S_{\text{gate}, i}, \quad
        R_{\text{gate}} = \sum_{i=1}^n A_i \otimes S'_{\text{gate}, i}

    The interface, the gates and their order are those of ``torch.nn.LSTM``, whose kernel runs the steps. For each layer
    and direction ``A_l0`` is (n, n, n), shared by its gates, ``S_ih_l0`` is (4, n, hidden_size / n, inputs / n) and
    ``S_hh_l0`` (4, n, hidden_size / n, hidden_size / n); biases as there.

    Args:
        input_size: features of x, a multiple of n.
        hidden_size: features of the state, a multiple of n.
        n: dimension of the algebra.
        num_layers, bias, batch_first, dropout, bidirectional: as of ``torch.nn.LSTM``.
        proj_size: 0. Projected states are not offered.
        rule: "learned", or the name of an :func:`subspan.algebra`, whose rule is a buffer.
        device, dtype: of the parameters.

    Raises:
        TypeError, ValueError: an unknown rule, sizes that n does not divide, a dimension that the algebra lacks, a
            projection.

    Cost:
        That of the LSTM, and 2 n flops for every entry of the weights, for a whole sequence; published code does this
        in every step. The gradient of the weights is reduced to those of S and A once as well. ``torch.compile`` breaks
        its graph at the steps in single precision on the CPU, as it does for ``torch.nn.LSTM``.

    Source:
        Zhang et al. 2021, Beyond Fully-Connected Layers with Quaternions, PHM-LSTM; the quaternion LSTM of Parcollet et
        al. 2019 with ``rule="quaternion"``.

    >>> import torch, subspan
    >>> layer = subspan.nn.PHMLSTM(8, 12, n=4)
    >>> y, (h, c) = layer(torch.randn(5, 2, 8))
    >>> print(tuple(y.shape), tuple(h.shape))
    (5, 2, 12) (1, 2, 12)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        n: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        *,
        rule: str = "learned",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        op = type(self).__name__
        check_sizes(op, n, input_size=input_size, hidden_size=hidden_size)
        self.input_size, self.hidden_size, self.n, self.rule = input_size, hidden_size, n, rule
        self.num_layers, self.bias = _check.count(op, "num_layers", num_layers), bias
        self.batch_first, self.bidirectional = batch_first, bidirectional
        self.dropout = _check.number(op, "dropout", dropout)
        if not 0 <= self.dropout <= 1:
            raise ValueError(f"{op}: dropout: expected a probability, got {dropout}")
        if proj_size != 0:
            remedy = "a PHMLinear after the layer projects its outputs, though not the state that recurs"
            raise ValueError(f"{op}: proj_size: expected 0, got {proj_size!r}: {remedy}")
        self.proj_size = 0
        like: dict[str, Any] = {"device": device, "dtype": dtype}
        for name, inputs in self._directions():
            add_rule(self, f"A_{name}", rule, n, like)
            for letters, size in (("ih", inputs), ("hh", hidden_size)):
                S = torch.empty(4, n, hidden_size // n, size // n, **like)
                self.register_parameter(f"S_{letters}_{name}", torch.nn.Parameter(S))
                if bias:
                    b = torch.nn.Parameter(torch.empty(4 * hidden_size, **like))
                    self.register_parameter(f"bias_{letters}_{name}", b)
        self.reset_parameters()

    def _directions(self) -> list[tuple[str, int]]:
        """Names of the layers' directions in torch's order, and how many features each takes."""
        directions = ("", "_reverse") if self.bidirectional else ("",)
        wide = self.hidden_size * len(directions)
        return [(f"l{i}{d}", wide if i else self.input_size) for i in range(self.num_layers) for d in directions]

    def reset_parameters(self) -> None:
        """Entries of the weights with variance 1 / (3 hidden_size), as torch.nn.LSTM has them, and its biases."""
        for name, _ in self._directions():
            A: Tensor = getattr(self, f"A_{name}")
            if A.is_meta:
                return
            reset_rule(A, self.rule)
            for letters in ("ih", "hh"):
                reset_components(getattr(self, f"S_{letters}_{name}"), A, self.hidden_size)
                if self.bias:
                    limit = 1 / math.sqrt(self.hidden_size)
                    torch.nn.init.uniform_(getattr(self, f"bias_{letters}_{name}"), -limit, limit)

    def flatten_parameters(self) -> None:
        """Nothing, for code that calls it of torch.nn.LSTM: the weights are composed anew for every sequence."""

    def weights(self) -> list[Tensor]:
        """All weights and biases as torch.nn.LSTM has them, in its order."""
        flat: list[Tensor] = []
        for name, _ in self._directions():
            A = getattr(self, f"A_{name}")
            for letters in ("ih", "hh"):
                W = phm_weight(A, getattr(self, f"S_{letters}_{name}"))
                flat.append(W.reshape(-1, W.shape[-1]))
            if self.bias:
                flat += [getattr(self, f"bias_{letters}_{name}").to(flat[-1].dtype) for letters in ("ih", "hh")]
        return flat

    def to_dense(self) -> torch.nn.LSTM:
        """torch's layer of the same weights."""
        some = self.weights()[0]
        dense = torch.nn.LSTM(
            self.input_size,
            self.hidden_size,
            self.num_layers,
            self.bias,
            self.batch_first,
            self.dropout,
            self.bidirectional,
            device=some.device,
            dtype=some.dtype,
        )
        with torch.no_grad():
            for parameter, value in zip(dense.parameters(), self.weights(), strict=True):
                parameter.copy_(value)
        return dense

    def forward(self, x: Any, hx: States | None = None) -> tuple[Any, States]:
        """x (steps, batch, input_size), (batch, steps, input_size) with batch_first, (steps, input_size) or a
        PackedSequence; and the states (layers directions, [batch,] hidden_size), zero unless given. The states of the
        last layer in every step, and the last states (h, c)."""
        packed = isinstance(x, PackedSequence)
        data = x.data if packed else x
        if not _check.is_torch(data):
            raise TypeError(f"PHMLSTM: x: expected a tensor or a PackedSequence, got {type(x).__name__}")
        _check.matrix("PHMLSTM", "x", data, 2)
        if data.shape[-1] != self.input_size or data.ndim > (2 if packed else 3):
            expected = f"2 or 3 dimensions, the last of {self.input_size}"
            raise ValueError(f"PHMLSTM: x: expected {expected}, got shape {tuple(data.shape)}")
        if hx is not None and (len(hx) != 2 or not all(_check.is_torch(state) for state in hx)):
            raise TypeError(f"PHMLSTM: hx: expected a pair of tensors (h, c), got {type(hx).__name__} of {len(hx)}")
        result: tuple[Any, States] = _steps(data, self, x, hx)
        return result

    def extra_repr(self) -> str:
        text = f"{self.input_size}, {self.hidden_size}, n={self.n}, num_layers={self.num_layers}, bias={self.bias}"
        more = f"batch_first={self.batch_first}, dropout={self.dropout}, bidirectional={self.bidirectional}"
        return f"{text}, {more}, rule={self.rule!r}"


@without_autocast
def _steps(data: Tensor, layer: PHMLSTM, x: Any, hx: States | None) -> tuple[Any, States]:
    flat = layer.weights()
    data, packed = data.to(flat[0].dtype), isinstance(x, PackedSequence)
    single = data.ndim == 2 and not packed
    batch_first = layer.batch_first and not single
    if single:
        data = data.unsqueeze(1)
    items = int(x.batch_sizes[0]) if packed else data.shape[0 if batch_first else 1]
    shape = (layer.num_layers * (2 if layer.bidirectional else 1), items, layer.hidden_size)
    if hx is None:
        h = c = data.new_zeros(shape)
    else:
        h, c = (state.to(data.dtype).unsqueeze(1) if single else state.to(data.dtype) for state in hx)
        for name, state in (("h", h), ("c", c)):
            if tuple(state.shape) != shape:
                got = f"got shape {tuple(state.shape)}"
                raise ValueError(f"PHMLSTM: {name}: expected {shape} for x {tuple(data.shape)}, {got}")
        if packed and x.sorted_indices is not None:
            h, c = h[:, x.sorted_indices], c[:, x.sorted_indices]
    settings = (layer.bias, layer.num_layers, layer.dropout, layer.training, layer.bidirectional)
    if packed:
        y, h, c = _lstm(data, x.batch_sizes, (h, c), flat, *settings)
        if x.unsorted_indices is not None:
            h, c = h[:, x.unsorted_indices], c[:, x.unsorted_indices]
        return PackedSequence(y, x.batch_sizes, x.sorted_indices, x.unsorted_indices), (h, c)
    y, h, c = _lstm(data, (h, c), flat, *settings, batch_first)
    return (y.squeeze(1), (h.squeeze(1), c.squeeze(1))) if single else (y, (h, c))


def _lstm(*arguments: Any) -> Any:
    """torch's. oneDNN's, which takes single precision on the CPU, has no derivative within a compiled graph."""
    data = arguments[0]
    if torch.compiler.is_compiling() and data.device.type == "cpu" and data.dtype != torch.float64:
        return _lstm_apart(*arguments)
    return torch.lstm(*arguments)


def _uncompiled(*arguments: Any) -> Any:
    return torch.lstm(*arguments)


_lstm_apart: Any = torch.compiler.disable(_uncompiled)
