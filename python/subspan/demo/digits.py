"""The data of all studies: the handwritten digits that ship with scikit-learn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

CLASSES = 10
TEST_SAMPLES = 500


@dataclass
class Digits:
    """8x8 handwritten digits, pixels in [0, 1]: (n, 64) images with (n,) labels."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def batches(self, size: int, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Random parts of the training digits with their labels."""
        generator = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            batch = torch.randperm(len(self.train_labels), generator=generator)[:size]
            yield self.train_images[batch], self.train_labels[batch]


def load(seed: int) -> Digits:
    """Split into training and test digits with equal class shares."""
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images / 16, labels, test_size=TEST_SAMPLES, stratify=labels, random_state=seed)
    train_images, test_images = (torch.tensor(part, dtype=torch.float32) for part in parts[:2])
    train_labels, test_labels = (torch.tensor(part, dtype=torch.int64) for part in parts[2:])
    return Digits(train_images, train_labels, test_images, test_labels)
