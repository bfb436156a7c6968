"""Solves the same problem with POT, and checks the answer.

POT's kernel-domain solver is right as long as its numbers stay finite. Its stabilised and
translation-invariant solvers can return a wrong plan without a warning. So this module computes the
residual itself, from POT's potentials and marginals, as defined in `iteration`.
"""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np

from uotft.selection.transport.dense import DenseProblem
from uotft.selection.transport.iteration import Plan, Solver

Method = Literal["sinkhorn", "sinkhorn_stabilized", "sinkhorn_translation_invariant"]


def solve(problem: DenseProblem, solver: Solver, method: Method) -> Plan:
    """POT's potentials and marginals; this module, not POT, decides ``converged``."""
    ratio_S, ratio_T = problem.tau_source / problem.epsilon, problem.tau_target / problem.epsilon
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # POT warns of its backends, and of numerical trouble that the residual measures better
        warnings.simplefilter("ignore")
        import ot

        plan_ST, log = ot.unbalanced.sinkhorn_unbalanced(
            problem.weights_S,
            problem.weights_T,
            problem.cost_ST / problem.epsilon,
            reg=1.0,
            reg_m=(ratio_S, ratio_T),
            method=method,
            reg_type="entropy",
            numItermax=solver.max_iterations,
            # POT stops when its scalings change little, and a weak tau_T makes the changes smaller
            stopThr=solver.tolerance * min(1.0, ratio_T) / 100,
            log=True,
        )
        g_T, log_w_T = log["logv"], np.log(problem.weights_T)
        half = problem.kernel(problem.epsilon).sweep(
            g_T, np.log(problem.weights_S), ratio_S / (1 + ratio_S)
        )
        log_mass_S, log_mass_T = np.log(plan_ST.sum(1)), np.log(plan_ST.sum(0))
        misses = (
            half.log_mass_T - (log_w_T - g_T / ratio_T),
            half.log_mass_T - log_mass_T,
            half.log_mass_S - log_mass_S,
        )
        residual = float(max(np.abs(miss).max() for miss in misses))
    return Plan(
        problem=problem,
        f_S=log["logu"],
        g_T=g_T,
        log_mass_S=log_mass_S,
        log_mass_T=log_mass_T,
        iterations=len(log["err"]),
        residual=residual,
        converged=residual <= solver.tolerance,
    )
