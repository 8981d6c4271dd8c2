"""What every module must do: train under DDP, torch.compile, autocast with GradScaler and activation checkpointing; be
copied, pickled, saved and loaded. A module is one entry of MODULES."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import subspan
from sample_arrays import normal
from subspan import nn

LABELS = torch.arange(12) % 3
PI = normal(7, 12, 12).softmax(0)


def smooth(y: Tensor) -> Tensor:
    """A scalar of what a layer gives, in float32 or float64."""
    return (y if y.dtype == torch.float64 else y.float()).cos().sum()


#: Module and how to get a scalar from it and from features (2, 12, 8).
MODULES: dict[str, tuple[Callable[[], torch.nn.Module], Callable[[Any, Tensor], Tensor]]] = {
    "TotalCodingRate": (lambda: nn.TotalCodingRate(eps=0.2), lambda m, z: m(z).sum()),
    "MaximalCodingRateReduction": (
        lambda: nn.MaximalCodingRateReduction(eps=0.5),
        lambda m, z: m(z, LABELS.expand(2, 12), 3)[0].sum(),
    ),
    "MLCLoss": (lambda: nn.MLCLoss(eps=0.1), lambda m, z: m(z[0], PI.to(z.dtype))[0]),
    "SubspaceAttention": (
        lambda: nn.SubspaceAttention(8, 2, 4),
        lambda m, z: m(z).float().square().sum() if z.dtype != torch.float64 else m(z).square().sum(),
    ),
    "ISTA": (
        lambda: nn.ISTA(8),
        lambda m, z: m(z).float().square().sum() if z.dtype != torch.float64 else m(z).square().sum(),
    ),
    "CRATEBlock": (
        lambda: nn.CRATEBlock(8, 2, 4),
        lambda m, z: m(z).float().square().sum() if z.dtype != torch.float64 else m(z).square().sum(),
    ),
    "GrassmannLinear": (lambda: nn.GrassmannLinear(8, 5, 2), lambda m, z: m(z).square().mean()),
    "HouseholderLinear": (lambda: nn.HouseholderLinear(8, 5, 3), lambda m, z: smooth(m(z))),
    "HouseholderAdapter": (lambda: nn.HouseholderAdapter(torch.nn.Linear(8, 5), 4), lambda m, z: smooth(m(z))),
    "OrthogonalBlocks": (
        lambda: nn.OrthogonalBlocks(8, 4),
        lambda m, z: smooth(m(z) * torch.linspace(1, 2, 8, dtype=z.dtype)),
    ),
    "OrthogonalAlignment": (
        lambda: nn.OrthogonalAlignment(5, 3),
        lambda m, z: sum((smooth(3 * part) for part in m(z)), torch.zeros((), dtype=torch.float32)),
    ),
    "RandomOrthogonalProjection": (
        lambda: nn.RandomOrthogonalProjection(12, 4, seed=1),
        lambda m, z: smooth(m.complement(z)),
    ),
    "SubspaceOrthogonalityLoss": (lambda: nn.SubspaceOrthogonalityLoss(), lambda m, z: m(z)),
    "EMPSSLLoss": (lambda: nn.EMPSSLLoss(), lambda m, z: m(z)),
    "SimDINOExpansion": (lambda: nn.SimDINOExpansion(eps=0.05), lambda m, z: m(z)),
    "TiCoLoss": (lambda: nn.TiCoLoss(), lambda m, z: m(torch.eye(8, dtype=z.dtype), z[0], z[1])[0]),
    "VNELoss": (lambda: nn.VNELoss(alpha=0.5), lambda m, z: m(z)),
    "BarlowLoss": (lambda: nn.BarlowLoss(), lambda m, z: m(z[0], z[1])),
    "PHMLinear": (lambda: nn.PHMLinear(8, 6, 2), lambda m, z: m(z).square().mean()),
    "PHMConv1d": (lambda: nn.PHMConv1d(12, 6, 3, 2, padding=1), lambda m, z: m(z).square().mean()),
    "PHMConv2d": (lambda: nn.PHMConv2d(2, 4, 3, 2), lambda m, z: m(z).square().mean()),
    "PHMConv3d": (lambda: nn.PHMConv3d(2, 4, 2, 2), lambda m, z: m(z.reshape(2, 2, 6, 2, 4)).square().mean()),
    "PHMConvTranspose1d": (lambda: nn.PHMConvTranspose1d(12, 4, 3, 4), lambda m, z: m(z).square().mean()),
    "PHMConvTranspose2d": (lambda: nn.PHMConvTranspose2d(2, 4, 2, 2, 2), lambda m, z: m(z).square().mean()),
    "PHMConvTranspose3d": (
        lambda: nn.PHMConvTranspose3d(2, 4, 2, 2),
        lambda m, z: m(z.reshape(2, 2, 6, 2, 4)).square().mean(),
    ),
    "CompacterAdapter": (lambda: nn.CompacterAdapter(8, 4, 2), lambda m, z: m(z).square().mean()),
    "PHMLSTM": (lambda: nn.PHMLSTM(8, 4, 2, batch_first=True), lambda m, z: m(z)[0].square().mean()),
    "PHMMultiheadAttention": (
        lambda: nn.PHMMultiheadAttention(8, 2, 2, batch_first=True),
        lambda m, z: m(z, z, z)[0].square().mean(),
    ),
    "MoSLoRALinear": (lambda: nn.MoSLoRALinear(torch.nn.Linear(8, 5), 2), lambda m, z: smooth(m(z))),
    "KroneckerAdapter": (lambda: nn.KroneckerAdapter(torch.nn.Linear(8, 6), 1), lambda m, z: smooth(m(z))),
    "FlopsRegularizer": (
        lambda: nn.FlopsRegularizer(0.3, ema_decay=0.5, columns=8),
        lambda m, z: m(z.flatten(0, 1)),
    ),
    "MatryoshkaLoss": (lambda: nn.MatryoshkaLoss(smooth, (3, 8)), lambda m, z: m(z)),
    "TopKEncoder": (lambda: nn.TopKEncoder(8, 20, 3), lambda m, z: m(z.flatten(0, 1)).values.square().mean()),
    "SparseDecoder": (
        lambda: nn.SparseDecoder(8, 5),
        lambda m, z: m(subspan.topk_rows(z.flatten(0, 1), 3)).square().mean(),
    ),
    "SparseAutoencoder": (
        lambda: nn.SparseAutoencoder(8, 20, 2, aux_k=3, dead_after=1, contrastive_weight=0.1),
        lambda m, z: m(z[0], z[1]).loss,
    ),
    "MatchingPursuitAutoencoder": (
        lambda: nn.MatchingPursuitAutoencoder(8, 20, 2),
        lambda m, z: m(z.flatten(0, 1)).loss,
    ),
    "QuaternionLinear": (lambda: nn.QuaternionLinear(8, 4), lambda m, z: m(z).square().mean()),
}

every_module = pytest.mark.parametrize("name", MODULES)


class Model(torch.nn.Module):
    """A projection and the module on it, as a scalar loss."""

    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.project = torch.nn.Linear(10, 8)
        self.module = MODULES[name][0]()
        self.apply_module = MODULES[name][1]
        if isinstance(self.module, nn.ISTA):  # smooth at the points of these tests: no argument of relu is near 0
            self.module.lambd = -20.0

    def forward(self, x: Tensor) -> Tensor:
        return self.apply_module(self.module, torch.nn.functional.normalize(self.project(x), dim=-1))


def test_every_public_module_is_here() -> None:
    assert set(MODULES) == {
        name
        for name in nn.__all__
        if isinstance(getattr(nn, name), type) and issubclass(getattr(nn, name), torch.nn.Module)
    }


def loss_and_gradients(model: torch.nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    model.zero_grad()
    loss = model(x)
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


def check_same(actual: tuple[Tensor, list[Tensor]], expected: tuple[Tensor, list[Tensor]], rtol: float = 1e-9) -> None:
    assert len(actual[1]) == len(expected[1]) > 0
    torch.testing.assert_close(actual[0], expected[0], rtol=rtol, atol=rtol)
    for gradient, wanted in zip(actual[1], expected[1], strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=rtol, atol=rtol * max(1.0, wanted.abs().max().item()))


@every_module
@pytest.mark.no_sanitizer
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # the compiler's own
def test_compiles_to_one_graph(name: str) -> None:
    model, x = Model(name).double(), normal(1, 2, 12, 10)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    check_same(loss_and_gradients(compiled, x), loss_and_gradients(model, x))


@every_module
def test_activation_checkpointing(name: str) -> None:
    model, x = Model(name).double(), normal(1, 2, 12, 10)
    expected = loss_and_gradients(model, x)
    model.zero_grad()
    loss = checkpoint(model, x, use_reentrant=False)
    loss.backward()
    check_same((loss.detach(), [p.grad for p in model.parameters() if p.grad is not None]), expected)


@every_module
def test_autocast_with_a_gradient_scaler(name: str) -> None:
    """Features are rounded to bfloat16; what is computed from them is not."""
    model, x = Model(name), normal(1, 2, 12, 10).float()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    exact, _ = loss_and_gradients(copy.deepcopy(model), x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(x)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.detach(), exact, rtol=0.05, atol=0.05)
    before = [p.detach().clone() for p in model.parameters()]
    scaler.scale(loss).backward()
    scaler.step(optimiser)
    scaler.update()
    assert scaler.get_scale() == 1024.0, "the step was skipped: a gradient was not finite"
    assert any(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


@every_module
def test_copies_behave_alike(name: str) -> None:
    model, x = Model(name).double(), normal(1, 2, 12, 10)
    expected = loss_and_gradients(model, x)
    check_same(loss_and_gradients(copy.deepcopy(model), x), expected)
    module = pickle.loads(pickle.dumps(model.module))
    assert repr(module) == repr(model.module)
    fresh = Model(name).double()
    fresh.load_state_dict(model.state_dict())
    check_same(loss_and_gradients(fresh, x), expected)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    if not torch.distributed.is_available():
        pytest.skip("torch is built without distributed")
    file = tmp_path_factory.mktemp("group") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@every_module
@pytest.mark.no_sanitizer
def test_distributed_data_parallel(name: str, one_process: None) -> None:
    model, x = Model(name).double(), normal(1, 2, 12, 10)
    expected = loss_and_gradients(model, x)
    check_same(loss_and_gradients(DistributedDataParallel(copy.deepcopy(model)), x), expected)
