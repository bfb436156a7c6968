"""What the work of one process is done with: its accelerator, and whom it tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from uotft.core.records import Log, Progress, Stop, ignore, never, silently

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Context:
    """The ``accelerator`` of this process, and whom it tells.

    ``log`` gets each step's numbers, ``progress`` shows a bar, ``stop`` says whether the work is to
    end: it then saves what it has and raises ``Interrupted``.
    """

    accelerator: Accelerator
    log: Log = ignore
    progress: Progress = silently
    stop: Stop = never
