"""Costs between class means, and the unbalanced transport plan of equation (5).

    min_P  <P, C> - eps h(P) + tau_S KL(P 1, w_S) + tau_T KL(P' 1, w_T)

(Liu et al. 2022), solved by the generalised Sinkhorn iteration in the log domain (Chizat et al.
2018, Sejourne et al. 2019): nothing under- or overflows at any cost scale. NumPy only, float64.

Axes: S source classes, T target classes, D features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field

from uotft.errors import UserError
from uotft.records import ClassBank, Floats, Settings

Metric = Literal["cosine", "l2"]


class NotConverged(UserError):
    """The solver stopped before its residual was small: the ranking cannot be trusted."""


@dataclass(frozen=True)
class Problem:
    """Cost (S, T), weights (S,) and (T,), and the three strengths of equation (5)."""

    cost_ST: Floats
    weights_S: Floats
    weights_T: Floats
    epsilon: float
    tau_source: float
    tau_target: float


@dataclass(frozen=True)
class Plan:
    """The solution: log P (S, T), its log row sums, and how far the fixed point is missed."""

    log_plan_ST: Floats
    log_mass_S: Floats
    iterations: int
    residual: float
    converged: bool


class Solver(Settings):
    """When the iteration stops."""

    tolerance: float = Field(1e-9, gt=0, description="largest residual of the fixed point")
    max_iterations: int = Field(100_000, ge=1, description="sweeps before giving up")


def cost(source: ClassBank, target: ClassBank, metric: Metric) -> Floats:
    """The cost (S, T): 1 - cosine, or the Euclidean distance, between class means."""
    for bank, side in ((source, "source"), (target, "target")):
        check_means(bank, side, metric)
    if source.means.shape[1] != target.means.shape[1]:
        raise UserError(
            f"source means have {source.means.shape[1]} features and target means "
            f"{target.means.shape[1]}: make both with the same backbone"
        )
    if metric == "cosine":
        return np.asarray(1 - _unit(source.means) @ _unit(target.means).T)
    squares = np.square(source.means).sum(1)[:, None] + np.square(target.means).sum(1)
    return np.asarray(np.sqrt(np.maximum(squares - 2 * source.means @ target.means.T, 0)))


def check_means(bank: ClassBank, side: str, metric: Metric) -> None:
    """Refuse means that are not finite and, under the cosine, zero vectors."""
    finite = np.isfinite(bank.means).all(1)
    zero = ~bank.means.any(1) if metric == "cosine" else ~finite
    for wrong, what in ((~finite, "NaN or infinite"), (zero, "all zero (the cosine needs length)")):
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise UserError(f"{side} class {bank.names[row]!r} (row {row}): its mean is {what}")


def solve(problem: Problem, solver: Solver | None = None) -> Plan:
    """Generalised Sinkhorn in the log domain; ``residual`` is the last change of the potentials.

    With kappa = tau / (tau + eps), one sweep is f = -kappa_S (softmin of g), g likewise: both
    scaled by eps, started at zero. At a fixed point P = exp(f + g - C / eps) w_S w_T solves (5).
    """
    solver = solver or Solver()
    with np.errstate(divide="ignore"):
        log_S, log_T = np.log(problem.weights_S), np.log(problem.weights_T)
    kernel_ST = -problem.cost_ST / problem.epsilon
    kappa_S = problem.tau_source / (problem.tau_source + problem.epsilon)
    kappa_T = problem.tau_target / (problem.tau_target + problem.epsilon)
    # The paper's entropy h(P) = -sum P (log P - 1) has no weights in its reference measure, so
    # log P = f + g - C / eps and each half-step moves a log marginal towards its log weight.
    f_S, g_T = np.zeros(len(log_S)), np.zeros(len(log_T))
    residual, sweep = np.inf, 0
    while residual > solver.tolerance and sweep < solver.max_iterations:
        new_f = kappa_S * (log_S - _logsumexp(kernel_ST + g_T, axis=1))
        new_g = kappa_T * (log_T - _logsumexp(kernel_ST + new_f[:, None], axis=0))
        residual = float(max(_change(new_f, f_S), _change(new_g, g_T)))
        f_S, g_T, sweep = new_f, new_g, sweep + 1
    log_plan_ST = f_S[:, None] + g_T + kernel_ST
    return Plan(
        log_plan_ST=log_plan_ST,
        log_mass_S=_logsumexp(log_plan_ST, axis=1),
        iterations=sweep,
        residual=residual,
        converged=bool(residual <= solver.tolerance and np.isfinite(g_T).all()),
    )


def _unit(means: Floats) -> Floats:
    return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True))


def _change(new: Floats, old: Floats) -> float:
    return float(np.abs(np.where(new == old, 0, new - old)).max())


def _logsumexp(x: Floats, axis: int) -> Floats:
    top = x.max(axis, keepdims=True)
    top = np.where(np.isfinite(top), top, 0)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.exp(x - top).sum(axis)) + top.squeeze(axis))
