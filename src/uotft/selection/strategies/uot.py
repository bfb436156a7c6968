"""UOT selection (Liu et al. 2022, section 3.2): rank source classes by log P1 of equation (5).

A large tau_target makes every target class receive its mass; a small tau_source lets far source
classes send almost none. The mass of such a class underflows to 0 while its logarithm stays finite,
so the ranking uses log P1.

    uotft select --source-bank S.npz --target-bank T.npz --top-k 100 --output selection.json
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AllowInfNan, Field, PlainSerializer

from uotft.core.errors import UserError
from uotft.core.records import ClassBank, Floats, Scores, Settings as BaseSettings
from uotft.selection import transport

DENSE = 20_000_000  # largest cost matrix held in memory: 160 MB, and the solver takes twice that

Strength = Annotated[
    float, AllowInfNan(), PlainSerializer(lambda tau: tau if tau < np.inf else "inf")  # for JSON
]


class Settings(BaseSettings):
    """Settings of the strategy ``uot``; the defaults are the paper's (section 4.1)."""

    metric: transport.Metric = Field("cosine", description="cost between class means")
    cost_scale: float = Field(0.01, gt=0, description="eps_c: the cost is divided by it")
    epsilon: float = Field(1.0, gt=0, description="weight of the entropy")
    # finite: with an infinite one, every source class sends its whole weight, and all scores tie
    tau_source: float = Field(
        1.0, gt=0, description="tau_1: penalty for missing the source weights"
    )
    tau_target: Strength = Field(
        100.0, gt=0, description="tau_2: penalty for missing the target weights; .inf: met exactly"
    )
    weights: Literal["unit", "counts"] = Field(
        "unit", description="weight of a class: one, or its number of images"
    )
    solver: Literal["auto", "dense", "blocks", "pot"] = Field(
        "auto",
        description="NumPy, torch in blocks, or POT; auto: dense for a small cost matrix, else "
        "blocks",
    )
    pot_method: transport.PotMethod = Field(
        "sinkhorn", description="method of POT, for solver: pot"
    )
    device: str = Field("cpu", description="device of the solver blocks: cpu, cuda, cuda:1")
    tolerance: float = Field(1e-9, gt=0, description="largest residual of the log marginals")
    max_iterations: int = Field(10_000, ge=1, description="sweeps before the solver gives up")


def score(source: ClassBank, target: ClassBank, settings: Settings, seed: int) -> Scores:
    """log P1 of each source class; the plan's rows are computed on demand.

    A plan that has not converged is a ``UserError``.
    """
    solver = transport.Solver(tolerance=settings.tolerance, max_iterations=settings.max_iterations)
    name = settings.solver
    if name == "auto":
        name = "dense" if len(source.means) * len(target.means) <= DENSE else "blocks"
    if settings.device != "cpu" and name != "blocks":
        raise UserError(
            f"selectors.uot.device: got {settings.device!r}, but the solver {name!r} runs on the "
            "CPU; choose solver: blocks"
        )
    # dividing the cost by eps_c gives the same plan as multiplying all three strengths by it
    shared: dict[str, Any] = {
        "weights_S": _weights(source, settings),
        "weights_T": _weights(target, settings),
        "epsilon": settings.epsilon * settings.cost_scale,
        "tau_source": settings.tau_source * settings.cost_scale,
        "tau_target": settings.tau_target * settings.cost_scale,
    }
    if name == "blocks":
        transport.check(source, target, settings.metric)
        plan = transport.solve(
            transport.FeatureProblem(
                source.means, target.means, settings.metric, device=settings.device, **shared
            ),
            solver,
        )
    else:
        problem = transport.DenseProblem(transport.cost(source, target, settings.metric), **shared)
        if name == "pot":
            plan = transport.pot.solve(problem, solver, settings.pot_method)
        else:
            plan = transport.solve(problem, solver)
    plan.check(
        f"selectors.uot: solver {name}, cost_scale {settings.cost_scale:g}: "
        + ("choose solver: auto" if name == "pot" else "raise max_iterations or cost_scale")
    )
    return Scores(
        values=plan.log_mass_S,
        log_plan=plan.log_rows,
        facts={"solver": name, "iterations": plan.iterations, "residual": plan.residual},
    )


def _weights(bank: ClassBank, settings: Settings) -> Floats:
    if settings.weights == "unit":
        return np.ones(len(bank.means))
    if len(empty := np.flatnonzero(~(bank.counts >= 1))):  # this form also catches NaN
        row = int(empty[0])
        raise UserError(
            f"{bank.file or 'bank'}: class {bank.names[row]!r} (row {row}) has no images, and "
            "selectors.uot.weights is counts; choose unit"
        )
    return np.asarray(bank.counts / bank.counts.mean())
