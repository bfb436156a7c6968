"""The context of one process's work: its accelerator, and the callbacks that it reports to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from uotft.core.records import Log, Progress, Stop, ignore, never, silently

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Context:
    """The ``accelerator`` of this process, and its callbacks.

    ``log`` receives the numbers of a step, ``progress`` shows a bar, ``stop`` returns whether the
    work should end; it then saves its state and raises ``Interrupted``.
    """

    accelerator: Accelerator
    log: Log = ignore
    progress: Progress = silently
    stop: Stop = never
