"""The kernel for classes: the whole cost in memory, float64, NumPy.

A sweep needs lse_T(g - C / eps) and lse_S(f - C / eps). Both come from one matrix, exp(base + K)
with each row scaled to a maximum of one. While g stays near ``base``, a sweep is two products of
this matrix with a vector and needs no exponential of S x T numbers (absorption; Schmitzer 2019,
section 3.1). If a column still underflows, it is summed in the log domain.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from uotft.core.records import Floats
from uotft.selection.transport.iteration import Half, Plan, Problem, Solver, solve

NEAR = 30.0  # largest distance of the potentials from ``base``; beyond it a new matrix is made
FLOOR = -650.0  # smallest logarithm of an entry: avoids denormal numbers, which are slow
THIN = 1e-200  # column sums below this are recomputed; far above exp(FLOOR), far below 1


@dataclass(frozen=True)
class DenseProblem(Problem):
    """Equation (5) with its cost (S, T) in memory."""

    cost_ST: Floats
    _kernels: dict[float, DenseKernel] = field(default_factory=dict, repr=False, compare=False)

    @property
    def largest_cost(self) -> float:
        """The largest cost."""
        return float(self.cost_ST.max())

    def kernel(self, epsilon: float) -> DenseKernel:
        """The kernel at this epsilon; problems that differ in tau share it."""
        if epsilon not in self._kernels:
            self._kernels.clear()  # one at a time: each is twice the size of the cost
            self._kernels[epsilon] = DenseKernel(self.cost_ST / -epsilon)
        return self._kernels[epsilon]

    def cost_rows(self, rows: Any) -> Floats:
        """The cost of some source points (rows, T)."""
        return np.asarray(self.cost_ST[rows])


def solve_grid(
    problem: DenseProblem,
    strengths: Iterable[tuple[float, float, float]],
    solver: Solver | None = None,
) -> list[Plan]:
    """The plans of one cost at many (epsilon, tau_source, tau_target), in the given order.

    Consecutive entries with the same epsilon share their kernel. To change the cost scale eps_c,
    multiply all three strengths by it.
    """
    return [
        solve(replace(problem, epsilon=e, tau_source=s, tau_target=t), solver)
        for e, s, t in strengths
    ]


#: base (T,), log of the row maxima (S,), scaled matrix (S, T)
Absorbed = tuple[Floats, Floats, Floats]


class DenseKernel:
    """K = -C / eps (S, T), and the matrix exp(base + K) scaled to rows of maximum one."""

    def __init__(self, log_kernel_ST: Floats) -> None:
        self._log_ST = log_kernel_ST
        self._now: Absorbed | None = None

    def _absorb(self, base_T: Floats) -> Absorbed:
        """The scaled matrix at the potentials ``base_T``."""
        matrix_ST = self._log_ST + base_T
        top_S = matrix_ST.max(1)
        matrix_ST -= top_S[:, None]
        np.maximum(matrix_ST, FLOOR, out=matrix_ST)
        return base_T, top_S, np.exp(matrix_ST, out=matrix_ST)

    def sweep(self, g_T: Floats, log_w_S: Floats, kappa_S: float) -> Half:
        """f from g, and both log marginals of the plan of f and g."""
        if self._now is None or np.abs(g_T - self._now[0]).max() > NEAR:
            # the base of zero serves every problem that shares this kernel
            self._now = self._absorb(g_T if np.abs(g_T).max() > NEAR else np.zeros_like(g_T))
        base_T, top_S, matrix_ST = self._now
        self._u_T = np.exp(g_T - base_T)
        self._row_S = matrix_ST @ self._u_T
        log_row_S = top_S + np.log(self._row_S)
        f_S = kappa_S * (log_w_S - log_row_S)
        self._f_S, self._g_T = f_S, g_T

        scale_S = f_S + top_S
        highest = scale_S.max()
        self._scale_S = np.exp(scale_S - highest)
        self._column_T = self._scale_S @ matrix_ST
        if self._column_T.min() > THIN:
            log_mass_T = np.log(self._column_T) + highest + g_T - base_T
        else:
            log_mass_T = logsumexp(self._log_ST + f_S[:, None], axis=0) + g_T
        return Half(f_S, f_S + log_row_S, log_mass_T)

    def coupling(self) -> Floats:
        """Q' P (T, T) of the last sweep."""
        if self._now and self._column_T.min() > THIN:
            matrix_ST = self._now[2] * np.sqrt(self._scale_S / self._row_S)[:, None]
            return np.asarray((matrix_ST.T @ matrix_ST) * self._u_T / self._column_T[:, None])
        log_plan_ST = self._log_ST + self._f_S[:, None] + self._g_T
        by_row, by_column = (
            np.exp(log_plan_ST - logsumexp(log_plan_ST, axis=axis, keepdims=True))
            for axis in (1, 0)
        )
        return np.asarray(by_column.T @ by_row)


def logsumexp(x: Floats, axis: int, keepdims: bool = False) -> Floats:
    """log(sum(exp(x))) along ``axis``, with the largest term factored out."""
    top = x.max(axis, keepdims=True)
    terms = x - top
    np.maximum(terms, FLOOR, out=terms)
    total = np.log(np.exp(terms, out=terms).sum(axis, keepdims=True)) + top
    return np.asarray(total if keepdims else total.squeeze(axis))
