"""The orthogonal parametrisation: what torch's own tests ask of theirs, the same trainings, weight decay."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parametrizations, parametrize

from sample_arrays import normal
from subspan.nn import orthogonal
from subspan.nn.orthogonal import Orthogonal
from subspan.ops.skew import cayley_of_triangle

MAPS = ("householder", "cayley", "matrix_exp")
SHAPES = ((4, 4), (5, 3), (3, 5), (1, 6), (7, 1), (2, 3, 4, 6), (3, 5, 5))

every_map = pytest.mark.parametrize("kind", MAPS)
every_base = pytest.mark.parametrize("trivial", (True, False), ids=("base", "no base"))
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


class Holder(torch.nn.Module):
    """A weight of any shape."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight.clone())

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.mT


def made(shape: tuple[int, ...], kind: str | None = None, trivial: bool = True, dtype: torch.dtype = torch.float64):
    return orthogonal(Holder(normal(3, *shape).to(dtype)), "weight", kind, use_trivialization=trivial)


def deviation(weight: Tensor) -> float:
    tall = (weight.mT if weight.shape[-2] < weight.shape[-1] else weight).detach().double()
    return (tall.mT @ tall - torch.eye(tall.shape[-1], dtype=torch.float64)).abs().max().item()


def q_factor(weight: Tensor) -> Tensor:
    """Of the QR decomposition whose R has a positive diagonal."""
    wide = weight.shape[-2] < weight.shape[-1]
    Q, R = torch.linalg.qr(weight.mT if wide else weight)
    Q = Q * R.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]
    return Q.mT if wide else Q


def can_assign(kind: str, trivial: bool) -> bool:
    return trivial or kind == "householder"


# --- what torch's tests ask ---


@every_map
@every_base
@every_shape
def test_weight_is_orthogonal_and_keeps_its_shape(shape, kind, trivial):
    start = normal(3, *shape)
    module = made(shape, kind, trivial)
    assert module.weight.shape == shape and module.weight.dtype == torch.float64
    assert deviation(module.weight) < 1e-14
    if can_assign(kind, trivial):
        torch.testing.assert_close(module.weight, q_factor(start), rtol=0, atol=1e-13)


@every_map
@every_base
@every_shape
def test_assignment(shape, kind, trivial):
    module = made(shape, kind, trivial)
    Q, other = q_factor(normal(8, *shape)), normal(9, *shape)
    if not can_assign(kind, trivial):
        with pytest.raises(
            NotImplementedError, match=r"assign to the matrix exponential or the Cayley parametrization"
        ):
            module.weight = Q
        return
    module.weight = Q
    torch.testing.assert_close(module.weight, Q, rtol=0, atol=1e-13)
    module.weight = -Q  # of the other determinant where there is one row
    torch.testing.assert_close(module.weight, -Q, rtol=0, atol=1e-13)
    module.weight = other
    torch.testing.assert_close(module.weight, q_factor(other), rtol=0, atol=1e-13)


@every_map
@every_shape
def test_an_orthogonal_weight_is_kept_exactly(shape, kind):
    Q = q_factor(normal(8, *shape))
    module = orthogonal(Holder(Q), map=kind)
    assert torch.equal(module.weight, Q)
    module.weight = module.weight.detach()
    assert torch.equal(module.weight, Q)


@every_map
@every_base
@pytest.mark.parametrize("shape", ((4, 4), (5, 3), (3, 5)), ids=str)
def test_gradients_of_steps_lie_below_the_diagonal(shape, kind, trivial):
    module = made(shape, kind, trivial)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    for step in range(2):
        before = module.weight.detach().clone()
        optimiser.zero_grad()
        module(normal(step, 6, shape[1])).cos().sum().backward()
        gradient = module.parametrizations.weight.original.grad
        assert gradient is not None and gradient.abs().max() > 1e-3
        tall = gradient if shape[0] >= shape[1] else gradient.mT
        assert torch.equal(tall.triu(), torch.zeros_like(tall))
        optimiser.step()
        assert deviation(module.weight) < 1e-14
        assert (module.weight - before).abs().max() > 1e-4


def test_errors():
    layer = torch.nn.Linear(3, 4)
    with pytest.raises(ValueError, match=r"orthogonal: map: expected one of 'householder', 'cayley'.*got 'foo'"):
        orthogonal(layer, "weight", "foo")
    with pytest.raises(ValueError, match=r"orthogonal: orthogonal_map: expected one of .*got 'foo'"):
        orthogonal(layer, "weight", orthogonal_map="foo")
    with pytest.raises(ValueError, match=r"orthogonal: orthogonal_map: expected None beside map='exp'"):
        orthogonal(layer, map="exp", orthogonal_map="cayley")
    with pytest.raises(ValueError, match=r"orthogonal: bias: expected at least 2 dimensions, got shape"):
        orthogonal(layer, "bias")
    with pytest.raises(ValueError, match=r"orthogonal: name: expected the name of a parameter or buffer.*'other'"):
        orthogonal(layer, "other")
    with pytest.raises(TypeError, match=r"orthogonal: module: expected a torch.nn.Module, got Tensor"):
        orthogonal(torch.ones(3, 3))
    with pytest.raises(TypeError, match=r"orthogonal: use_trivialization: expected True or False"):
        orthogonal(layer, use_trivialization=1)
    with pytest.raises(TypeError, match=r"orthogonal: weight: expected float64.*complex64"):
        orthogonal(torch.nn.Linear(3, 3, dtype=torch.complex64))
    assert not parametrize.is_parametrized(layer)
    orthogonal(layer)
    with pytest.raises(ValueError, match=r"orthogonal: weight: expected shape \(4, 3\), got shape \(5, 5\)"):
        layer.weight = torch.randn(5, 5)
    parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) is torch.nn.Linear and deviation(layer.weight) < 1e-6


# --- against torch's ---


def pair(shape: tuple[int, ...], kind: str, trivial: bool) -> tuple[torch.nn.Module, torch.nn.Module]:
    """torch's and ours, with torch's state."""
    torch.manual_seed(1)
    theirs = parametrizations.orthogonal(Holder(normal(3, *shape)), "weight", kind, use_trivialization=trivial)
    with torch.no_grad():
        for parameter in theirs.parameters():  # the diagonal is of no consequence, or the signs
            parameter += 0.2 * normal(5, *shape).tril(-1) if shape[-2] >= shape[-1] else 0.2 * normal(5, *shape).triu(1)
    ours = made(shape, kind, trivial)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@every_map
@every_base
@every_shape
def test_trains_as_torch_does(shape, kind, trivial):
    """From torch's checkpoint, weights are the same after ten steps with momentum, base and signs included."""
    theirs, ours = pair(shape, kind, trivial)
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=0, atol=1e-13)
    optimisers = [torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9) for module in (theirs, ours)]
    for step in range(10):
        x = normal(step, 6, shape[-1])
        for module, optimiser in zip((theirs, ours), optimisers, strict=True):
            optimiser.zero_grad()
            module(x).cos().sum().backward()
            optimiser.step()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=0, atol=1e-11)


def test_signs_that_weight_decay_has_shrunk_are_read_from_torchs_checkpoint():
    theirs, ours = pair((6, 4), "householder", False)
    expected = theirs.weight.detach().clone()
    with torch.no_grad():
        theirs.parametrizations.weight.original.diagonal().mul_(0.99)
    assert torch.equal(theirs.weight, torch.zeros(6, 4, dtype=torch.float64))
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours.weight, expected, rtol=0, atol=1e-13)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Steps this small spend their time waiting for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def decayed(module: torch.nn.Module, steps: int) -> torch.nn.Module:
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1, weight_decay=1e-2)
    x = normal(1, 8, module.weight.shape[-1]).float()
    for _ in range(steps):
        optimiser.zero_grad()
        module(x).cos().sum().backward()
        optimiser.step()
    return module


@every_map
@every_base
@pytest.mark.parametrize("shape", ((12, 12), (5, 16)), ids=str)
def test_weight_decay_does_not_leave_the_manifold(shape, kind, trivial, one_thread):
    assert deviation(decayed(made(shape, kind, trivial, torch.float32), 1000).weight) < 1e-5


def test_weight_decay_kills_torchs_default_of_rectangular_weights():
    theirs = parametrizations.orthogonal(torch.nn.Linear(5, 16, bias=False))
    assert decayed(theirs, 1).weight.norm().item() == 0
    ours = orthogonal(torch.nn.Linear(5, 16, bias=False))
    assert decayed(ours, 1).weight.norm().item() == pytest.approx(5**0.5, rel=1e-6)


# --- ours ---


@pytest.mark.parametrize(("shape", "kind"), (((4, 4), "cayley"), ((5, 3), "householder"), ((3, 5), "householder")))
def test_default_map(shape, kind):
    assert made(shape).parametrizations.weight[0].orthogonal_map == kind
    assert made(shape, "exp").parametrizations.weight[0].orthogonal_map == "matrix_exp"
    named = orthogonal(Holder(normal(3, *shape)), orthogonal_map="matrix_exp")
    assert torch.equal(named.weight, made(shape, "exp").weight)


@every_map
@every_base
@pytest.mark.parametrize("shape", ((4, 4), (5, 3), (3, 5), (1, 3), (2, 3, 2)), ids=str)
def test_derivatives(shape, kind, trivial, one_thread):
    parametrization = made(shape, kind, trivial).parametrizations.weight[0]
    X = (0.3 * normal(7, *shape)).requires_grad_()
    assert torch.autograd.gradcheck(parametrization, X)
    assert torch.autograd.gradgradcheck(parametrization, X)


@pytest.mark.parametrize("batch", ((), (3,), (40,)), ids=str)
@pytest.mark.parametrize("n", (0, 1, 2, 5, 16, 23, 64, 70, 130))
@pytest.mark.parametrize("dtype", (torch.float64, torch.float32), ids=str)
def test_cayley_of_a_triangle(n, batch, dtype):
    """Both entries of each pair, the base and the gradient, whatever the upper triangle holds."""
    A, base = normal(1, *batch, n, n) / max(n, 1) ** 0.5, torch.linalg.qr(normal(2, *batch, n, n)).Q
    given = torch.where(torch.ones(n, n).tril(-1).bool(), A, torch.nan).to(dtype).requires_grad_()
    wide = given.detach().double().tril(-1).requires_grad_()
    K, one, weights = wide.tril(-1) - wide.tril(-1).mT, torch.eye(n).double(), normal(3, *batch, n, n)
    for turned in (None, base.to(dtype)):
        expected = torch.linalg.inv(one - K / 2) @ (one + K / 2)
        expected = expected if turned is None else turned.double() @ expected
        value = cayley_of_triangle(given, turned)
        bound = 40 * torch.finfo(dtype).eps * max(n, 1) ** 0.5
        torch.testing.assert_close(value.double(), expected, rtol=0, atol=bound)
        (own,) = torch.autograd.grad(value, given, weights.to(dtype))
        (exact,) = torch.autograd.grad(expected, wide, weights, retain_graph=True)
        torch.testing.assert_close(own.double(), exact, rtol=0, atol=20 * bound)


def test_cayley_of_a_triangle_of_large_norm_is_orthogonal():
    for n, scale in itertools.product((20, 100), (30.0, 1e4)):
        A = (scale * normal(1, 17, n, n)).float()
        base = torch.linalg.qr(normal(2, 17, n, n)).Q.float()
        assert deviation(cayley_of_triangle(A, base)) < 3e-5


def test_cayley_of_a_triangle_is_bitwise_the_same_for_any_number_of_threads():
    A, base = normal(1, 200, 200).float() / 14, torch.linalg.qr(normal(2, 200, 200)).Q.float()
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        given = A.clone().requires_grad_()
        value = cayley_of_triangle(given, base)
        results.append((value.detach(), *torch.autograd.grad(value.cos().sum(), given)))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(other, results[0], strict=True))


def test_nan_stays_in_its_item():
    for kind in MAPS:
        module = made((3, 6, 6), kind)
        with torch.no_grad():
            module.parametrizations.weight.original[1, 4, 2] = torch.nan
        finite = module.weight.isfinite().all(-1).all(-1)
        assert finite.tolist() == [True, False, True]


@every_map
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_half_precision_is_computed_in_float32(kind, dtype):
    for shape in ((12, 12), (16, 5)):
        module = made(shape, kind, True, dtype)
        assert module.weight.dtype == dtype
        base = module.parametrizations.weight[0].base
        assert base.dtype == torch.float32 and deviation(base) < 1e-6
        original = module.parametrizations.weight.original
        with torch.no_grad():
            original += 0.3 * normal(1, *shape).to(dtype)
        exact = Orthogonal(original.float(), kind, True)
        exact.base = base
        assert torch.equal(module.weight, exact(original.float()).to(dtype))
        module.weight.sum().backward()
        assert original.grad.dtype == dtype and original.grad.isfinite().all()


def test_deterministic_without_random_numbers():
    state = torch.get_rng_state()
    first, second = made((9, 4)), made((9, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.parametrizations.weight[0].base, second.parametrizations.weight[0].base)


@every_map
@every_base
def test_copies_and_state(kind, trivial):
    module = made((5, 3), kind, trivial)
    with torch.no_grad():
        module.parametrizations.weight.original += 0.1 * normal(4, 5, 3)
    assert torch.equal(copy.deepcopy(module).weight, module.weight)
    fresh = orthogonal(Holder(normal(11, 5, 3)), "weight", kind, use_trivialization=trivial)
    fresh.load_state_dict(module.state_dict())
    assert torch.equal(fresh.weight, module.weight)
    parametrization = pickle.loads(pickle.dumps(module.parametrizations.weight[0]))
    assert torch.equal(parametrization(module.parametrizations.weight.original), module.weight)
    assert f"orthogonal_map='{kind}'" in repr(module)
    buffers = {name for name, _ in parametrization.named_buffers()}
    assert buffers == ({"base"} if trivial else {"sign"} if kind == "householder" else set())


@every_map
@every_base
@pytest.mark.no_sanitizer
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # the compiler's own
def test_compiles_to_one_graph(kind, trivial):
    for shape in ((6, 6), (7, 4), (4, 7)):
        module = made(shape, kind, trivial)
        x = normal(1, 5, shape[1])
        torch._dynamo.reset()
        compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
        original = module.parametrizations.weight.original
        torch.testing.assert_close(compiled(x), module(x), rtol=0, atol=1e-13)
        (expected,) = torch.autograd.grad(module(x).cos().sum(), original)
        (gradient,) = torch.autograd.grad(compiled(x).cos().sum(), original)
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)


def test_whole_network_and_cache():
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        orthogonal(torch.nn.Linear(8, 16)), torch.nn.ReLU(), orthogonal(torch.nn.Linear(16, 16)), torch.nn.ReLU(),
        orthogonal(torch.nn.Conv1d(16, 4, 3)),
    )  # fmt: skip
    x = torch.randn(2, 5, 8)
    hidden = network[:4](x)
    loss = network[4](hidden.mT).square().sum()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    with parametrize.cached():
        assert network[0].weight is network[0].weight
    assert network[4].weight.shape == (4, 16, 3) and deviation(network[4].weight) < 1e-6
