"""The torch half of the routing: autograd Function, library op, fake kernel, vmap rule and eager bypass of an op."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch.compiler import is_compiling

from ._check import COMPUTE_DTYPE, DISABLED

if TYPE_CHECKING:
    from ._route import Op

_LIBRARY = torch.library.Library("subspan", "DEF")
_PLAIN = (torch.Tensor, torch.nn.Parameter)

# Private names with public fallbacks. Without the first two every call takes the registered op, which is slower but
# right in every mode; without the third, forward-mode AD is found by asking each tensor.
_functorch_active: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)
_dispatch_modes: Callable[[], int] = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 1)


_batched, _legacy_batched = (
    getattr(torch._C._functorch, name, lambda _: True) for name in ("is_batchedtensor", "is_legacy_batchedtensor")
)


def is_batched(tensor: torch.Tensor) -> bool:
    """Whether a tensor stands for many, as in vmap and in batched gradients."""
    return not is_compiling() and (_batched(tensor) or _legacy_batched(tensor))


def _forward_ad_active(tensors: tuple[Any, ...]) -> bool:
    if hasattr(forward_ad, "_current_level"):
        return bool(forward_ad._current_level >= 0)
    return any(isinstance(t, torch.Tensor) and forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def _traced() -> bool:
    """Whether a tracer, a functorch transform or a dispatch mode watches, so that the dispatcher must see the call."""
    return is_compiling() or _functorch_active() or _dispatch_modes() != 0


def values_available(tensor: torch.Tensor) -> bool:
    """Whether reading values of a CPU tensor gives numbers, and not a tracer's stand-ins."""
    return not _traced() and type(tensor) in _PLAIN


def untransformed(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether these are tensors as torch has them, on any device, and no tracer, transform or mode watches."""
    return not _traced() and not _forward_ad_active(tuple(tensors)) and all(type(t) in _PLAIN for t in tensors)


def plain(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether these are eager CPU tensors that no autograd, transform or mode has to see."""
    if DISABLED or _traced() or _forward_ad_active(tuple(tensors)):
        return False
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return False
    return all(type(t) in _PLAIN and t.is_cpu and not t.is_neg() for t in tensors)


def torch_entry(op: Op, otherwise: Callable[..., Any]) -> Callable[..., Any]:
    """The function (wanted, *tensors, *parameters) -> the first `wanted` outputs; `otherwise` serves other arrays."""
    arity, kernel, shapes = len(op.inputs), op.kernel, op.shapes
    computed = [kind == "compute" for kind in op.outputs]
    missing = [(None,) * (len(op.outputs) - wanted + len(op.saves)) for wanted in range(len(op.outputs) + 1)]
    _define(op)
    function, eager = _function(op), _eager_function(op)
    # torch.autograd.Function.apply inspects the signature at every call, about 11 us; its base class does not.
    fast_apply = getattr(super(torch.autograd.Function, eager), "apply", eager.apply)
    general = _general_entry(op, function, otherwise)
    functorch_active, dispatch_modes = _functorch_active, _dispatch_modes
    is_grad_enabled, get_num_threads = torch.is_grad_enabled, torch.get_num_threads

    # Every line of this function is paid by every call on a small array.
    def entry(wanted: int, *args: Any) -> Any:
        if is_compiling() or functorch_active() or dispatch_modes() or forward_ad._current_level >= 0:
            return general(wanted, args)
        tensors = args[:arity]
        differentiate = False
        for t in tensors:
            if t is not None:
                if type(t) not in _PLAIN or not t.is_cpu or t.is_neg():
                    return general(wanted, args)
                if t.requires_grad:
                    differentiate = True
        if differentiate and is_grad_enabled():
            return fast_apply(wanted, *args)
        first = args[0]
        own = first.dtype
        compute = COMPUTE_DTYPE[own]
        all_shapes = shapes(*args)
        # new_empty keeps the device, whatever torch's default is.
        outputs = [
            first.new_empty(all_shapes[i])
            if computed[i] and compute is own
            else first.new_empty(all_shapes[i], dtype=compute if computed[i] else torch.int32)
            for i in range(wanted)
        ]
        kernel(*tensors, *outputs, *missing[wanted], *args[arity:], get_num_threads())
        return outputs

    if DISABLED or not hasattr(forward_ad, "_current_level"):
        return lambda wanted, *args: general(wanted, args)
    return entry


def _general_entry(op: Op, function: Any, otherwise: Callable[..., Any]) -> Callable[[int, tuple[Any, ...]], Any]:
    """Everything but plain eager CPU tensors."""
    from . import _route

    arity = len(op.inputs)

    def general(wanted: int, args: tuple[Any, ...]) -> Any:
        tensors, first = args[:arity], args[0]
        if not isinstance(first, torch.Tensor):
            return otherwise(wanted, args)
        if _forward_ad_active(tensors):
            raise NotImplementedError(f"{op.public or op.name}: forward-mode AD is not supported; use reverse mode")
        if DISABLED or not (first.is_cpu or first.is_meta or _route.cuda_kernel_serves(op.name, *args)):
            return op.composite(*args)[:wanted]
        if not op.differentiable and is_compiling():  # inside a backward, where no Function can be traced
            outputs = op.op(*args)
            return outputs[:wanted] if isinstance(outputs, tuple) else (outputs,)
        return function.apply(*args)[:wanted]

    return general


def _run_kernel_saving(op: Op, wanted: int, args: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Allocates and fills the first `wanted` outputs, and the saved arrays (None: one that does not apply)."""
    arity = len(op.inputs)
    tensors, parameters = args[:arity], args[arity:]
    first = tensors[0]
    compute = COMPUTE_DTYPE[first.dtype]
    shapes = op.shapes(*args)
    kinds = op.outputs
    outputs = tuple(
        [first.new_empty(shapes[i], dtype=compute if kinds[i] == "compute" else torch.int32) for i in range(wanted)]
    )
    saved = tuple(
        [None if shape is None else first.new_empty(shape, dtype=compute) for shape in op.shapes_of_saved(*args)]
    )
    results = (*outputs, *(None,) * (len(op.outputs) - wanted), *saved)
    if first.is_cuda:
        assert op.cuda_kernel is not None
        op.cuda_kernel(*tensors, *results, *parameters, torch.cuda.current_stream(first.device).cuda_stream)
    else:
        op.kernel(*tensors, *results, *parameters, torch.get_num_threads())
    return outputs, saved


def _library_kernel(op: Op) -> Callable[..., Any]:
    """All outputs and saved arrays as tensors; a saved array that does not apply is empty, with the batch shape."""

    arity = len(op.inputs)

    def kernel(*args: Any) -> Any:
        # DLPack does not know of lazy negation.
        args = tuple(t if t is None else t.resolve_neg() for t in args[:arity]) + args[arity:]
        outputs, saved = _run_kernel_saving(op, len(op.outputs), args)
        nothing = (*args[0].shape[: args[0].ndim - op.inputs[0][1]], 0)
        return outputs + tuple(args[0].new_empty(nothing, dtype=outputs[0].dtype) if s is None else s for s in saved)

    return kernel


def _fake_kernel(op: Op) -> Callable[..., Any]:
    def fake(*args: Any) -> Any:
        first = args[0]
        compute = COMPUTE_DTYPE[first.dtype]
        outputs = [
            first.new_empty(shape, dtype=compute if kind == "compute" else torch.int32)
            for shape, kind in zip(op.shapes(*args), op.outputs, strict=True)
        ]
        nothing = (*first.shape[: first.ndim - op.inputs[0][1]], 0)
        saved = [first.new_empty(nothing if s is None else s, dtype=compute) for s in op.shapes_of_saved(*args)]
        return tuple(outputs + saved)

    return fake


def _define(op: Op) -> None:
    """Registers torch.ops.subspan.<name>: kernel, shapes and gradient."""
    optional = [" " if i == 0 else "? " for i in range(len(op.inputs))]
    tensors = ", ".join(f"Tensor{mark}{name}" for mark, (name, _) in zip(optional, op.inputs, strict=True))
    results = ", ".join(["Tensor"] * (len(op.outputs) + len(op.saves)))
    results = f"({results})" if len(op.outputs) + len(op.saves) > 1 else results
    signature = ", ".join(part for part in (tensors, op.schema) if part)
    single = len(op.outputs) + len(op.saves) == 1
    kernel, fake = _library_kernel(op), _fake_kernel(op)
    _LIBRARY.define(f"{op.name}({signature}) -> {results}")
    for device in ("CPU", "CUDA") if op.cuda_kernel is not None else ("CPU",):
        _LIBRARY.impl(op.name, (lambda *a: kernel(*a)[0]) if single else kernel, device)
    qualified = f"subspan::{op.name}"
    torch.library.register_fake(qualified, (lambda *a: fake(*a)[0]) if single else fake, lib=_LIBRARY)
    if op.differentiable:
        setup, backward = _gradient_rule(op)
        torch.library.register_autograd(qualified, backward, setup_context=setup, lib=_LIBRARY)


def _gradient_rule(op: Op) -> tuple[Callable[..., None], Callable[..., Any]]:
    # Dynamo traces these functions: they close over functions and numbers, not over the Op.
    arity, n_outputs, fused = len(op.inputs), len(op.outputs), bool(op.saves)
    gradient, apply_upstream, selective = op.gradient, op.backward, op.selective
    graded, repeats, keeps = op.graded, op.repeats_gradient, op.keeps_results

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        results = output if isinstance(output, tuple) else (output,)
        ctx.parameters = inputs[arity:]
        ctx.set_materialize_grads(False)
        kept = results[n_outputs:] if fused else results[:graded] if keeps else ()
        ctx.save_for_backward(*inputs[:arity], *kept)

    def backward(ctx: Any, *upstream: Any) -> Any:
        nothing = (None,) * (arity + len(ctx.parameters))
        upstream = upstream[:graded]
        if all(g is None for g in upstream):
            return nothing
        stored = ctx.saved_tensors
        tensors, saved = stored[:arity], stored[arity:]
        if repeats and torch.is_grad_enabled():  # the gradient will be differentiated: say it in such operations
            saved = gradient(*tensors, *ctx.parameters)
        needed = (tuple(ctx.needs_input_grad[:arity]),) if selective else ()
        own = upstream[0] if graded == 1 else upstream
        gradients = apply_upstream(own, saved, tensors, ctx.parameters, _scaled, *needed)
        return _needed(ctx, gradients) + (None,) * len(ctx.parameters)

    return setup_context, backward


def _needed(ctx: Any, gradients: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(g if needed else None for g, needed in zip(gradients, ctx.needs_input_grad, strict=False))


def _scaled(upstream: torch.Tensor, saved: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """upstream * saved in the type of the argument; the product is formed before it is rounded to half precision."""
    return (upstream * saved).to(like.dtype)


def _scaled_in_place(upstream: torch.Tensor, saved: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    try:
        product = saved.mul_(upstream)
    except RuntimeError:  # a batch of upstreams (is_grads_batched) has more entries than fit in place
        return _scaled(upstream, saved, like)
    return product if product.dtype is like.dtype else product.to(like.dtype)


def _eager_function(op: Op) -> Any:
    """The autograd Function of plain eager calls: apply(wanted, *tensors, *parameters).

    The saved arrays become the gradient: scaled in place and handed over, which halves the memory and spares a pass
    over it. A second backward through a retained graph finds them gone and runs the kernel again.
    """
    arity, fused, graded, keeps = len(op.inputs), bool(op.saves), op.graded, op.keeps_results

    def forward(ctx: Any, wanted: int, *args: Any) -> Any:
        outputs, saved = _run_kernel_saving(op, wanted, args)
        ctx.parameters, ctx.saved = args[arity:], saved
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*args[:arity], *(() if fused or not keeps else outputs[:graded]))
        if wanted > graded:
            ctx.mark_non_differentiable(*outputs[graded:])
        return outputs

    def backward(ctx: Any, *upstream: Any) -> Any:
        nothing = (None,) * len(ctx.parameters)
        upstream = upstream[:graded]
        if all(g is None for g in upstream):
            return (None,) * (1 + arity) + nothing
        stored, scaled = ctx.saved_tensors, _scaled  # asked for once: checkpointing unpacks at every access
        tensors, saved = stored[:arity], stored[arity:]
        if op.repeats_gradient and torch.is_grad_enabled():  # it will be differentiated: say it in such operations
            saved = op.gradient(*tensors, *ctx.parameters)
        elif fused:
            saved, ctx.saved, scaled = ctx.saved, None, _scaled_in_place
            if saved is None:
                saved = _run_kernel_saving(op, len(op.outputs), (*tensors, *ctx.parameters))[1]
        needed = (ctx.needs_input_grad[1 : 1 + arity],) if op.selective else ()
        own = upstream[0] if graded == 1 else upstream
        gradients = op.backward(own, saved, tensors, ctx.parameters, scaled, *needed)
        return (None, *gradients, *nothing)

    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function: Any = type(f"{op.name}_eager", (torch.autograd.Function,), members)
    return function


def _function(op: Op) -> Any:
    """The autograd Function of traced and transformed calls; its outputs are the op's, then the saved arrays."""
    arity, graded, library_op, kernel = len(op.inputs), op.graded, op.op, _library_kernel(op)
    remember, backward = _gradient_rule(op)

    def forward(*args: Any) -> Any:
        if not _traced() and all(t is None or (type(t) in _PLAIN and t.is_cpu) for t in args[:arity]):
            return kernel(*args)
        result = library_op(*args)
        return result if isinstance(result, tuple) else (result,)

    # Dynamo counts the parameters of forward to see whether it takes a context.
    names = [name for name, _ in op.inputs] + [part.split()[-1] for part in op.schema.split(",") if part]
    forward.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY) for name in names]
    )

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        remember(ctx, inputs, output)
        ctx.mark_non_differentiable(*output[graded:])

    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        moved = _batch_first(op, info.batch_size, in_dims, args)
        results = traced.apply(*moved, *args[arity:])
        return results, (0,) * len(results)

    members = {
        "forward": staticmethod(forward),
        "setup_context": staticmethod(setup_context),
        "backward": staticmethod(backward),
        "vmap": staticmethod(vmap),
    }
    traced: Any = type(f"{op.name}_function", (torch.autograd.Function,), members)
    return traced


def _batch_first(op: Op, size: int, in_dims: tuple[Any, ...], args: tuple[Any, ...]) -> list[Any]:
    """Every tensor with the mapped dimension first and all batch dimensions present, as the kernels expect."""
    arity = len(op.inputs)
    moved: list[Any] = []
    for t, dim in zip(args[:arity], in_dims, strict=False):
        if t is None:
            moved.append(None)
        elif dim is None:
            moved.append(t.expand(size, *t.shape))
        else:
            moved.append(t.movedim(dim, 0))
    return moved


def register_pytree(kind: type, flatten: Callable[..., Any], unflatten: Callable[..., Any]) -> None:
    """Lets torch.func, vmap and the compiler look into a container; without torch's registry it is a leaf to them."""
    try:
        from torch.utils._pytree import register_pytree_node
    except ImportError:
        return
    register_pytree_node(kind, flatten, unflatten, serialized_type_name=f"subspan.{kind.__name__}")
