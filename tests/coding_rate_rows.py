"""The coding_rate family's rows of the op table: what each op takes, its hard points, and what it must refuse."""

from __future__ import annotations

import numpy as np
import torch

import subspan
from coding_rate_growth import (
    class_growth,
    coding_rate_growth,
    operator_growth,
    rate_growth,
    reduction_growth,
    spd_growth,
)
from op_row import Arguments, BadInput, Op, Sample
from sample_arrays import LARGE_SHAPES, SHAPES, classes, delicate_features, features, normal, positive_definite, uniform
from subspan.reference import coding_rate as reference


def spd_samples(dtype: torch.dtype) -> list[Sample]:
    shapes = {
        "two": (2, 2),
        "one entry": (1, 1),
        "no rows": (0, 0),
        "batch": (3, 5, 5),
        "two batch dimensions": (2, 2, 4, 4),
        "empty batch": (0, 3, 3),
        "many": (37, 6, 6),
        "blocked": (33, 33),
        "blocked batch": (3, 70, 70),
    }
    status = {"A": positive_definite(3, 2, 4, 4, dtype=dtype), "return_info": True}
    return [*definite_samples(shapes, dtype), Sample("status", status)]


def definite_samples(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> list[Sample]:
    return [Sample(name, {"A": positive_definite(i, *s, dtype=dtype)}) for i, (name, s) in enumerate(shapes.items())]


def spd_degenerate() -> list[Sample]:
    matrices = {
        "identity": torch.eye(4, dtype=torch.float64),
        "equal eigenvalues": torch.diag(torch.tensor([2.0, 2.0, 5.0, 5.0], dtype=torch.float64)),
        "graded": torch.diag(torch.tensor([1e3, 1.0, 1e-3], dtype=torch.float64)),
        "no rows": torch.zeros(0, 0, dtype=torch.float64),
    }
    return [Sample(name, {"A": A}) for name, A in matrices.items()]


def spd_bad() -> list[BadInput]:
    return [BadInput("not square", {"A": torch.ones(3, 4)}, ValueError, "A", ("(3, 4)",))]


def gram_samples(dtype: torch.dtype, shapes: dict[str, tuple[int, ...]] = SHAPES) -> list[Sample]:
    samples = [Sample(name, {"Z": Z, "alpha": 0.7}) for name, Z in features(dtype, shapes)]
    if shapes is SHAPES:
        samples.append(Sample("small alpha", {"Z": normal(3, 6, 4, dtype=dtype), "alpha": 1e-6}))
    return samples


def logdet_gram_samples(dtype: torch.dtype) -> list[Sample]:
    status = {"Z": normal(4, 3, 6, 4, dtype=dtype), "alpha": 0.7, "return_info": True}
    return [*gram_samples(dtype), Sample("status", status)]


def gram_degenerate() -> list[Sample]:
    return [Sample(name, {"Z": Z, "alpha": 1.3}) for name, Z in delicate_features().items()]


def not_positive(argument: str) -> list[BadInput]:
    values = {"zero": 0.0, "negative": -1.0, "NaN": float("nan"), "infinite": float("inf"), "huge integer": 10**400}
    types = {"string": "1", "list": [1.0], "complex": 1j}
    return [
        BadInput(f"{argument} {kind}", {argument: value}, error, argument)
        for error, cases in ((ValueError, values), (TypeError, types))
        for kind, value in cases.items()
    ]


def coding_rate_samples(dtype: torch.dtype, shapes: dict[str, tuple[int, ...]] = SHAPES) -> list[Sample]:
    samples = []
    for seed, (name, Z) in enumerate(features(dtype, shapes)):
        samples.append(Sample(f"{name}, no weights", {"Z": Z, "eps2": 0.5}))
        samples.append(Sample(name, {"Z": Z, "eps2": 0.5, "weights": uniform(seed, *Z.shape[:-1], dtype=dtype)}))
    if shapes is not SHAPES:
        return samples
    for shape in ("tall", "wide"):
        Z, weights = normal(1, *SHAPES[shape], dtype=dtype), uniform(2, SHAPES[shape][0], dtype=dtype)
        samples += [
            Sample(f"{shape}, alpha", {"Z": Z, "eps2": None, "weights": weights, "alpha": 0.3, "scale": 1.7}),
            Sample(f"{shape}, samples side", {"Z": Z, "eps2": 0.2, "weights": weights, "side": "samples"}),
            Sample(f"{shape}, features side", {"Z": Z, "eps2": 0.2, "weights": weights, "side": "features"}),
        ]
    silent = uniform(4, 3, 5, dtype=dtype)
    silent[1, 2] = 0
    silent[2] = 0  # nothing has weight: rate 0, gradient 0
    Z = normal(5, 3, 5, 4, dtype=dtype)
    broadcast = {"Z": normal(6, 2, 1, 4, 3, dtype=dtype), "eps2": 0.5, "weights": uniform(7, 3, 4, dtype=dtype)}
    samples += [
        Sample("zero weights", {"Z": Z, "eps2": 0.5, "weights": silent}, differentiable=("Z",)),
        Sample("status", {"Z": Z, "eps2": 0.5, "return_info": True}),
        Sample("shared weights", {"Z": Z, "eps2": 0.5, "weights": uniform(8, 5, dtype=dtype)}),
        Sample("broadcast", broadcast, summed=3),
    ]
    return samples


def coding_rate_degenerate() -> list[Sample]:
    samples = []
    for name, Z in delicate_features().items():
        weights = uniform(9, len(Z))
        samples += [
            Sample(f"{name}, {side}", {"Z": Z, "eps2": 0.4, "weights": weights, "side": side})
            for side in ("samples", "features")
        ]
    return samples


def coding_rate_bad() -> list[BadInput]:
    negative = torch.ones(3, 7, dtype=torch.float64)
    negative[1, 4] = -0.5
    bad = [
        BadInput(
            "too few weights", {"weights": torch.ones(3, 6).double()}, ValueError, "weights", ("(3, 6)", "(3, 7, 5)")
        ),
        BadInput(
            "batch of weights", {"weights": torch.ones(2, 7).double()}, ValueError, "weights", ("(2, 7)", "(3, 7, 5)")
        ),
        BadInput("weights without a dimension", {"weights": torch.ones(()).double()}, ValueError, "weights", ("()",)),
        BadInput("negative weights", {"weights": negative}, ValueError, "weights"),
        BadInput("a number for weights", {"weights": 1.0}, TypeError, "weights"),
        BadInput("no eps2", {"eps2": None}, (TypeError, ValueError), "eps2"),
        BadInput("side", {"side": "rows"}, ValueError, "side"),
        BadInput("scale NaN", {"scale": float("nan")}, ValueError, "scale"),
        BadInput("scale string", {"scale": "half"}, TypeError, "scale"),
    ]
    return bad + not_positive("eps2") + not_positive("alpha")


def labelled_samples(dtype: torch.dtype, shapes: dict[str, tuple[int, ...]] = SHAPES) -> list[Sample]:
    samples = []
    for seed, (name, Z) in enumerate(features(dtype, shapes)):
        labels = classes(seed, *Z.shape[:-1], k=3)
        samples.append(Sample(name, {"Z": Z, "labels": labels, "eps2": 0.5, "num_classes": 3}))
    if shapes is not SHAPES:
        return samples
    Z = normal(1, 3, 8, 4, dtype=dtype)
    gap = torch.tensor([0, 2, 2, 5, 0, 2, 5, 5])
    wide = {"Z": normal(2, 6, 20, dtype=dtype), "labels": classes(3, 6, k=2, dtype=torch.int32), "eps2": 0.1}
    samples += [
        Sample("one class", {"Z": Z, "labels": torch.zeros(3, 8, dtype=torch.int64), "eps2": 0.5, "num_classes": 1}),
        Sample("shared labels", {"Z": Z, "labels": classes(4, 8, k=2), "eps2": 0.5, "num_classes": 2}),
        Sample("empty classes", {"Z": Z, "labels": gap.expand(3, 8).clone(), "eps2": 0.5, "num_classes": 9}),
        Sample("classes from the labels", {"Z": Z[0], "labels": gap, "eps2": 0.5}),
        Sample("a class per sample", {"Z": Z[1], "labels": torch.arange(8), "eps2": 0.5}),
        Sample("int32 labels", wide),
    ]
    return samples


def labelled_degenerate() -> list[Sample]:
    samples = []
    for name, Z in delicate_features().items():
        labels = torch.arange(len(Z)) % 2
        samples.append(Sample(name, {"Z": Z, "labels": labels, "eps2": 0.4, "num_classes": 3}))
    return samples


def labelled_bad() -> list[BadInput]:
    high, low, batch = (torch.zeros(shape, dtype=torch.int64) for shape in ((3, 7), (3, 7), (2, 7)))
    high[2, 6], low[0, 0] = 3, -1
    bad = [
        BadInput("label too high", {"labels": high}, ValueError, "labels"),
        BadInput("label negative", {"labels": low}, ValueError, "labels"),
        BadInput("label negative, classes not given", {"labels": low, "num_classes": None}, ValueError, "labels"),
        BadInput("too few labels", {"labels": high[:, :6]}, ValueError, "labels", ("(3, 6)", "(3, 7, 5)")),
        BadInput("batch of labels", {"labels": batch}, ValueError, "labels", ("(2, 7)", "(3, 7, 5)")),
        BadInput("labels without a dimension", {"labels": torch.tensor(1)}, ValueError, "labels", ("()",)),
        BadInput("floating labels", {"labels": torch.zeros(7)}, TypeError, "labels"),
        BadInput("boolean membership", {"labels": torch.ones(3, 7, dtype=torch.bool)}, TypeError, "labels"),
        BadInput("a list of labels", {"labels": [0] * 7}, TypeError, "labels"),
        BadInput("no class", {"num_classes": 0}, ValueError, "num_classes"),
        BadInput("negative classes", {"num_classes": -3}, ValueError, "num_classes"),
        BadInput("too many classes", {"num_classes": 2**40}, ValueError, "num_classes"),
        BadInput("fractional classes", {"num_classes": 2.5}, TypeError, "num_classes"),
    ]
    return bad + not_positive("eps2")


def reduction_samples(dtype: torch.dtype) -> list[Sample]:
    samples = labelled_samples(dtype)
    batch = next(sample.arguments for sample in samples if sample.name == "batch")
    return [
        *samples,
        Sample("gamma", batch | {"gamma": 0.3}),
        Sample("parts", batch | {"gamma": -2.0, "return_parts": True}, summed=2),
    ]


def reduction_bad() -> list[BadInput]:
    return [
        *labelled_bad(),
        BadInput("gamma NaN", {"gamma": float("nan")}, ValueError, "gamma"),
        BadInput("gamma string", {"gamma": "1"}, TypeError, "gamma"),
    ]


def classes_of_row(arguments: Arguments, item: int, row: int) -> np.ndarray:
    labels = arguments["labels"].numpy()
    return np.arange(arguments["num_classes"]) == labels[item, row]


def symmetrised(arguments: Arguments) -> Arguments:
    """Differences along one entry of A would leave the symmetric matrices, where the gradient is defined."""
    return {"A": (arguments["A"] + arguments["A"].mT) / 2}


def large_spd(dtype: torch.dtype) -> list[Sample]:
    return definite_samples({"large": (300, 300), "large batch": (13, 96, 96), "large many": (1000, 8, 8)}, dtype)


ROWS = [
    Op(
        name="spd_logdet",
        function=subspan.spd_logdet,
        reference=reference.spd_logdet,
        arrays={"A": 2},
        differentiable=("A",),
        samples=spd_samples,
        large=large_spd,
        degenerate=spd_degenerate,
        growth=spd_growth,
        bad_inputs=spd_bad,
        constrain=symmetrised,
        square=True,
    ),
    Op(
        name="logdet_gram",
        function=subspan.logdet_gram,
        reference=reference.logdet_gram,
        arrays={"Z": 2},
        differentiable=("Z",),
        samples=logdet_gram_samples,
        large=lambda dtype: gram_samples(dtype, LARGE_SHAPES),
        degenerate=gram_degenerate,
        growth=rate_growth,
        bad_inputs=lambda: not_positive("alpha"),
    ),
    Op(
        name="coding_rate",
        function=subspan.coding_rate,
        reference=reference.coding_rate,
        arrays={"Z": 2, "weights": 1},
        differentiable=("Z", "weights"),
        samples=coding_rate_samples,
        large=lambda dtype: coding_rate_samples(dtype, LARGE_SHAPES),
        degenerate=coding_rate_degenerate,
        growth=coding_rate_growth,
        bad_inputs=coding_rate_bad,
        nonnegative=("weights",),
    ),
    Op(
        name="class_coding_rates",
        function=subspan.class_coding_rates,
        reference=reference.class_coding_rates,
        arrays={"Z": 2, "labels": 1},
        differentiable=("Z",),
        samples=labelled_samples,
        large=lambda dtype: labelled_samples(dtype, LARGE_SHAPES),
        degenerate=labelled_degenerate,
        growth=class_growth,
        constant_outputs=1,
        bad_inputs=labelled_bad,
        confined=classes_of_row,
    ),
    Op(
        name="rate_reduction",
        function=subspan.rate_reduction,
        reference=reference.rate_reduction,
        arrays={"Z": 2, "labels": 1},
        differentiable=("Z",),
        samples=reduction_samples,
        large=lambda dtype: labelled_samples(dtype, LARGE_SHAPES),
        degenerate=labelled_degenerate,
        growth=reduction_growth,
        bad_inputs=reduction_bad,
    ),
    Op(
        name="rate_operator",
        function=subspan.rate_operator,
        reference=reference.rate_operator,
        arrays={"Z": 2},
        differentiable=("Z",),
        samples=gram_samples,
        large=lambda dtype: gram_samples(dtype, LARGE_SHAPES),
        degenerate=gram_degenerate,
        growth=operator_growth,
        kernel_gradient=False,
        bad_inputs=lambda: not_positive("alpha"),
    ),
]
