"""Training steps beside steps that need no loading, crops beside torchvision's, features."""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from on_gpu.harness import Bench

if TYPE_CHECKING:
    from accelerate import Accelerator

    from uotft.core.records import Files
    from uotft.core.settings import Augment
    from uotft.models.network import Network
    from uotft.training.loop import Task
    from uotft.training.streams import Stream

STORED, SIZE = 256, 224
BATCHES = (128, 64, 32, 16)  # images of each part; the largest that the memory holds
CLASSES = {"target": 200, "source": 100}
SKIPPED = 4  # steps before the clock starts: the first ones allocate memory
TURN = 1.2  # seconds of steps
MODES = {"none": "plain", "joint": "joint", "pseudo_label": "pseudo_label"}
SMALL = {"name": "small_resnet", "widths": [4, 8], "channels": 3}
AIM = 0.95  # of the speed of steps on tensors that need no loading


def paper(**more: object) -> Augment:
    """The distortions of the paper's preset."""
    from uotft.core.settings import Augment

    still = {"rotation": 0.0, "shear": 0.0, "zoom": 0.0, "shift": 0.0}
    return Augment.model_validate({**still, "crop": 0.08, "flip": True, **more})


@dataclass
class Pictures:
    """Random squares (n, S, S, 3) in memory, as if read from files of other shapes."""

    count: int
    stored: int
    size: int
    squares: np.ndarray = field(init=False)
    files: Files = field(init=False)

    def __post_init__(self) -> None:
        from uotft.core.records import Files

        rng = np.random.default_rng(0)
        shape = (self.count, self.stored, self.stored, 3)
        self.squares = np.frombuffer(rng.bytes(int(np.prod(shape))), np.uint8).reshape(shape)
        self.files = Files(
            root="",
            paths=np.zeros(self.count, "S1"),
            bytes=np.zeros(self.count, np.int64),
            sha256=np.zeros((self.count, 32), np.uint8),
            sizes=rng.integers(300, 600, (self.count, 2)).astype(np.int32),
            stored=self.stored,
            size=self.size,
            share=0.875,
        )

    def stream(self, name: str, batch: int, augment: Augment, device: Any, view: int = 1) -> Stream:
        """Batches of these pictures, with labels of the head that they are for."""
        from uotft.training.streams import Place, Sampling, Stream

        labels = np.arange(self.count) % CLASSES[name]
        sampling = Sampling(name, batch, 0, augment, view, 3)
        return Stream(self.squares, labels, sampling, Place(device), files=self.files)

    def streams(self, mode: str, batch: int, device: Any) -> dict[str, Stream]:
        """What the objective of a mode reads."""
        made = {"target": self.stream("target", batch, paper(), device)}
        if mode != "none":
            made["source"] = self.stream("source", batch, paper(), device)
        if mode == "pseudo_label":
            strong = paper(operations=2, magnitude=10)
            made["strong"] = self.stream("source", batch, strong, device, view=2)
        return made


def pictures(bench: Bench) -> Pictures:
    """As many as a GPU holds with ease."""
    return Pictures(24, 40, 32) if bench.tiny else Pictures(2048, STORED, SIZE)


def task(network: Network, streams: dict[str, Any], mode: str, **recipe: Any) -> Task:
    """A training of one of the three modes."""
    from uotft.core.settings import Recipe
    from uotft.training import objectives
    from uotft.training.loop import Task
    from uotft.training.objectives import joint, plain, pseudo_label

    module: Any = {"plain": plain, "joint": joint, "pseudo_label": pseudo_label}[MODES[mode]]
    nothing: Any = None
    start = objectives.StartingPoint(
        1.0, network.backbone, network.head("target"), nothing, nothing
    )
    terms = objectives.ready(module, module.Settings(), start)
    words = {"learning_rate": 0.01, "eval_every": 0, "checkpoint_every": 0, **recipe}
    return Task(network, streams, terms, Recipe.model_validate(words), module.ROUTES)


def network_of(name: str, mode: str, device: Any) -> Network:
    """A network with random weights on the device, and the heads that the mode trains."""
    import torch

    from uotft.models import model_io

    torch.manual_seed(0)
    source = CLASSES["source"] if mode == "joint" else 0
    settings = SMALL if name == "small_resnet" else {"name": name, "weights": "none"}
    return model_io.build(settings, CLASSES["target"], source).to(device)


class Synthetic:
    """A stream that has one batch on the device and gives it again and again."""

    def __init__(self, stream: Stream) -> None:
        self.batch, self.origin, self.rows = stream[0], stream.origin, stream.rows

    def __getitem__(self, step: int) -> object:
        return self.batch


class Clock:
    """A progress bar that reads the clock after the first steps and after the last one."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.steps, self.seconds = bench, 0, 0.0

    def __call__(self, items: range, label: str) -> Iterator[int]:
        start = 0.0
        for item in items:
            if item == SKIPPED:
                self.bench.wait()
                start = time.perf_counter()
            yield item
        self.bench.wait()
        self.seconds, self.steps = time.perf_counter() - start, len(items) - SKIPPED


@dataclass
class Race:
    """One network in one mode: images a second through the project's own loop."""

    bench: Bench
    accelerator: Accelerator
    template: Network
    mode: str
    steps: int = 6

    def rate(self, streams: dict[str, Any], images: int) -> float:
        """Images a second of ``steps`` steps of ``images`` each, from the template's weights."""
        from uotft.core.context import Context
        from uotft.training.loop import fit

        clock = Clock(self.bench)
        network = copy.deepcopy(self.template)
        made = task(network, streams, self.mode, steps=SKIPPED + self.steps)
        fit(made, Context(self.accelerator, progress=clock))
        self.accelerator.free_memory()  # else it keeps every network that it has prepared
        return images * clock.steps / clock.seconds

    def largest(self, of: Pictures, batches: tuple[int, ...]) -> tuple[dict[str, Stream], int]:
        """The streams of the largest batch that the memory holds, and the images of a step."""
        import torch

        for batch in batches:
            streams = of.streams(self.mode, batch, self.accelerator.device)
            images = batch * len(streams)
            with suppress(torch.OutOfMemoryError):
                rate = self.rate(streams, images)
                if not self.bench.tiny:
                    self.steps = max(8, min(300, round(TURN * rate / images)))
                return streams, images
            self.accelerator.free_memory()
            gc.collect()
        raise MemoryError(f"no memory for {batches[-1]} images of each part")


def training(bench: Bench) -> None:
    """Images a second of ResNet18 and ResNet50 in bf16, beside steps on one batch that is there."""
    from uotft.training import runtime

    accelerator = runtime.start(0, 0, "bf16")
    of = pictures(bench)
    names = ("small_resnet",) if bench.tiny else ("resnet18", "resnet50")
    for name in names:
        for mode in MODES:
            if bench.left() < 15 and not bench.tiny:
                bench.note(f"{name}, {mode}: no time left")
                continue
            template = network_of(name, mode, accelerator.device)
            race = Race(bench, accelerator, template, mode, steps=2 if bench.tiny else 6)
            streams, images = race.largest(of, (4,) if bench.tiny else BATCHES)
            ready = {part: Synthetic(stream) for part, stream in streams.items()}
            bench.compare(
                f"{name}, {mode}, {images} images a step, bf16",
                {
                    "uotft": lambda r=race, s=streams, n=images: r.rate(s, n),
                    "no loading": lambda r=race, s=ready, n=images: r.rate(s, n),
                },
                unit="images/s",
                rate=True,
                aim_ratio=AIM,
            )


def crops(bench: Bench) -> None:
    """Training views alone: all of a batch at once, beside torchvision image by image."""
    import torch
    from torchvision.transforms import v2

    of, batch = pictures(bench), 4 if bench.tiny else 128
    held = torch.as_tensor(of.squares.copy(), device=bench.device).permute(0, 3, 1, 2)
    cut = v2.RandomResizedCrop(of.size, antialias=True)
    flip, distort = v2.RandomHorizontalFlip(), v2.RandAugment(2, 10)

    def theirs(*ways: Callable[..., torch.Tensor]) -> None:
        made = []
        for image in held[:batch]:
            for way in ways:
                image = way(image)
            made.append(image.float().div_(127.5).sub_(1))
        torch.stack(made)

    def ours(stream: Stream, steps: int) -> float:
        def work() -> None:
            for step in range(steps):
                stream[step]

        return batch * steps / bench.seconds(work)

    cases = {
        "crop and flip": (paper(), (cut, flip)),
        "crop, flip and RandAugment": (paper(operations=2, magnitude=10), (cut, flip, distort)),
    }
    for name, (augment, ways) in cases.items():
        stream = of.stream("target", batch, augment, bench.device)
        steps = 1 if bench.tiny else 20
        bench.compare(
            f"{name}, {of.size} px",
            {
                "uotft": lambda s=stream, n=steps: ours(s, n),
                "torchvision": lambda w=ways: batch / bench.seconds(lambda: theirs(*w)),
            },
            unit="images/s",
            rate=True,
        )
    if bench.is_gpu:
        bench.check("pictures are held on the device", stream.held is not None, str(held.device))


def features(bench: Bench) -> None:
    """Features of test views that the CPU crops, beside the backbone's forward pass alone."""
    import torch

    from uotft.core.context import Context
    from uotft.core.records import ImageSet
    from uotft.models import embedding
    from uotft.models.inputs import Views, to_input
    from uotft.training import runtime

    accelerator = runtime.start(0, 0)
    of, batch = pictures(bench), 4 if bench.tiny else 256
    name = "small_resnet" if bench.tiny else "resnet18"
    labels, splits = np.arange(of.count) % 10, np.full(of.count, "train")
    names = tuple(map(str, range(10)))
    images = ImageSet(of.squares, labels, splits, names, of.files)
    network = network_of(name, "none", accelerator.device).eval()
    seen = Views(images, np.arange(of.count))
    ready = to_input(torch.as_tensor(seen[:batch], device=accelerator.device), network.channels)

    def ours() -> float:
        def work() -> None:
            wanted, context = [range(of.count)], Context(accelerator)
            [_] = embedding.shards(network, seen, wanted, context, batch_size=batch)

        return of.count / bench.seconds(work)

    @torch.no_grad()
    def alone() -> None:
        for _ in range(of.count // batch):
            network.backbone(ready)

    bench.compare(
        f"features, {name}, {of.size} px, float32",
        {
            "uotft": ours,
            "backbone alone": lambda: of.count // batch * batch / bench.seconds(alone),
        },
        unit="images/s",
        rate=True,
    )
