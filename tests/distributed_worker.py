"""What one process of the group does in test_distributed.py: `python distributed_worker.py RANK WORLD FOLDER`.

Every process knows the samples of all, takes its part, and leaves what it computed in FOLDER for the test to compare.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import subspan

SAMPLES, FEATURES, CLASSES, EPS2 = 23, 6, 4, 0.3
#: How many samples each of two processes has.
SPLITS = {"unequal": (16, 7), "second empty": (SAMPLES, 0), "first empty": (0, SAMPLES)}
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}

Tensors = dict[str, torch.Tensor]


def coding_rate(group: Any, Z: torch.Tensor, weights: torch.Tensor | None = None, **rest: Any) -> torch.Tensor:
    return subspan.coding_rate(Z, EPS2, weights=weights, group=group, **rest)


def reduction_parts(group: Any, Z: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    classes = labels.shape[-2] if labels.is_floating_point() else CLASSES
    parts = subspan.rate_reduction(Z, labels, EPS2, num_classes=classes, gamma=0.7, return_parts=True, group=group)
    return torch.stack(parts)


def given_alpha(group: Any, Z: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return coding_rate(group, Z, weights, alpha=1.7, scale=2.0)


#: The rate, and which arguments besides Z it takes. `batched` ones have two items.
RATES: dict[str, tuple[Callable[..., torch.Tensor], tuple[str, ...]]] = {
    "rate": (coding_rate, ()),
    "weighted": (coding_rate, ("weights",)),
    "given alpha": (given_alpha, ("weights",)),
    "labels": (reduction_parts, ("labels",)),
    "membership": (reduction_parts, ("membership",)),
    "batched rate": (coding_rate, ()),
    "batched weighted": (coding_rate, ("weights",)),
    "batched labels": (reduction_parts, ("labels",)),
    "batched membership": (reduction_parts, ("membership",)),
}


def whole(name: str, dtype: torch.dtype) -> Tensors:
    """The arguments of a rate, with the samples of all processes. Class 2 is empty, and one weight is zero."""
    generator = torch.Generator().manual_seed(1)
    batch = (2,) if name.startswith("batched") else ()
    arguments = {
        "Z": torch.randn(*batch, SAMPLES, FEATURES, generator=generator, dtype=torch.float64).to(dtype),
        "weights": torch.rand(*batch, SAMPLES, generator=generator, dtype=torch.float64).to(dtype),
        "labels": torch.tensor([0, 1, 3])[torch.randint(3, (*batch, SAMPLES), generator=generator)],
        "membership": torch.rand(*batch, CLASSES, SAMPLES, generator=generator, dtype=torch.float64).to(dtype),
    }
    arguments["weights"][..., 3] = 0
    arguments["membership"][..., 2, :] = 0
    return {key: arguments[key] for key in ("Z", *RATES[name][1])}


def part(arguments: Tensors, split: tuple[int, ...], rank: int) -> Tensors:
    """The samples of one process."""
    first = sum(split[:rank])
    return {key: value.narrow(-2 if key == "Z" else -1, first, split[rank]).clone() for key, value in arguments.items()}


def upstream(result: torch.Tensor, rank: int) -> torch.Tensor:
    """What the loss of a process makes of each entry of the rate."""
    return torch.cos(torch.arange(result.numel(), dtype=result.dtype) + rank).reshape(result.shape)


def differentiated(name: str, arguments: Tensors, rate: Callable[..., torch.Tensor], group: Any, rank: int) -> Tensors:
    names = [key for key, value in arguments.items() if value.is_floating_point()]
    arguments = arguments | {key: arguments[key].requires_grad_() for key in names}
    result = rate(group, *arguments.values())
    gradients = torch.autograd.grad(result, [arguments[key] for key in names], upstream(result, rank))
    found = {f"{name}/value": result.detach()}
    return found | {f"{name}/{key}": gradient for key, gradient in zip(names, gradients, strict=True)}


def every_rate(group: Any, rank: int) -> Tensors:
    found: Tensors = {}
    for name, (rate, _) in RATES.items():
        for split_name, split in SPLITS.items():
            for dtype_name, dtype in DTYPES.items():
                case = f"{name}/{split_name}/{dtype_name}"
                found |= differentiated(case, part(whole(name, dtype), split, rank), rate, group, rank)
    return found


def penalty(rate: Callable[..., torch.Tensor], group: Any, arguments: Tensors, own: Any) -> torch.Tensor:
    """Gradient of a sum of squares of the gradient of the rate (of the processes' rates together, so W times it)."""
    Z = arguments["Z"].requires_grad_()
    result = rate(group, Z, *list(arguments.values())[1:])
    (gradient,) = torch.autograd.grad(result.flatten()[0], Z, create_graph=True)
    (second,) = torch.autograd.grad((own * gradient.square().sum(-1)).sum(), Z)
    return second


def second_derivatives(group: Any, rank: int) -> Tensors:
    return {
        name: penalty(rate, group, part(whole(name, torch.float64), (16, 7), rank), 1.0 + rank)
        for name, (rate, _) in RATES.items()
        if not name.startswith("batched")
    }


def model_and_input(dtype: torch.dtype) -> tuple[torch.nn.Linear, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    model = torch.nn.Linear(9, FEATURES)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model.to(dtype), torch.randn(SAMPLES, 9, generator=generator).to(dtype)


def loss_of(group: Any, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return coding_rate(group, features) - reduction_parts(group, features, labels)[0].square()


def data_parallel(group: Any, rank: int) -> Tensors:
    found: Tensors = {}
    for split_name, split in SPLITS.items():
        for dtype in (torch.float64, torch.float32):
            model, data = model_and_input(dtype)
            model = torch.nn.parallel.DistributedDataParallel(model, process_group=group)
            first = sum(split[:rank])
            own = part(whole("labels", dtype), split, rank)
            loss_of(group, model(data[first : first + split[rank]]), own["labels"]).backward()
            for name, parameter in model.module.named_parameters():
                found[f"{split_name}/{dtype}/{name}"] = parameter.grad
    return found


def autocast(group: Any, rank: int) -> Tensors:
    model, data = model_and_input(torch.float32)
    own = part({"data": data.mT}, (16, 7), rank)["data"].mT
    with torch.autocast("cpu", torch.bfloat16):
        features = model(own)
        rate = coding_rate(group, features)
    (gradient,) = torch.autograd.grad(rate, features)
    return {"features": features.detach(), "value": rate.detach(), "gradient": gradient}


def not_finite(group: Any, rank: int) -> Tensors:
    found: Tensors = {}
    for name, (rate, _) in RATES.items():
        if name.startswith("batched"):
            arguments = part(whole(name, torch.float64), (16, 7), rank)
            if rank == 1:
                arguments["Z"][0, 2, 1] = torch.nan
            found |= differentiated(name, arguments, rate, group, rank)
    return found


def collapsed(group: Any, rank: int) -> Tensors:
    Z = collapsed_features()[rank::2]
    return {"value": coding_rate(group, Z), "labels": reduction_parts(group, Z, torch.full((len(Z),), rank))}


def collapsed_features() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return 1e3 + 1e-2 * torch.randn(40, FEATURES, generator=generator)


def compiled(group: Any, rank: int) -> Tensors:
    found: Tensors = {}
    for name, (rate, _) in RATES.items():
        if not name.startswith("batched"):
            traced = torch.compile(rate, fullgraph=True, backend="aot_eager")
            found |= differentiated(name, part(whole(name, torch.float64), (16, 7), rank), traced, group, rank)
    return found


def mapped(group: Any, rank: int) -> Tensors:
    arguments = part(whole("batched labels", torch.float64), (16, 7), rank)

    def rate(Z: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return reduction_parts(group, Z, labels)[0]

    gradient, value = torch.func.vmap(torch.func.grad_and_value(rate))(*arguments.values())
    return {"value": value, "gradient": gradient}


CHECKS = (every_rate, second_derivatives, data_parallel, autocast, not_finite, collapsed, compiled, mapped)


def main(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=world, timeout=timedelta(minutes=10)
    )
    found = {check.__name__: check(dist.group.WORLD, rank) for check in CHECKS}
    again = {check.__name__: check(dist.group.WORLD, rank) for check in CHECKS[:3]}
    torch.save({"first": found, "again": again}, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
