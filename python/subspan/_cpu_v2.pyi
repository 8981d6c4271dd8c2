# The functions of every compiled CPU module. Arrays are torch tensors, NumPy arrays or anything with __dlpack__;
# outputs and saved arrays are filled, None where they are not wanted.
from typing import Any

version: str
level: str

def max_threads() -> int: ...
def measure_fma_peak(seconds: float, threads: int) -> float: ...
def gemm_benchmark(n: int, repeats: int) -> float: ...
def small_svd(M: Any, values: Any, left: Any | None, right: Any | None, info: Any | None, threads: int, /) -> None: ...

small_svdvals = small_svd

def small_eigh(A: Any, values: Any, vectors: Any | None, info: Any | None, threads: int, /) -> None: ...
def orthonormal_basis(
    A: Any, Q: Any, triangle: Any | None, info: Any | None, rank_tol: float, threads: int, /
) -> None: ...
def pairwise_principal_angles(
    A: Any, B: Any, values: Any, info: Any | None, function: int, squared: bool, padded: bool, threads: int, /
) -> None: ...
def pairwise_angles_gradient(
    A: Any, B: Any, upstream: Any, phi: Any, function: int, squared: bool, padded: bool, threads: int, /
) -> None: ...
def principal_angles(
    A: Any,
    B: Any,
    values: Any,
    info: Any | None,
    left: Any | None,
    right: Any | None,
    function: int,
    squared: bool,
    padded: bool,
    orthonormal: bool,
    rank_tol: float,
    threads: int,
    /,
) -> None: ...

principal_cosines = subspace_distance = subspace_similarity = principal_angles
pairwise_principal_cosines = pairwise_subspace_distance = pairwise_subspace_similarity = pairwise_principal_angles

def subspace_angles_gradient(
    A: Any,
    B: Any,
    upstream: Any,
    d_A: Any,
    d_B: Any,
    function: int,
    squared: bool,
    padded: bool,
    orthonormal: bool,
    rank_tol: float,
    threads: int,
    /,
) -> None: ...
def subspace_logits(
    x: Any, W: Any, logits: Any, projections: Any | None, scale: float, normalize: bool, threads: int, /
) -> None: ...
def subspace_logits_gradient(
    x: Any,
    W: Any,
    projections: Any,
    upstream: Any,
    d_x: Any,
    d_W: Any,
    scale: float,
    normalize: bool,
    columns: bool,
    wants_x: bool,
    wants_W: bool,
    threads: int,
    /,
) -> None: ...
def spd_logdet(
    A: Any, logdet: Any, info: Any | None, inverse: Any | None, implicit_identity: bool, threads: int, /
) -> None: ...
def coding_rate(
    Z: Any,
    weights: Any | None,
    rate: Any,
    info: Any | None,
    d_Z: Any | None,
    d_weights: Any | None,
    alpha: float,
    eps2: float,
    scale: float,
    side: int,
    threads: int,
    /,
) -> None: ...

logdet_gram = coding_rate

def class_coding_rates(
    Z: Any, labels: Any, rates: Any, mass: Any, d_Z: Any | None, eps2: float, num_classes: int, threads: int, /
) -> None: ...
def rate_reduction(
    Z: Any, labels: Any, delta: Any, d_Z: Any | None, eps2: float, num_classes: int, gamma: float, threads: int, /
) -> None: ...
def rate_operator(Z: Any, operator: Any, alpha: float, threads: int, /) -> None: ...
def class_mass(membership: Any, mass: Any, threads: int, /) -> None: ...
def soft_class_coding_rates(Z: Any, membership: Any, rates: Any, eps2: float, threads: int, /) -> None: ...
def soft_class_gradient(
    Z: Any, membership: Any, upstream: Any, d_Z: Any, d_membership: Any, eps2: float, threads: int, /
) -> None: ...
def soft_rate_reduction(
    Z: Any,
    membership: Any,
    delta: Any,
    d_Z: Any | None,
    d_membership: Any | None,
    eps2: float,
    gamma: float,
    threads: int,
    /,
) -> None: ...
def covariance_contrast(
    z: Any,
    C: Any,
    contrast: Any,
    covariance: Any | None,
    d_z: Any | None,
    beta: float,
    detach_covariance: bool,
    threads: int,
    /,
) -> None: ...
def sinkhorn(scores: Any, P: Any, temperature: float, iterations: int, grad: int, threads: int, /) -> None: ...
def sinkhorn_gradient(
    scores: Any,
    P: Any,
    upstream: Any,
    d_scores: Any,
    temperature: float,
    iterations: int,
    grad: int,
    threads: int,
    /,
) -> None: ...
def affine_product(
    A: Any, B: Any, E: Any | None, result: Any, scale: float, shift: float, relu: bool, threads: int, /
) -> None: ...
def grassmann_exp(X: Any, D: Any, result: Any, project: bool, rows: bool, threads: int, /) -> None: ...
def grassmann_step(
    P: Any,
    gradient: Any,
    buffer: Any | None,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    transport: bool,
    orthonormalize: bool,
    rows: bool,
    threads: int,
    /,
) -> None: ...
def grassmann_transport(X: Any, D: Any, V: Any, result: Any, rows: bool, threads: int, /) -> None: ...
def cayley(A: Any, Q: Any, W: Any | None, threads: int, /) -> None: ...
def cayley_gradient(W: Any, G: Any, d_A: Any, threads: int, /) -> None: ...
def cayley_of_packed(a: Any, Q: Any, W: Any | None, threads: int, /) -> None: ...
def cayley_of_packed_gradient(W: Any, G: Any, d_a: Any, threads: int, /) -> None: ...
def cayley_of_triangle(
    A: Any, base: Any | None, Q: Any, W: Any | None, turned: Any | None, threads: int, /
) -> None: ...
def cayley_of_triangle_gradient(W: Any, turned: Any | None, G: Any, d_A: Any, threads: int, /) -> None: ...
def householder_apply(
    V: Any,
    X: Any,
    tau: Any | None,
    result: Any,
    coefficients: Any | None,
    factors: Any | None,
    transpose: bool,
    right: bool,
    rows: bool,
    threads: int,
    /,
) -> None: ...
def householder_apply_gradient(
    V: Any,
    X: Any,
    tau: Any | None,
    coefficients: Any,
    factors: Any,
    upstream: Any,
    d_V: Any,
    d_X: Any,
    d_tau: Any | None,
    transpose: bool,
    right: bool,
    rows: bool,
    wants_V: bool,
    wants_X: bool,
    wants_tau: bool,
    threads: int,
    /,
) -> None: ...
def householder_product(
    V: Any,
    tau: Any | None,
    result: Any,
    coefficients: Any | None,
    factors: Any | None,
    columns: int,
    rows: bool,
    lapack: bool,
    threads: int,
    /,
) -> None: ...
def householder_product_gradient(
    V: Any,
    tau: Any | None,
    coefficients: Any,
    factors: Any,
    upstream: Any,
    d_V: Any,
    d_tau: Any | None,
    columns: int,
    rows: bool,
    lapack: bool,
    wants_V: bool,
    wants_tau: bool,
    threads: int,
    /,
) -> None: ...
def muon_step(
    W: list[Any],
    gradients: list[Any],
    buffers: list[Any],
    numbers: list[float],
    coefficients: list[float],
    least_norm: float,
    threads: int,
    /,
) -> None: ...
def newton_schulz(G: Any, result: Any, coefficients: list[float], threads: int, /) -> None: ...
def newton_schulz_list(
    G: list[Any], results: list[Any], coefficients: list[float], least_norm: float, threads: int, /
) -> None: ...
def orthonormalize(
    A: Any, Q: Any, triangle: Any | None, info: Any | None, polar: bool, rows: bool, threads: int, /
) -> None: ...
def orthonormalize_gradient(
    Q: Any,
    triangle: Any,
    d_Q: Any | None,
    d_triangle: Any | None,
    d_A: Any,
    polar: bool,
    rows: bool,
    threads: int,
    /,
) -> None: ...
def skew_expm(A: Any, Q: Any, threads: int, /) -> None: ...
def skew_expm_gradient(A: Any, Q: Any, G: Any, d_A: Any, threads: int, /) -> None: ...
def stiefel_retract(X: Any, V: Any, result: Any, method: int, rows: bool, threads: int, /) -> None: ...
def stiefel_retract_gradient(
    X: Any, V: Any, G: Any, d_X: Any, d_V: Any, method: int, rows: bool, threads: int, /
) -> None: ...
def stiefel_step(
    X: list[Any],
    gradients: list[Any],
    buffers: list[Any],
    seconds: list[Any],
    largest: list[Any],
    steps: list[float],
    lr: float,
    momentum: float,
    share: float,
    beta2: float,
    eps: float,
    nesterov: bool,
    maximize: bool,
    canonical: bool,
    polar: bool,
    rows: bool,
    threads: int,
    /,
) -> None: ...
def phm_weight(A: Any, S: Any, W: Any, threads: int, /) -> None: ...
def phm_weight_gradient(
    A: Any, S: Any, dW: Any, dA: Any, dS: Any, wants_A: bool, wants_S: bool, threads: int, /
) -> None: ...
def phm_linear(x: Any, A: Any, S: Any, bias: Any | None, y: Any, method: int, threads: int, /) -> None: ...
def phm_linear_gradient(
    x: Any,
    A: Any,
    S: Any,
    dy: Any,
    dx: Any,
    dA: Any,
    dS: Any,
    dbias: Any,
    wants_x: bool,
    wants_A: bool,
    wants_S: bool,
    wants_bias: bool,
    threads: int,
    /,
) -> None: ...
def phm_rank(
    x: Any,
    P: Any,
    V: Any,
    U: Any | None,
    S: Any,
    bias: Any | None,
    y: Any,
    transposed: bool,
    threads: int,
    /,
) -> None: ...
def phm_linear_lowrank(x: Any, A: Any, U: Any, V: Any, bias: Any | None, y: Any, threads: int, /) -> None: ...
def phm_linear_lowrank_gradient(
    x: Any,
    A: Any,
    U: Any,
    V: Any,
    dy: Any,
    dx: Any,
    dA: Any,
    dU: Any,
    dV: Any,
    dbias: Any,
    wants_x: bool,
    wants_A: bool,
    wants_U: bool,
    wants_V: bool,
    wants_bias: bool,
    threads: int,
    /,
) -> None: ...
def phm_adapter(
    x: Any,
    A: Any,
    U: Any,
    V: Any,
    bias: Any | None,
    up_A: Any,
    up_U: Any,
    up_V: Any,
    up_bias: Any | None,
    y: Any,
    activation: int,
    residual: bool,
    threads: int,
    /,
) -> None: ...
def phm_adapter_gradient(
    x: Any,
    A: Any,
    U: Any,
    V: Any,
    bias: Any | None,
    up_A: Any,
    up_U: Any,
    up_V: Any,
    up_bias: Any | None,
    dy: Any,
    dx: Any,
    dA: Any,
    dU: Any,
    dV: Any,
    dbias: Any,
    d_up_A: Any,
    d_up_U: Any,
    d_up_V: Any,
    d_up_bias: Any,
    activation: int,
    residual: bool,
    wants_x: bool,
    wants_factors: bool,
    threads: int,
    /,
) -> None: ...
def flops_loss(
    x: Any,
    y: Any | None,
    row_mask: Any | None,
    running: Any | None,
    loss: Any,
    means: Any | None,
    x_factor: Any | None,
    y_factor: Any | None,
    form: int,
    decay: float,
    counts: bool,
    threads: int,
    /,
) -> None: ...

l1_loss = flops_metric = flops_loss

def signed_rows(
    x: Any, factor: Any, row_mask: Any | None, upstream: Any, out: Any, slope: float, threads: int, /
) -> None: ...
def topk_rows(x: Any, values: Any, indices: Any | None, k: int, by: int, relu: bool, threads: int, /) -> None: ...
def sparse_decode(
    values: Any, indices: Any, offsets: Any | None, W: Any, bias: Any | None, out: Any, threads: int, /
) -> None: ...
def sparse_decode_gradient(
    G: Any, values: Any, indices: Any, offsets: Any | None, W: Any, d_values: Any, d_W: Any, threads: int, /
) -> None: ...
def sddmm(G: Any, W: Any, indices: Any, offsets: Any | None, out: Any, threads: int, /) -> None: ...
def sparse_t_dense(
    values: Any, indices: Any, offsets: Any | None, G: Any, out: Any, columns: int, threads: int, /
) -> None: ...
def sparse_t_dense_gradient(
    U: Any, values: Any, indices: Any, offsets: Any | None, G: Any, d_values: Any, d_G: Any, threads: int, /
) -> None: ...
def used_columns(indices: Any, offsets: Any | None, used: Any, columns: int, threads: int, /) -> int: ...
def weight_rows(
    values: Any,
    indices: Any,
    offsets: Any | None,
    G: Any,
    W: Any | None,
    d_values: Any | None,
    rows: Any,
    columns: int,
    added: bool,
    threads: int,
    /,
) -> None: ...
def linear_topk(
    x: Any,
    W: Any,
    b: Any | None,
    values: Any,
    indices: Any | None,
    k: int,
    by: int,
    relu: bool,
    threads: int,
    /,
) -> None: ...
def batch_topk(
    x: Any, values: Any, indices: Any | None, counts: Any | None, k: int, relu: bool, threads: int, /
) -> None: ...
def jumprelu(x: Any, threshold: Any, out: Any, bandwidth: float, threads: int, /) -> None: ...
def jumprelu_gradient(
    upstream: Any, x: Any, threshold: Any, d_x: Any, d_threshold: Any | None, bandwidth: float, threads: int, /
) -> None: ...
def soft_threshold(x: Any, threshold: Any, out: Any, threads: int, /) -> None: ...
def soft_threshold_gradient(
    upstream: Any, x: Any, threshold: Any, d_x: Any, d_threshold: Any | None, threads: int, /
) -> None: ...
def sparse_scores(
    q_values: Any,
    d_values: Any,
    q_indices: Any,
    d_indices: Any,
    q_offsets: Any | None,
    d_offsets: Any | None,
    scores: Any,
    columns: int,
    threads: int,
    /,
) -> None: ...
def scores_on_support(
    upstream: Any,
    d_values: Any,
    q_indices: Any,
    d_indices: Any,
    q_offsets: Any | None,
    d_offsets: Any | None,
    out: Any,
    columns: int,
    threads: int,
    /,
) -> None: ...
def matching_pursuit(
    x: Any,
    W: Any,
    values: Any,
    residual: Any | None,
    indices: Any | None,
    steps: int,
    by: int,
    relu: bool,
    threads: int,
    /,
) -> None: ...
def pursuit_values(
    x: Any, W: Any, indices: Any, values: Any, residual: Any | None, relu: bool, threads: int, /
) -> None: ...
def pursuit_gradient(
    x: Any,
    W: Any,
    indices: Any,
    g_values: Any | None,
    g_residual: Any | None,
    d_x: Any | None,
    d_W: Any | None,
    relu: bool,
    threads: int,
    /,
) -> None: ...
def score_rows(
    offsets: Any,
    indices: Any,
    values: Any,
    row_offsets: Any,
    row_indices: Any,
    row_values: Any,
    columns: int,
    ids: Any,
    scores: Any,
    threads: int,
    op: str,
    /,
) -> None: ...

class SearchIndex:
    def __init__(self, columns: int, values: int, window: int, bitmap_share: float, /) -> None: ...
    def add(self, offsets: Any, indices: Any, values: Any, first: int, threads: int, op: str, /) -> None: ...
    def copy(self) -> SearchIndex: ...
    def become(self, other: SearchIndex, /) -> None: ...
    @staticmethod
    def open(buffer: Any, later: bool, threads: int, op: str, /) -> SearchIndex: ...
    def parts(self) -> list[Any]: ...
    def search(
        self,
        offsets: Any,
        indices: Any,
        values: Any,
        scores: Any,
        ids: Any,
        error_bound: Any,
        share: float,
        trust: float,
        first: int,
        threads: int,
        op: str,
        /,
    ) -> tuple[int, int, int, int]: ...
    def facts(self) -> dict[str, Any]: ...
