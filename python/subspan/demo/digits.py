"""Data, network, training and evaluation of the digits demo."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from subspan.demo.copied_loss import CopiedRateReduction
from subspan.nn import MaximalCodingRateReduction

# Batch, features, classes and eps are the supervised configuration of the MCR2 repository; the network is scaled to the
# data. GELU and a decaying rate, because a kink or a large last step would amplify the rounding in which the two runs
# differ, and the two curves could not be compared to six digits.
CLASSES = 10
BATCH = 1000
FEATURES = 128
EPS2 = 0.5
LEARNING_RATE = 1e-3
SUBSPACE_RANK = 10
TEST_SAMPLES = 500


@dataclass
class Digits:
    """8x8 handwritten digits, pixels in [0, 1]: (n, 64) images with (n,) labels."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


@dataclass
class Run:
    """One copy of the network, trained with one implementation of the loss, and what was measured on the way."""

    name: str
    loss: Callable[[Tensor, Tensor], Tensor]
    network: torch.nn.Module
    steps: int
    losses: list[float] = field(default_factory=list)
    loss_seconds: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=LEARNING_RATE)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, self.steps)

    def step(self, images: Tensor, labels: Tensor) -> None:
        """One optimiser step; the loss's forward and backward pass (down to the features) is timed on its own."""
        start = time.perf_counter()
        self.optimizer.zero_grad()
        features = self.network(images)
        leaf = features.detach().requires_grad_()
        before_loss = time.perf_counter()
        loss = self.loss(leaf, labels)
        loss.backward()
        after_loss = time.perf_counter()
        features.backward(leaf.grad)
        self.optimizer.step()
        self.schedule.step()
        self.step_seconds.append(time.perf_counter() - start)
        self.loss_seconds.append(after_loss - before_loss)
        self.losses.append(loss.item())


class UnitNorm(torch.nn.Module):
    """Projects each row onto the unit sphere."""

    def forward(self, rows: Tensor) -> Tensor:
        return torch.nn.functional.normalize(rows, dim=1)


def load(seed: int) -> Digits:
    """The digits that ship with scikit-learn, split with equal class shares."""
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images / 16, labels, test_size=TEST_SAMPLES, stratify=labels, random_state=seed)
    train_images, test_images = (torch.tensor(part, dtype=torch.float32) for part in parts[:2])
    train_labels, test_labels = (torch.tensor(part, dtype=torch.int64) for part in parts[2:])
    return Digits(train_images, train_labels, test_images, test_labels)


def small_network() -> torch.nn.Module:
    """Small enough for 8x8 pixels, so that the loss is much of a step; the rest of it is reported as well."""
    return torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, FEATURES), UnitNorm())


def prepare(steps: int, seed: int) -> tuple[Run, Run]:
    """Two runs that start from the same weights and differ in the implementation of the loss only."""
    torch.manual_seed(seed)
    network = small_network()
    copied = CopiedRateReduction(EPS2)
    ours = MaximalCodingRateReduction(eps=EPS2)
    return (
        Run("PyTorch, as copied", lambda z, y: copied(z, y, CLASSES), copy.deepcopy(network), steps),
        Run("subspan", lambda z, y: ours(z, y, CLASSES)[0], copy.deepcopy(network), steps),
    )


def train(data: Digits, runs: tuple[Run, Run], seed: int, progress: Callable[[int], None]) -> None:
    """Trains both on the same batches, alternately step by step, so that a busy machine slows both alike."""
    steps = runs[0].steps
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        batch = torch.randperm(len(data.train_labels), generator=generator)[:BATCH]
        images, labels = data.train_images[batch], data.train_labels[batch]
        for run in runs if step % 2 == 0 else runs[::-1]:
            run.step(images, labels)
        progress(step + 1)


@torch.no_grad()
def nearest_subspace_accuracy(network: torch.nn.Module, data: Digits) -> float:
    """Share of test digits whose nearest class subspace is the right one, the classifier of the MCR2 paper.

    Class j is the affine subspace through the mean of its training features, spanned by their leading principal
    directions; a digit goes to the class of least residual.
    """
    train_features, test_features = network(data.train_images), network(data.test_images)
    residuals = []
    for label in range(CLASSES):
        members = train_features[data.train_labels == label]
        mean = members.mean(dim=0)
        _, _, directions = torch.linalg.svd(members - mean, full_matrices=False)
        centred = test_features - mean
        basis = directions[:SUBSPACE_RANK]
        residuals.append(torch.linalg.vector_norm(centred - centred @ basis.T @ basis, dim=1))
    predicted = torch.stack(residuals).argmin(dim=0)
    return (predicted == data.test_labels).double().mean().item()


@torch.no_grad()
def sorted_similarity(network: torch.nn.Module, data: Digits) -> Tensor:
    """|Z Z^T| of the test features, sorted by class: block diagonal when classes span orthogonal subspaces."""
    order = data.test_labels.argsort(stable=True)
    features: Tensor = network(data.test_images[order])
    return (features @ features.T).abs()
