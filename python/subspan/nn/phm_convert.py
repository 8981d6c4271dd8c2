"""Checkpoints of other repositories' hypercomplex layers as modules of this library.

Layers of the same name compute different things: some multiply by the transposed rule, which conjugates quaternions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .phm import PHMLinear, QuaternionLinear
from .phm_adapters import CompacterAdapter
from .phm_conv import PHMConv1d, PHMConv2d, PHMConv3d

State = Mapping[str, Any]
_CONVOLUTIONS = {1: PHMConv1d, 2: PHMConv2d, 3: PHMConv3d}


class _Reader:
    """The entries of a checkpoint below a prefix, each of which must be read."""

    def __init__(self, op: str, state: State, prefix: str) -> None:
        if not isinstance(state, Mapping):
            raise TypeError(f"{op}: state: expected a mapping of names to arrays, got {type(state).__name__}")
        self.op = op
        self.entries = {
            name[len(prefix) :].removesuffix(":0"): torch.as_tensor(value).detach()
            for name, value in state.items()
            if name.startswith(prefix)
        }
        self.read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def take(self, name: str) -> Tensor:
        if name not in self.entries:
            got = ", ".join(self.entries) or "none"
            raise ValueError(f"{self.op}: state: expected an entry {name!r} below the prefix, got {got}")
        self.read.add(name)
        return self.entries[name]

    def maybe(self, name: str) -> Tensor | None:
        return self.take(name) if name in self else None

    def sequence(self, name: str) -> list[Tensor]:
        """Entries name.0, name.1, ... of a ParameterList."""
        found: list[Tensor] = []
        while f"{name}.{len(found)}" in self:
            found.append(self.take(f"{name}.{len(found)}"))
        return found

    def finish(self, unused: tuple[str, ...] = ()) -> None:
        rest = [name for name in self.entries if name not in self.read and name not in unused]
        if rest:
            raise ValueError(f"{self.op}: state: expected no other entries, got {', '.join(rest)}")


@torch.no_grad()
def _fill(module: Any, **values: Tensor | None) -> Any:
    for name, value in values.items():
        target = getattr(module, name)
        if (value is None) != (target is None):
            raise ValueError(f"{type(module).__name__}: {name}: expected a bias for every layer, or none")
        if value is not None:
            if value.shape != target.shape:
                expected, got = tuple(target.shape), tuple(value.shape)
                raise ValueError(f"{type(module).__name__}: {name}: expected shape {expected}, got {got}")
            target.copy_(value)
    return module


def _linear(A: Tensor, S: Tensor, bias: Tensor | None) -> PHMLinear:
    (n, _, _), (_, rows, columns) = A.shape, S.shape
    layer = PHMLinear(n * columns, n * rows, n, bias is not None, device=S.device, dtype=S.dtype)
    return _fill(layer, A=A, S=S, bias=bias)  # type: ignore[no-any-return]


def from_phcgnn(state: State, prefix: str = "") -> PHMLinear:
    r"""A layer of phc-gnn, of either of its classes.

    .. math:: \texttt{PHMLinear\_Old}: y = x \Big(\sum_i C_i \otimes W_i\Big)^\top + b, \qquad
        \texttt{PHMLinear}: y = x \sum_i C_i \otimes W_i + b

    The second has the transposed rule: its table of quaternions gives conj(w) x, which the layer keeps.

    Args:
        state: a state dict with ``phm_rule``, ``W`` and ``b``, or with lists ``phm_rule.0``, ``W.0``, ``b.0`` ...
        prefix: of the layer's names.

    Returns:
        A :class:`PHMLinear` of the same results.

    Raises:
        TypeError, ValueError: no such layer, entries that are not of one.

    Source:
        bayer-science-for-a-better-life/phc-gnn, ``phc/hypercomplex/layers.py``.

    >>> import torch, subspan
    >>> state = {"phm_rule": torch.randn(2, 2, 2), "W": torch.randn(2, 3, 4), "b": torch.zeros(8)}
    >>> print(subspan.nn.from_phcgnn(state))
    PHMLinear(in_features=6, out_features=8, n=2, bias=True, rule='learned')
    """
    reader = _Reader("from_phcgnn", state, prefix)
    if "W.0" in reader:
        A, S = torch.stack(reader.sequence("phm_rule")), torch.stack(reader.sequence("W"))
        parts = reader.sequence("b")
        bias = torch.cat(parts) if parts else None
    else:
        A, S, bias = reader.take("phm_rule").mT, reader.take("W").mT, reader.maybe("b")
    reader.finish()
    return _linear(A, S, bias)


def _rule(reader: _Reader, prefix: str, shared: Mapping[str, Tensor]) -> Tensor:
    """Transposed, of its factors where it is factorized."""
    for source in (reader.entries, shared):
        at = prefix if source is reader.entries else ""
        names = f"{at}phm_rule", f"{at}phm_rule_left", f"{at}phm_rule_right"
        if names[0] in source:
            reader.read.add(names[0])
            return source[names[0]].mT
        if names[1] in source:
            reader.read.update(names[1:])
            return torch.bmm(source[names[1]], source[names[2]]).mT
    return reader.take(f"{prefix}phm_rule")


def _components(reader: _Reader, prefix: str, shared: Mapping[str, Tensor], side: str) -> tuple[Tensor, ...]:
    """(S,) or (U, V)."""
    own = [f"{prefix}{name}" for name in ("W_left", "W_right", "W")]
    common = [f"W_{side}_left", f"W_{side}_right", f"W_{side}"]
    for source, (left, right, whole) in ((reader.entries, own), (shared, common)):
        if left in source:
            reader.read.update((left, right))
            return source[right].mT, source[left].mT
        if whole in source:
            reader.read.add(whole)
            return (source[whole].mT,)
    return (reader.take(own[2]),)


def _adapter(
    reader: _Reader, sides: tuple[str, str], shared: Mapping[str, Tensor], activation: str, residual: bool, scale: float
) -> CompacterAdapter:
    down, up = (
        (_rule(reader, at, shared), *_components(reader, at, shared, side), reader.maybe(f"{at}b"))
        for at, side in zip(sides, ("down", "up"), strict=True)
    )
    A, bias, last = down[0], down[-1], up[-1]
    assert A is not None and down[1] is not None and down[-2] is not None and up[1] is not None
    n, hidden, features = len(A), len(A) * down[1].shape[-2], len(A) * down[-2].shape[-1]
    up = (up[0], up[1] * scale, *up[2:-1], None if last is None else last * scale)
    adapter = CompacterAdapter(
        features,
        hidden,
        n,
        None if len(down) == 3 else down[1].shape[-1],
        activation,
        residual=residual,
        shared_rule=bool(torch.equal(A, up[0])),  # type: ignore[arg-type]
        bias=bias is not None,
        device=down[1].device,
        dtype=down[1].dtype,
    )
    names = ("A", "S", "bias") if len(down) == 3 else ("A", "U", "V", "bias")
    for side, values in (("down", down), ("up", up)):
        _fill(adapter, **{f"{side}_{name}": value for name, value in zip(names, values, strict=True)})
    return adapter


def from_compacter(
    state: State, prefix: str = "", *, activation: str = "gelu_tanh", residual: bool = False
) -> PHMLinear | CompacterAdapter:
    r"""A layer or an adapter of the Compacter repository.

    .. math:: y = x \sum_i C_i \otimes W_i + b

    The factors of a factorized rule are multiplied: the layer's rule is free of them. Those of W are multiplied in a
    layer, and kept in an adapter.

    Args:
        state: a state dict of a ``PHMLinear``, with ``phm_rule`` or its ``_left`` and ``_right``, and ``W`` or
            ``W_left`` and ``W_right``; or of a ``HyperComplexAdapter``, with ``down_sampler.`` and ``up_sampler.``
            before these.
        prefix: of the layer's or the adapter's names.
        activation: of an adapter, as :class:`CompacterAdapter` names it; ``gelu_new`` is "gelu_tanh".
        residual: whether an adapter is to add its input, which this repository does outside of it.

    Returns:
        A :class:`PHMLinear`, or a :class:`CompacterAdapter` with a shared rule where both are equal.

    Raises:
        TypeError, ValueError: no such layer, entries that are not of one.

    Source:
        rabeehk/compacter, ``seq2seq/hypercomplex/layers.py`` and ``seq2seq/adapters/adapter_modeling.py``.

    >>> import torch, subspan
    >>> state = {"phm_rule": torch.randn(2, 2, 2), "W_left": torch.randn(2, 3, 1), "W_right": torch.randn(2, 1, 4)}
    >>> print(subspan.nn.from_compacter(state))
    PHMLinear(in_features=6, out_features=8, n=2, bias=False, rule='learned')
    """
    reader = _Reader("from_compacter", state, prefix)
    layer: PHMLinear | CompacterAdapter
    if any(name.startswith("down_sampler.") for name in reader.entries):
        layer = _adapter(reader, ("down_sampler.", "up_sampler."), {}, activation, residual, 1.0)
    else:
        A, components = _rule(reader, "", {}), _components(reader, "", {}, "")
        layer = _linear(A, torch.bmm(*components) if len(components) == 2 else components[0], reader.maybe("b"))
    reader.finish()
    return layer


def from_adapters(
    state: State,
    prefix: str = "",
    *,
    shared: State | None = None,
    activation: str = "gelu",
    residual: bool = True,
    scaling: float = 1.0,
) -> CompacterAdapter:
    r"""An adapter of adapter-hub's ``adapters`` whose layers are ``PHMLayer``.

    .. math:: y = x + s\, \Big(f\Big(x \sum_i C_i \otimes W_i + b\Big) \sum_i C'_i \otimes W'_i + c\Big)

    Args:
        state: a state dict of an ``Adapter`` without layer norms and gates, with ``adapter_down.0.`` and
            ``adapter_up.`` before ``phm_rule``, ``W`` or ``W_left`` and ``W_right``, and ``b``.
        prefix: of the adapter's names.
        shared: the model's ``shared_parameters[name]``, for what is not in the state: ``phm_rule`` or its ``_left``
            and ``_right``, ``W_down_left`` ... Adapters of one model share the rule again where it is assigned.
        activation: as :class:`CompacterAdapter` names it; ``swish`` is "silu".
        residual: whether x is added: where the package is given x as the residual.
        scaling: s, of the configuration. It multiplies the factors of the second layer, as does a learned one of the
            state.

    Returns:
        A :class:`CompacterAdapter`, with a shared rule where both are equal.

    Raises:
        TypeError, ValueError: no such adapter, entries that are not of one, one scaling for each channel.

    Source:
        adapter-hub/adapters, ``methods/modeling.py``.

    >>> import torch, subspan
    >>> rule = {"phm_rule": torch.randn(2, 2, 2)}
    >>> state = {"adapter_down.0.W": torch.randn(2, 6, 1), "adapter_up.W": torch.randn(2, 1, 6)}
    >>> print(subspan.nn.from_adapters(state, shared=rule)(torch.randn(3, 12)).shape)
    torch.Size([3, 12])
    """
    reader = _Reader("from_adapters", state, prefix)
    learned = reader.maybe("scaling")
    if learned is not None:
        if learned.numel() != 1:
            raise ValueError(f"from_adapters: scaling: expected one number, got shape {tuple(learned.shape)}")
        scaling = float(learned)
    common = {name: torch.as_tensor(value).detach() for name, value in (shared or {}).items()}
    adapter = _adapter(reader, ("adapter_down.0.", "adapter_up."), common, activation, residual, scaling)
    reader.finish()
    return adapter


def from_hypernets(state: State, prefix: str = "", **options: Any) -> torch.nn.Module:
    r"""A layer of HyperNets.

    .. math:: y = x \Big(\sum_i A_i \otimes S_i\Big)^\top + b, \qquad y = x * \sum_i A_i \otimes F_i

    Its convolutions never add their ``bias``, so that the result has none.

    Args:
        state: a state dict of a ``PHMLinear``, with ``a`` and ``s`` or ``A`` and ``S``, or of a ``PHConv1D``,
            ``PHConv2d`` or ``PHConv3D``, with ``A`` and ``F``.
        prefix: of the layer's names.
        options: stride, padding and dilation of a convolution.

    Returns:
        A :class:`PHMLinear`, or a :class:`PHMConv1d`, :class:`PHMConv2d` or :class:`PHMConv3d`.

    Raises:
        TypeError, ValueError: no such layer, entries that are not of one.

    Source:
        eleGAN23/HyperNets, ``layers/ph_layers.py`` and ``image-classification/hypercomplex_layers.py``.

    >>> import torch, subspan
    >>> state = {"A": torch.randn(2, 2, 2), "F": torch.randn(2, 3, 4, 3, 3), "bias": torch.randn(6)}
    >>> print(subspan.nn.from_hypernets(state, padding=1)(torch.randn(1, 8, 5, 5)).shape)
    torch.Size([1, 6, 5, 5])
    """
    reader = _Reader("from_hypernets", state, prefix)
    if "F" in reader:
        A, S = reader.take("A"), reader.take("F")
        reader.finish(("bias",))
        return _convolution("from_hypernets", S, None, options, A=A)
    lower = "a" in reader
    A, S, bias = reader.take("a" if lower else "A"), reader.take("s" if lower else "S"), reader.maybe("bias")
    reader.finish()
    return _linear(A, S, bias)


def _convolution(op: str, S: Tensor, bias: Tensor | None, options: Mapping[str, Any], **rule: Any) -> torch.nn.Module:
    dims = S.ndim - 3
    if dims not in _CONVOLUTIONS:
        raise ValueError(f"{op}: state: expected kernels of one to three dimensions, got shape {tuple(S.shape)}")
    n, rows, columns, *kernel = S.shape
    kind, name = _CONVOLUTIONS[dims], rule.pop("rule", "learned")
    like: dict[str, Any] = {"device": S.device, "dtype": S.dtype}
    layer = kind(n * columns, n * rows, tuple(kernel), n, bias=bias is not None, rule=name, **options, **like)
    return _fill(layer, S=S, bias=bias, **rule)  # type: ignore[no-any-return]


def from_speechbrain(state: State, prefix: str = "", **options: Any) -> torch.nn.Module:
    r"""A quaternion layer of SpeechBrain, or of Orkis' Pytorch-Quaternion-Neural-Networks.

    .. math:: y = w\, x + b, \qquad w = r + i\, \mathbf{i} + j\, \mathbf{j} + k\, \mathbf{k}

    Args:
        state: a state dict of a ``QLinear``, ``QConv1d`` or ``QConv2d`` that is no spinor layer and has one group, with
            ``r_weight``, ``i_weight``, ``j_weight``, ``k_weight`` and, of SpeechBrain where it is trained, ``bias``.
            Orkis' transposed convolutions, whose entries have these names too, are no such layer: they are refused
            where their bias or an option shows them, and as wide as deep and without a bias nothing does.
        prefix: of the layer's names.
        options: stride, padding and dilation of a convolution.

    Returns:
        A :class:`QuaternionLinear`, or a :class:`PHMConv1d` or :class:`PHMConv2d` with the rule of quaternions.
        SpeechBrain's convolutions pad by reflection themselves and have channels last; that is the caller's.

    Raises:
        TypeError, ValueError: no such layer, entries that are not of one.

    Source:
        speechbrain/speechbrain, ``nnet/quaternion_networks/q_ops.py``.

    >>> import torch, subspan
    >>> state = {f"{part}_weight": torch.randn(3, 2) for part in "rijk"}
    >>> print(subspan.nn.from_speechbrain(state)(torch.randn(5, 12)).shape)
    torch.Size([5, 8])
    """
    reader = _Reader("from_speechbrain", state, prefix)
    S, bias = torch.stack([reader.take(f"{part}_weight") for part in "rijk"]), reader.maybe("bias")
    reader.finish()
    if S.ndim > 3:
        transposed = bias is not None and len(bias) == 4 * S.shape[2] != 4 * S.shape[1]
        if transposed or "output_padding" in options or options.pop("transposed", False):
            expected = "a convolution, whose weights are (out / 4, in / 4, ...) and whose bias has out entries"
            raise ValueError(f"from_speechbrain: state: expected {expected}, got a transposed convolution")
        return _convolution("from_speechbrain", S, bias, options, rule="quaternion")
    S = S.mT
    like: dict[str, Any] = {"device": S.device, "dtype": S.dtype}
    layer = QuaternionLinear(4 * S.shape[-1], 4 * S.shape[-2], bias is not None, **like)
    return _fill(layer, S=S, bias=bias)  # type: ignore[no-any-return]


def from_tensorflow_phm(state: State, prefix: str = "") -> PHMLinear:
    r"""A layer of the first PHM code, in TensorFlow, which is not the equation of its paper.

    .. math:: y = x H, \qquad H = \sum_i (e_i\, c_i^\top) \otimes K_i, \qquad
        c_{i, p} = \sum_q A_{i, p, q} \text{ or } \sum_q A_{i, p, q}\, \sigma(B_{i, p, q}) \text{ (dual)}

    Components of x meet one K_i each, the split of ``random`` (k, n l): the layer's rule is that of
    :func:`subspan.phm_linear_rank1`, with rows e_i. Its quaternion layer gives conj(w) x; the result has the conjugate
    components and gives w x.

    Args:
        state: variables by name, with ``random``, ``A`` (n, 1, n, n) and perhaps ``B``, or with ``quarternion``; a
            trailing ``:0`` is ignored. Arrays or tensors.
        prefix: of the layer's names, such as ``"Rffn/"``.

    Returns:
        A :class:`PHMLinear` without bias, or a :class:`QuaternionLinear`. In training all entries of the former's rule
        are free.

    Raises:
        TypeError, ValueError: no such layer, entries that are not of one.

    Source:
        astonzhang/Parameterization-of-Hypercomplex-Multiplications, ``layers/qlib.py``.

    >>> import torch, subspan
    >>> state = {"random:0": torch.randn(3, 8), "A:0": torch.randn(4, 1, 4, 4)}
    >>> print(subspan.nn.from_tensorflow_phm(state))
    PHMLinear(in_features=12, out_features=8, n=4, bias=False, rule='learned')
    """
    reader = _Reader("from_tensorflow_phm", state, prefix)
    if "quarternion" in reader:
        kernel = reader.take("quarternion")
        reader.finish()
        S = torch.stack(kernel.chunk(4, -1)).mT * torch.tensor([1, -1, -1, -1]).to(kernel).reshape(4, 1, 1)
        layer = QuaternionLinear(4 * S.shape[-1], 4 * S.shape[-2], False, device=S.device, dtype=S.dtype)
        return _fill(layer, S=S)  # type: ignore[no-any-return]
    kernel, A, dual = reader.take("random"), reader.take("A"), reader.maybe("B")
    reader.finish()
    columns = (A if dual is None else A * dual.sigmoid()).sum(-1).squeeze(1)  # (n, n): c_i
    rule = columns[:, :, None] * torch.eye(len(A)).to(columns)[:, None, :]
    return _linear(rule, torch.stack(kernel.chunk(len(A), -1)).mT, None)
