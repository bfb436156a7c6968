"""Solves the unbalanced transport problem of equation (5), at any setting.

    min_P  <P, C> - eps h(P) + tau_S KL(P 1, w_S) + tau_T KL(P' 1, w_T)

(Liu et al. 2022, with h(P) = -sum P (log P - 1)). At the optimum log P = f + g - C / eps, and each
half-step of the generalised Sinkhorn iteration (Chizat et al. 2018) has a closed form:

    f = kappa_S (log w_S - lse_T(g - C / eps)),   kappa_S = tau_S / (tau_S + eps),   g likewise.

A sweep (both half-steps) shrinks the error at least by the factor kappa_S kappa_T. That takes a few
dozen sweeps at the paper's setting, but millions when both strengths are large. If sweeps are slow,
a Newton step on the T target potentials is tried, where Q is the plan with columns and P the plan
with rows scaled to sum one:

    ((1 + eps / tau_T) I - kappa_S Q' P) dg = residual.

It is kept only if it makes the residual smaller, so the sweeps' guarantee stays. A very small
epsilon is reached by way of larger ones.

Axes: S source points, T target points. NumPy only; a `Kernel` may compute elsewhere.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
from pydantic import Field

from uotft.core.errors import Impossible, UserError
from uotft.core.records import Floats, Settings

SLOW = 40  # with more sweeps than this to go, a Newton step is cheaper
STEEP = 300.0  # above this largest cost / epsilon, larger epsilons are solved first
COARSER = 3.0  # ratio of successive epsilons of that warm start
ROUGHLY = 1e-2  # residual at which the warm start moves on to the next epsilon
SHARES = (1.0, 0.5, 0.25, 0.1, 0.03, 0.01)  # fractions of a Newton step, tried in turn
PATIENCE = 5  # sweeps before the next Newton step after one that did not help


class NotConverged(Impossible):
    """The solver stopped before its residual was small, so the ranking cannot be trusted."""


class BadProblem(UserError):
    """Weights or strengths for which equation (5) has no solution."""


class Solver(Settings):
    """When the iteration stops."""

    tolerance: float = Field(1e-9, gt=0, description="largest residual of the log marginals")
    max_iterations: int = Field(10_000, ge=1, description="sweeps before the solver gives up")


class Half(NamedTuple):
    """The result of one sweep over all source points, at potentials g of the target."""

    f_S: Floats  #: kappa_S (log w_S - lse_T(g - C / eps))
    log_mass_S: Floats  #: log P 1
    log_mass_T: Floats  #: log P' 1


class Kernel(Protocol):
    """-C / eps between S source and T target points; an implementation may compute it anywhere."""

    def sweep(self, g_T: Floats, log_w_S: Floats, kappa_S: float) -> Half:
        """One pass over the source points."""
        ...

    def coupling(self) -> Floats:
        """Q' P (T, T) at the plan of the last sweep; its rows sum to one."""
        ...


@dataclass(frozen=True, kw_only=True)
class Problem(ABC):
    """Equation (5): weights (S,) and (T,), the three strengths, and access to its cost."""

    weights_S: Floats
    weights_T: Floats
    epsilon: float
    tau_source: float
    tau_target: float

    @property
    @abstractmethod
    def largest_cost(self) -> float:
        """An upper bound of the cost."""

    @abstractmethod
    def kernel(self, epsilon: float) -> Kernel:
        """The kernel at this epsilon."""

    @abstractmethod
    def cost_rows(self, rows: Any) -> Floats:
        """The cost of some source points (rows, T)."""


@dataclass(frozen=True)
class Plan:
    """The solution, with its ``residual``: the largest error of a log target marginal.

    At the optimum log(P' 1) = log w_T - eps g / tau_T, and likewise for the source, whose equation
    holds exactly after each half-step. A residual of 1e-9 means a marginal wrong by one part in a
    billion.
    """

    problem: Problem
    f_S: Floats
    g_T: Floats
    log_mass_S: Floats
    log_mass_T: Floats
    iterations: int
    residual: float
    converged: bool

    def log_rows(self, rows: Any) -> Floats:
        """log P of some source points (rows, T)."""
        cost = self.problem.cost_rows(rows)
        return np.asarray(self.f_S[rows][:, None] + self.g_T - cost / self.problem.epsilon)

    @cached_property
    def log_plan_ST(self) -> Floats:
        """log P (S, T)."""
        return self.log_rows(slice(None))

    def check(self, advice: str) -> Plan:
        """The plan itself; ``NotConverged`` with ``advice`` if it has not converged."""
        if not self.converged:
            raise NotConverged(
                f"the transport plan has not converged: residual {self.residual:.1e} after "
                f"{self.iterations} sweeps; {advice}"
            )
        return self


def solve(problem: Problem, solver: Solver | None = None) -> Plan:
    """The plan of equation (5); read ``converged`` or call ``check`` before using it.

    Weights that are not positive and finite, or two infinite taus, raise ``BadProblem``.
    """
    for side, weights in (("source", problem.weights_S), ("target", problem.weights_T)):
        if not ((weights > 0) & (weights < np.inf)).all():
            raise BadProblem(f"the weights of the {side} must all be above zero and finite")
    if np.isinf(problem.tau_source) and np.isinf(problem.tau_target):
        raise BadProblem("tau_source and tau_target are both infinite: no plan meets both weights")
    solver = solver or Solver()
    g_T, spent = _warm_start(problem, solver)
    return _iterate(problem, problem.epsilon, g_T, solver, spent)


def _warm_start(problem: Problem, solver: Solver) -> tuple[Floats, int]:
    """Starting potentials (T,) and the sweeps spent on them: zeros unless epsilon is tiny."""
    slow = _kappa(problem.tau_source, problem.epsilon) * _kappa(problem.tau_target, problem.epsilon)
    g_T, spent = np.zeros(len(problem.weights_T)), 0
    if slow < 0.9:  # a sweep shrinks the error by a tenth at least: fast enough from zero
        return g_T, spent
    epsilons = []
    epsilon = problem.epsilon
    while problem.largest_cost / epsilon > STEEP:
        epsilon *= COARSER
        epsilons.append(epsilon)
    for epsilon in reversed(epsilons):
        rough = Solver(
            tolerance=max(ROUGHLY, solver.tolerance), max_iterations=solver.max_iterations
        )
        plan = _iterate(problem, epsilon, g_T, rough, spent)
        # potentials are in units of epsilon, and the next epsilon is smaller by this factor
        g_T, spent = plan.g_T * COARSER, plan.iterations
    return g_T, spent


def _iterate(problem: Problem, epsilon: float, g_T: Floats, solver: Solver, spent: int) -> Plan:
    """Sweeps, and Newton steps where the sweeps are slow, from potentials ``g_T``."""
    kernel = problem.kernel(epsilon)
    log_w_S, log_w_T = np.log(problem.weights_S), np.log(problem.weights_T)
    kappa_S = _kappa(problem.tau_source, epsilon)
    kappa_T = _kappa(problem.tau_target, epsilon)
    pull_T = epsilon / problem.tau_target

    def sweep(g_T: Floats) -> tuple[Half, Floats, float]:
        half = kernel.sweep(g_T, log_w_S, kappa_S)
        miss_T = log_w_T - pull_T * g_T - half.log_mass_T
        return half, miss_T, float(np.abs(miss_T).max())

    half, miss_T, residual = sweep(g_T)
    count, patience = 1, 0
    while residual > solver.tolerance and spent + count < solver.max_iterations:
        # ---- a sweep: never makes the residual larger
        before, g_T = residual, g_T + kappa_T * miss_T
        half, miss_T, residual = sweep(g_T)
        count, patience = count + 1, patience - 1

        # ---- a Newton step, shortened until it helps
        if patience <= 0 and _sweeps_left(before, residual, solver.tolerance) > SLOW:
            system = -kappa_S * kernel.coupling()
            system[np.diag_indices_from(system)] += 1 + pull_T
            step_T = np.linalg.solve(system, miss_T)
            patience = PATIENCE
            for share in SHARES:
                trial = sweep(g_T + share * step_T)
                count += 1
                if trial[2] < residual * (1 - share / 4):
                    g_T, patience = g_T + share * step_T, 0
                    half, miss_T, residual = trial
                    break
    return Plan(
        problem=problem,
        f_S=half.f_S,
        g_T=g_T,
        log_mass_S=half.log_mass_S,
        log_mass_T=half.log_mass_T,
        iterations=spent + count,
        residual=residual,
        converged=residual <= solver.tolerance,
    )


def _kappa(tau: float, epsilon: float) -> float:
    return 1 / (1 + epsilon / tau)  # 1 for an infinite tau: that marginal holds exactly


def _sweeps_left(before: float, now: float, tolerance: float) -> float:
    """The number of sweeps to go if each shrinks the residual as much as the last one did."""
    if now <= tolerance:
        return 0
    return float(np.log(tolerance / now) / np.log(min(now / before, 1 - 1e-12)))
