"""Costs between class means, and the unbalanced transport plan of equation (5).

`costs` computes the cost. `iteration` solves the problem on a kernel, which is `dense` (for
classes, NumPy) or computed in `blocks` (for images, torch). `pot` solves it with POT and checks the
answer.
"""

from uotft.selection.transport import pot
from uotft.selection.transport.blocks import FeatureProblem
from uotft.selection.transport.costs import BadMeans, Metric, by_row, check, check_lengths, cost
from uotft.selection.transport.dense import DenseProblem, solve_grid
from uotft.selection.transport.iteration import BadProblem, NotConverged, Plan, Solver, solve
from uotft.selection.transport.pot import Method as PotMethod

__all__ = [
    "BadMeans",
    "BadProblem",
    "DenseProblem",
    "FeatureProblem",
    "Metric",
    "NotConverged",
    "Plan",
    "PotMethod",
    "Solver",
    "by_row",
    "check",
    "check_lengths",
    "cost",
    "pot",
    "solve",
    "solve_grid",
]
