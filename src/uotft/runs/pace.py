"""How long the cells that are left take, from the images and seconds of those that are done."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from uotft.core.progress import duration


@dataclass(frozen=True)
class Pace:
    """What finished cells took: ``done`` is a list of (images, seconds); ``at_once`` are trained.

    A cell without images trains no step; it takes as long as others of its kind took on average.
    """

    at_once: int
    done: list[tuple[int, float]] = field(default_factory=list)

    def add(self, images: int, seconds: float) -> None:
        """Count one more finished cell; trainings in several threads may."""
        self.done.append((images, seconds))

    @property
    def images_a_second(self) -> float:
        """Of one training; 0 before a cell with images has finished."""
        seconds = sum(s for n, s in self.done if n)
        return sum(n for n, _ in self.done) / seconds if seconds else 0.0

    def left(self, costs: Iterable[int]) -> float | None:
        """Seconds until cells that see so many images are done; None if nothing tells the speed."""
        every = [*costs]
        images, still = sum(every), [s for n, s in self.done if not n]
        if images and not self.images_a_second:
            return None
        training = images / self.images_a_second if images else 0.0
        others = every.count(0) * sum(still) / len(still) if still else 0.0
        return (training + others) / self.at_once

    def told(self, costs: Iterable[int]) -> str:
        """The same in words; "" if it is unknown."""
        seconds = self.left(costs)
        return "" if seconds is None else f"about {duration(seconds)} to go"
