"""The op table: one row per op. What every op must do is in test_every_op_*.py and test_threads.py, once for all rows.

A row that is added to its family's list is checked for values, types, memory layouts, bad input, threads, gradients and
every torch transform, without further test code.
"""

from __future__ import annotations

import pytest

import angle_rows
import coding_rate_rows
import covariance_rows
import crate_rows
import grassmann_rows
import householder_rows
import logits_rows
import membership_rows
import newton_schulz_rows
import orthonormalize_rows
import phm_adapter_rows
import phm_rows
import pursuit_rows
import sinkhorn_rows
import skew_rows
import small_matrix_rows
import sparse_product_rows
import sparse_rows
import sparse_scores_rows
import sparse_selection_rows
import stiefel_rows

OPS = [
    *coding_rate_rows.ROWS,
    *membership_rows.ROWS,
    *covariance_rows.ROWS,
    *sinkhorn_rows.ROWS,
    *crate_rows.ROWS,
    *angle_rows.ROWS,
    *small_matrix_rows.ROWS,
    *logits_rows.ROWS,
    *grassmann_rows.ROWS,
    *newton_schulz_rows.ROWS,
    *skew_rows.ROWS,
    *stiefel_rows.ROWS,
    *householder_rows.ROWS,
    *orthonormalize_rows.ROWS,
    *phm_rows.ROWS,
    *phm_adapter_rows.ROWS,
    *sparse_rows.ROWS,
    *sparse_selection_rows.ROWS,
    *sparse_product_rows.ROWS,
    *sparse_scores_rows.ROWS,
    *pursuit_rows.ROWS,
]

every_op = pytest.mark.parametrize("op", OPS, ids=lambda op: op.title)
