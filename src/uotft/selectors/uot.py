"""UOT selection (Liu et al. 2022, section 3.2): rank source classes by log P1 of equation (5).

A large tau_target makes every target class receive its mass; a small tau_source lets far source
classes send none. Mass underflows before its logarithm does, so the ranking uses log P1.

    uotft select --dataset digits --strategy uot --seed 0
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from uotft import transport
from uotft.records import ClassBank, Scores, Settings as BaseSettings


class Settings(BaseSettings):
    """Settings of the strategy ``uot``; the defaults are the paper's (section 4.1)."""

    metric: transport.Metric = Field("cosine", description="cost between class means")
    cost_scale: float = Field(0.01, gt=0, description="eps_c: the cost is divided by it")
    epsilon: float = Field(1.0, gt=0, description="weight of the entropy")
    tau_source: float = Field(1.0, gt=0, description="tau_1: how firmly the source weights bind")
    tau_target: float = Field(100.0, gt=0, description="tau_2: how firmly the target weights bind")
    solver: transport.Solver = Field(transport.Solver(), description="when the solver stops")


def score(source: ClassBank, target: ClassBank, settings: Settings, seed: int) -> Scores:
    """log P1 for every source class, with the plan."""
    problem = transport.Problem(
        cost_ST=transport.cost(source, target, settings.metric) / settings.cost_scale,
        weights_S=np.ones(len(source.means)),
        weights_T=np.ones(len(target.means)),
        epsilon=settings.epsilon,
        tau_source=settings.tau_source,
        tau_target=settings.tau_target,
    )
    plan = transport.solve(problem, settings.solver)
    if not plan.converged:
        raise transport.NotConverged(
            f"selectors.uot.solver: residual {plan.residual:.1e} after {plan.iterations} sweeps is "
            f"above tolerance {settings.solver.tolerance:.1e}: raise max_iterations or cost_scale "
            f"(got {settings.cost_scale})"
        )
    return Scores(
        values=plan.log_mass_S,
        plan=np.exp(plan.log_plan_ST),
        facts={"iterations": plan.iterations, "residual": plan.residual},
    )
