"""What one process of the group does in test_sparse_distributed.py: `python sparse_distributed_worker.py RANK WORLD
FOLDER`. Every process knows the rows of all, takes its part, and leaves what it computed in FOLDER."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import subspan

ROWS, ROWS_OF_Y, COLUMNS = 12, 9, 5
#: How many rows of x and of y each of two processes has.
SPLITS = {"unequal": ((8, 4), (2, 7)), "second empty": ((ROWS, 0), (0, ROWS_OF_Y))}
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}
FORMS = ("plain", "masked", "unbiased", "two sides", "running")

Tensors = dict[str, torch.Tensor]


def whole(dtype: torch.dtype) -> Tensors:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, ROWS, COLUMNS, generator=generator, dtype=torch.float64).to(dtype)
    y = torch.randn(2, ROWS_OF_Y, COLUMNS, generator=generator, dtype=torch.float64).to(dtype)
    return {"x": x, "y": y, "row_mask": torch.arange(ROWS) % 3 != 1, "running": torch.linspace(0, 1, COLUMNS)}


def part(arguments: Tensors, split: str, rank: int) -> Tensors:
    of_x, of_y = SPLITS[split]
    first, first_of_y = sum(of_x[:rank]), sum(of_y[:rank])
    return arguments | {
        "x": arguments["x"][:, first : first + of_x[rank]].clone(),
        "y": arguments["y"][:, first_of_y : first_of_y + of_y[rank]].clone(),
        "row_mask": arguments["row_mask"][first : first + of_x[rank]],
    }


def loss(form: str, group: Any, given: Tensors) -> torch.Tensor:
    """One number per item; with running means, theirs are added behind."""
    x = given["x"]
    if form == "masked":
        return subspan.flops_loss(x, row_mask=given["row_mask"], group=group)
    if form == "two sides":
        return subspan.flops_loss(x, y=given["y"], group=group)
    if form == "running":
        value, means = subspan.flops_loss(x, ema=(given["running"].to(x.dtype), 0.7), group=group)
        return torch.cat([value, means.flatten()])
    return subspan.flops_loss(x, unbiased=form == "unbiased", group=group)


def upstream(result: torch.Tensor, rank: int) -> torch.Tensor:
    return torch.cos(torch.arange(result.numel(), dtype=result.dtype) + rank)


def differentiated(form: str, group: Any, given: Tensors, rank: int) -> Tensors:
    names = ["x", "y"] if form == "two sides" else ["x"]
    given = given | {name: given[name].requires_grad_() for name in names}
    result = loss(form, group, given)
    gradients = torch.autograd.grad(result, [given[name] for name in names], upstream(result, rank))
    return {"value": result.detach()} | dict(zip(names, gradients, strict=True))


def every_form(group: Any, rank: int) -> dict[str, Tensors]:
    return {
        f"{form}/{split}/{name}": differentiated(form, group, part(whole(dtype), split, rank), rank)
        for form in FORMS
        for split in SPLITS
        for name, dtype in DTYPES.items()
    }


def penalty(form: str, group: Any, given: Tensors, own: Any) -> torch.Tensor:
    """Gradient of a sum of squares of the gradient of the loss of item 0; of two sides, in y."""
    x, other = given["x"].requires_grad_(), given["y" if form == "two sides" else "x"].requires_grad_()
    (gradient,) = torch.autograd.grad(loss(form, group, given)[0], x, create_graph=True)
    (second,) = torch.autograd.grad((own * gradient.square().sum(-1)).sum(), other)
    return second


def second_derivatives(group: Any, rank: int) -> dict[str, torch.Tensor]:
    given = whole(torch.float64)
    return {form: penalty(form, group, part(given, "unequal", rank), 1.0 + rank) for form in FORMS}


def encoder() -> tuple[torch.nn.Linear, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    model = torch.nn.Linear(4, COLUMNS, dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model, torch.randn(ROWS, 4, generator=generator, dtype=torch.float64)


def data_parallel(group: Any, rank: int) -> dict[str, torch.Tensor]:
    """Gradients of an encoder's parameters after DistributedDataParallel has averaged them."""
    found = {}
    for split, ((first, _), _) in SPLITS.items():
        for unbiased in (False, True):
            model, data = encoder()
            model = torch.nn.parallel.DistributedDataParallel(model, process_group=group)
            codes = model(data[:first] if rank == 0 else data[first:]).relu()
            subspan.flops_loss(codes, unbiased=unbiased, group=group).backward()
            for name, parameter in model.module.named_parameters():
                found[f"{split}/{unbiased}/{name}"] = parameter.grad
    return found


def main(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=world, timeout=timedelta(minutes=10)
    )
    found = {check.__name__: check(dist.group.WORLD, rank) for check in (every_form, second_derivatives, data_parallel)}
    torch.save(found, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
