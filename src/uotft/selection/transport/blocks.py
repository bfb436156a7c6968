"""The kernel for many source points, or for a GPU: costs in blocks of source rows, with torch.

Source features stay where they are (an array or a memory map). Each block of rows is copied to the
device, and its costs are computed, used and dropped. So memory is one block and a few vectors,
whatever the number of source points. Costs are computed in the features' precision (TF32 stays
off), everything else in float64.

Axes: S source points, T target points, D features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from uotft.core.errors import UserError
from uotft.core.records import Floats
from uotft.selection.transport.costs import Metric
from uotft.selection.transport.dense import FLOOR
from uotft.selection.transport.iteration import Half, Problem

if TYPE_CHECKING:
    from torch import Tensor

ELEMENTS = {"cpu": 250_000, "cuda": 32_000_000}  # costs per block: fits the CPU's cache; 256 MB
LOG_THIN = -500.0  # column sums this far below the largest term are recomputed exactly


@dataclass(frozen=True)
class FeatureProblem(Problem):
    """Equation (5) between source (S, D) and target features (T, D) that `costs.check` accepts."""

    source_SD: NDArray[Any]
    target_TD: NDArray[Any]
    metric: Metric
    device: str = "cpu"

    @property
    def largest_cost(self) -> float:
        """Upper bound: 2 for the cosine; for l2 the sum of the largest lengths of both sides."""
        if self.metric == "cosine":
            return 2.0
        longest = [
            max(
                float(np.linalg.norm(x[i : i + 65536], axis=1).max())
                for i in range(0, len(x), 65536)
            )
            for x in (self.source_SD, self.target_TD)
        ]
        return sum(longest)

    def kernel(self, epsilon: float) -> BlockKernel:
        """The kernel at this epsilon."""
        return BlockKernel(self, epsilon)

    def cost_rows(self, rows: Any) -> Floats:
        """The cost of some source points (rows, T)."""
        return np.asarray(BlockKernel(self, 1.0).cost(self.source_SD[rows]).cpu().numpy())


class BlockKernel:
    """-C / eps, recomputed block by block in each sweep."""

    def __init__(self, problem: FeatureProblem, epsilon: float) -> None:
        import torch

        try:
            self._device = torch.device(problem.device)
            self._target_TD = self._unit(
                torch.as_tensor(np.asarray(problem.target_TD), device=self._device), problem.metric
            )
        except (RuntimeError, AssertionError) as error:
            raise UserError(
                f"device {problem.device!r} cannot be used ({str(error).splitlines()[0]}): "
                "choose selectors.uot.device: cpu"
            ) from error
        self._problem, self._epsilon = problem, epsilon
        self._source_SD = problem.source_SD
        self._size = max(1, ELEMENTS[self._device.type] // len(problem.target_TD))

    @staticmethod
    def _unit(x: Tensor, metric: Metric) -> Tensor:
        if metric == "l2":
            return x
        scaled: Tensor = x / x.abs().amax(1, keepdim=True)
        return scaled.div_(scaled.norm(dim=1, keepdim=True))

    def cost(self, rows_SD: NDArray[Any]) -> Tensor:
        """The cost (rows, T) in float64, computed in the features' precision."""
        import torch

        x = torch.tensor(np.asarray(rows_SD), device=self._device)  # a copy: maps are read-only
        x = x.to(self._target_TD.dtype)
        if self._problem.metric == "l2":
            distance: Tensor = torch.cdist(x, self._target_TD)
            return distance.double()
        similarity: Tensor = self._unit(x, "cosine") @ self._target_TD.T
        return 1 - similarity.double()

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Slices of the source and their -C / eps."""
        for start in range(0, len(self._source_SD), self._size):
            part = slice(start, start + self._size)
            yield part, self.cost(self._source_SD[part]).div_(-self._epsilon)

    def sweep(self, g_T: Floats, log_w_S: Floats, kappa_S: float) -> Half:
        """f from g, and both log marginals, in one pass over the source; in two if one was thin."""
        half, trusted = self._pass(g_T, log_w_S, kappa_S, exact=False)
        if not trusted:
            half, _ = self._pass(g_T, log_w_S, kappa_S, exact=True)
        self._half, self._g_T = half, g_T
        return half

    def _pass(
        self, g_T: Floats, log_w_S: Floats, kappa_S: float, *, exact: bool
    ) -> tuple[Half, bool]:
        """One pass, and whether its column sums can be trusted.

        Row and column sums share one exponential per entry (see `dense`); with ``exact`` each sum
        has its own, in the log domain.
        """
        import torch

        g = self._vector(g_T)
        f_S, log_mass_S = np.empty(len(log_w_S)), np.empty(len(log_w_S))
        log_column = torch.full_like(g, -torch.inf)
        highest = -np.inf
        for part, log_block in self._blocks():
            log_block += g
            top = log_block.amax(1)
            scaled = (log_block - top[:, None]).clamp_(min=FLOOR).exp_()
            log_row = scaled.sum(1).log_() + top
            f = kappa_S * (self._vector(log_w_S[part]) - log_row)
            f_S[part], log_mass_S[part] = f.cpu().numpy(), (f + log_row).cpu().numpy()
            if exact:
                part_column = torch.logsumexp(log_block.add_(f[:, None]), 0)
            else:
                scale = f + top
                most = scale.max()
                highest = max(highest, float(most))
                part_column = ((scale - most).exp_() @ scaled).log_() + most
            log_column = torch.logaddexp(log_column, part_column)
        trusted = exact or bool(log_column.min() > highest + LOG_THIN)
        return Half(f_S, log_mass_S, log_column.cpu().numpy()), trusted

    def coupling(self) -> Floats:
        """Q' P (T, T) of the last sweep, in another pass over the source."""
        import torch

        f_S, log_mass_S, log_mass_T = self._half
        g, log_column = self._vector(self._g_T), self._vector(log_mass_T)
        total = torch.zeros(len(g), len(g), dtype=torch.float64, device=self._device)
        for part, log_block in self._blocks():
            log_block += g
            log_block += self._vector(f_S[part])[:, None]
            by_column = torch.exp(log_block - log_column)
            total += by_column.T @ torch.exp(log_block - self._vector(log_mass_S[part])[:, None])
        return np.asarray(total.cpu().numpy())

    def _vector(self, values: Floats) -> Tensor:
        import torch

        return torch.as_tensor(np.asarray(values, np.float64), device=self._device)
