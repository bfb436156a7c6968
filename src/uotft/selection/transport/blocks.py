"""The kernel for many source points, or for a GPU: costs in blocks of source rows, with torch.

Source features stay where they are (an array or a memory map). Each block of rows is copied to the
device, and its costs are computed, used and dropped. So memory is one block and a few vectors,
whatever the number of source points. A GPU with enough memory keeps the rows and the kernel
instead, so that a sweep is two products of a matrix and a vector. Costs are computed in the
features' precision (TF32 stays off), everything else in float64.

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
from uotft.selection.transport.dense import FLOOR, NEAR, THIN
from uotft.selection.transport.iteration import Half, Problem

if TYPE_CHECKING:
    from torch import Tensor

ELEMENTS = {"cpu": 250_000, "cuda": 32_000_000}  # costs per block: fits the CPU's cache; 256 MB
LOG_THIN = -500.0  # column sums this far below the largest term are recomputed exactly
SPARED = 0.2  # share of a GPU's free memory that is left free
GROUP = 1024  # rows whose columns a GPU sums together: enough groups to keep all of it busy


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
        """The kernel at this epsilon; a GPU holds it, if it has the memory."""
        kernel = BlockKernel(self, epsilon)
        return HeldKernel(self, epsilon) if kernel.fits_a_gpu() else kernel

    def cost_rows(self, rows: Any) -> Floats:
        """The cost of some source points (rows, T)."""
        return np.asarray(BlockKernel(self, 1.0).cost(self.source_SD[rows]).cpu().numpy())


class BlockKernel:
    """-C / eps, recomputed block by block in each sweep."""

    def __init__(self, problem: FeatureProblem, epsilon: float) -> None:
        import torch

        try:
            self._device = torch.device(problem.device)
            target = torch.as_tensor(np.asarray(problem.target_TD), device=self._device)
            # half precision is for keeping features: costs of it would be rounded to 3 digits
            target = target.float() if target.dtype == torch.float16 else target
            self._target_TD = self._unit(target, problem.metric)
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

    def fits_a_gpu(self) -> bool:
        """Whether the device is a GPU whose memory holds the source and the whole kernel."""
        import torch

        if self._device.type != "cuda":
            return False
        free, _ = torch.cuda.mem_get_info(self._device)
        # what torch has reserved and does not use is free too
        free += torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        source, target = len(self._source_SD), len(self._target_TD)
        row = self._target_TD[0].nbytes + 8 * target
        return source * row + 4 * 8 * self._size * target < (1 - SPARED) * free

    def cost(self, rows_SD: NDArray[Any]) -> Tensor:
        """The cost (rows, T) in float64, computed in the features' precision, at least single."""
        return self._cost(self._load(rows_SD))

    def _load(self, rows_SD: NDArray[Any]) -> Tensor:
        """Some source rows on the device, for the cosine scaled to length one."""
        import torch

        x = torch.tensor(np.asarray(rows_SD), device=self._device)  # a copy: maps are read-only
        return self._unit(x.to(self._target_TD.dtype), self._problem.metric)

    def _cost(self, x: Tensor) -> Tensor:
        import torch

        if self._problem.metric == "l2":
            distance: Tensor = torch.cdist(x, self._target_TD)
            return distance.double()
        similarity: Tensor = x @ self._target_TD.T
        return 1 - similarity.double()

    def _rows(self, part: slice) -> Tensor:
        """The source rows of one block on the device."""
        return self._load(self._source_SD[part])

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Slices of the source and their -C / eps."""
        for start in range(0, len(self._source_SD), self._size):
            part = slice(start, start + self._size)
            yield part, self._cost(self._rows(part)).div_(-self._epsilon)

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
                part_column = self._columns((scale - most).exp_(), scaled).log_() + most
            log_column = torch.logaddexp(log_column, part_column)
        trusted = exact or bool(log_column.min() > highest + LOG_THIN)
        return Half(f_S, log_mass_S, log_column.cpu().numpy()), trusted

    @staticmethod
    def _columns(weight_B: Tensor, block_BT: Tensor) -> Tensor:
        """``weight @ block`` (T,), which may overwrite the block."""
        if block_BT.is_cuda:  # cuBLAS gives so flat a product to a few multiprocessors
            return block_BT.mul_(weight_B[:, None]).sum(0)
        return weight_B @ block_BT

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


class HeldKernel(BlockKernel):
    """The same in the memory of a GPU: exp(base - C / eps), rows scaled to a maximum of one.

    Sweeps are those of `dense`: while g stays near ``base``, two products with a vector. The rows
    of the source stay on the device too, so that a new base costs no copy from the host.
    """

    def __init__(self, problem: FeatureProblem, epsilon: float) -> None:
        super().__init__(problem, epsilon)
        self._kept: dict[int, Tensor] = {}  # {first row of a block: its rows}
        self._base_T = np.full(len(self._target_TD), np.inf)
        self._top_S, self._groups = (self._vector(np.empty(0)) for _ in range(2))
        self._weights: tuple[Floats, Tensor] | None = None  # log_w_S here, and on the device

    def _rows(self, part: slice) -> Tensor:
        if part.start not in self._kept:
            self._kept[part.start] = super()._rows(part)
        return self._kept[part.start]

    def _absorb(self, base_T: Floats) -> None:
        """The scaled matrix at the potentials ``base_T``, in groups; the last may be padded."""
        import torch

        base, source = self._vector(base_T), len(self._source_SD)
        if not len(self._groups):
            self._top_S = base.new_empty(source)
            self._groups = base.new_zeros(-(-source // GROUP), GROUP, len(base))
        matrix_ST = self._groups.flatten(0, 1)[:source]
        for part, log_block in self._blocks():
            log_block += base
            top = log_block.amax(1)
            log_block.sub_(top[:, None]).clamp_(min=FLOOR)
            self._top_S[part] = top
            torch.exp(log_block, out=matrix_ST[part])
        self._base_T = base_T

    def sweep(self, g_T: Floats, log_w_S: Floats, kappa_S: float) -> Half:
        """f from g, and both log marginals; a thin column is summed as in `BlockKernel`."""
        import torch
        from torch.nn import functional

        if np.abs(g_T - self._base_T).max() > NEAR:
            # as in `dense`: zero first, since most potentials stay near it
            self._absorb(g_T if np.abs(g_T).max() > NEAR else np.zeros_like(g_T))
        away, top_S, source = self._vector(g_T - self._base_T), self._top_S, len(self._source_SD)
        row_S = self._groups.flatten(0, 1)[:source] @ away.exp()
        log_row_S = row_S.log_() + top_S
        f_S = kappa_S * (self._log_weights(log_w_S) - log_row_S)
        scale_S = f_S + top_S
        highest = scale_S.max()
        groups, rows, _ = self._groups.shape
        weights = functional.pad((scale_S - highest).exp_(), (0, groups * rows - source))
        column_T = torch.bmm(weights.view(groups, 1, rows), self._groups).sum((0, 1))
        if not bool(column_T.min() > THIN):
            return super().sweep(g_T, log_w_S, kappa_S)
        log_mass_T = column_T.log_() + highest + away
        self._half, self._g_T = self._on_host(f_S, f_S + log_row_S, log_mass_T), g_T
        return self._half

    def _log_weights(self, log_w_S: Floats) -> Tensor:
        """``log_w_S`` on the device, copied when it is another array than last time."""
        if self._weights is None or self._weights[0] is not log_w_S:
            self._weights = log_w_S, self._vector(log_w_S)
        return self._weights[1]

    def _on_host(self, *found: Tensor) -> Half:
        """One wait for all: such a copy goes to pinned memory and does not block."""
        import torch

        copies = [x.to("cpu", non_blocking=True) for x in found]
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        return Half(*(copy.numpy() for copy in copies))
