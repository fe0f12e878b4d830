"""`SparseMatrix`: rows of a matrix by their entries, multiplied with dense ones, differentiably.

Products are sums of weighted rows (`embedding_bag`), which for float32 runs in FBGEMM on a CPU;
the backward pass is the same with the transposed matrix, whose lists are kept beside.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F


class _Rows(NamedTuple):
    indptr: torch.Tensor  # (n + 1,) int64
    indices: torch.Tensor  # (entries,) int64
    values: torch.Tensor  # (entries,) float32


class SparseMatrix:
    """An (n, m) matrix; `product` takes (m, C) to (n, C)."""

    def __init__(self, rows: _Rows, columns: _Rows, order: torch.Tensor, shape: tuple[int, int]):
        """`columns` are the rows of the transposed matrix, `order` their entries' places here."""
        self._rows, self._columns, self._order = rows, columns, order
        self.shape = shape

    @classmethod
    def of(
        cls, indptr: np.ndarray, indices: np.ndarray, values: np.ndarray, num_columns: int
    ) -> SparseMatrix:
        """Build from neighbour lists and a value for each entry."""
        num_rows = len(indptr) - 1
        order = np.argsort(indices, kind="stable")
        of_row = np.repeat(np.arange(num_rows), np.diff(indptr))
        starts = np.zeros(num_columns + 1, dtype=np.int64)
        np.cumsum(np.bincount(indices, minlength=num_columns), out=starts[1:])
        made = [
            torch.from_numpy(np.ascontiguousarray(a))
            for a in (indptr.astype(np.int64), indices.astype(np.int64), starts, of_row[order])
        ]
        weights = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
        places = torch.from_numpy(order)
        return cls(
            _Rows(made[0], made[1], weights),
            _Rows(made[2], made[3], weights[places]),
            places,
            (num_rows, num_columns),
        )

    @classmethod
    def of_dense(cls, matrix: np.ndarray) -> SparseMatrix:
        """Build from the entries that are not zero."""
        rows, columns = np.nonzero(matrix)
        indptr = np.zeros(len(matrix) + 1, dtype=np.int64)
        np.cumsum(np.bincount(rows, minlength=len(matrix)), out=indptr[1:])
        return cls.of(indptr, columns, matrix[rows, columns], matrix.shape[1])

    @property
    def num_entries(self) -> int:
        """How many entries are stored."""
        return len(self._rows.values)

    def scaled(self, factors: torch.Tensor) -> SparseMatrix:
        """Return the matrix with each stored entry times its factor (entries,)."""
        values = self._rows.values * factors
        return SparseMatrix(
            self._rows._replace(values=values),
            self._columns._replace(values=values[self._order]),
            self._order,
            self.shape,
        )

    def product(self, dense: torch.Tensor) -> torch.Tensor:
        """(m, C) to (n, C), differentiable in `dense`."""
        product: Any = _Product.apply(dense, self._rows, self._columns)
        return product


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dense: torch.Tensor, rows: _Rows, columns: _Rows) -> torch.Tensor:
        ctx.columns = columns
        return _summed(rows, dense)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _summed(ctx.columns, gradient), None, None


def _summed(rows: _Rows, dense: torch.Tensor) -> torch.Tensor:
    return F.embedding_bag(
        rows.indices,
        dense.contiguous(),
        rows.indptr,
        mode="sum",
        per_sample_weights=rows.values,
        include_last_offset=True,
    )
