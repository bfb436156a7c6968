"""The input pipeline: does training wait for images, and what does one cost?

python benchmarks/pipeline.py steps      # steps a second, beside tensors already on the device
python benchmarks/pipeline.py crops      # JPEGs into training crops, beside torchvision
python benchmarks/pipeline.py features   # features from files, beside the backbone alone
python benchmarks/pipeline.py decoder    # JPEGs into squares of 256, by Pillow and by torchvision
python benchmarks/pipeline.py views      # not speed: how far test views are from torchvision's

Sides take turns in one process; each figure is the median of --repeats turns. ``crops`` counts the
seconds of the processor, on one core (two that work at once slow each other down), and so does
``decoder``.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from on_gpu.training import Synthetic
from PIL import Image

from uotft.core.context import Context
from uotft.core.records import ImageSet
from uotft.core.settings import Augment
from uotft.data import files
from uotft.data.pixel_cache import Store, picture_of, scaled, square, upright_size
from uotft.models import model_io
from uotft.models.inputs import Views, to_input, views as test_views
from uotft.models.network import Network
from uotft.pipeline.workspace import Workspace
from uotft.training import runtime
from uotft.training.loop import Task, fit
from uotft.training.objectives import joint, plain
from uotft.training.streams import Place, Sampling, Stream

HEIGHT, WIDTH, QUALITY, BATCH = 375, 500, 92, 64
PAPER = Augment(rotation=0.0, shear=0.0, zoom=0.0, shift=0.0, crop=0.08, flip=True)


def photo(seed: int, width: int = WIDTH, height: int = HEIGHT) -> bytes:
    """A JPEG with the spectrum of photos: amplitude as 1/f, correlated colours."""
    rng = np.random.default_rng(seed)
    y, x = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)
    falling = 1 / np.maximum(np.hypot(y, x), 1 / width)
    noise = rng.standard_normal((3, *falling.shape)) + 1j * rng.standard_normal((3, *falling.shape))
    grey, *colours = np.fft.irfft2(noise * falling, s=(height, width))
    planes = np.stack([grey, grey + 0.3 * colours[0], grey + 0.3 * colours[1]], 2)
    file = io.BytesIO()
    pixels = (128 + 50 * planes / planes.std()).clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def photos(folder: Path, count: int) -> ImageSet:
    """``count`` photos of 10 classes as a data set of files, FOLDER/CLASS/NUMBER.jpg."""
    paths = [f"{i % 10}/{i:04}.jpg" for i in range(count)]
    for i, path in enumerate(paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(photo(i))
    return files.image_set(
        folder,
        [path.encode() for path in paths],
        np.arange(count) % 10,
        np.full(count, "train"),
        tuple(map(str, range(10))),
        files.View(),
        lambda items, label: items,
    )


def stored(images: ImageSet, folder: Path) -> ImageSet:
    """The set with its pixels kept below ``folder``."""
    return ImageSet(
        Store(images.files, folder), images.labels, images.splits, images.names, images.files
    )


def turns(sides: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """The figures of each side; the first turn, which imports and warms up, is left out."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        order = [*sides] if turn % 2 else [*reversed(sides)]
        for name in order:
            value = sides[name]()
            if turn:
                found[name].append(value)
    return found


# ---- steps


def steps(repeats: int) -> None:
    """Steps a second of the embedded default's two trainings, random pixels of its sizes."""
    params, rng = Workspace.find().params, np.random.default_rng(0)
    accelerator = runtime.start(0, params.cpu_threads)
    side = params.datasets["glyphs"]["size"]

    def stream(name: str, count: int, classes: int, batch: int, augment: Augment) -> Stream:
        return Stream(
            rng.integers(0, 255, (count, side, side), dtype=np.uint8),
            rng.integers(0, classes, count),
            Sampling(name, batch, 0, augment),
            Place(accelerator.device),
        )

    pre, fine = params.pretrain, params.train
    cases = {
        "pretrain": (
            {"target": stream("target", 18_900, 450, pre.batch_size, pre.augment)},
            (450, 0), plain.ROUTES, pre.recipe,
            lambda o, b: plain.terms(o, b, 0),
        ),
        "train": (
            {"target": stream("target", 20, 10, fine.target_batch, fine.augment),
             "source": stream("source", 2_520, 60, fine.source_batch, fine.augment)},
            (10, 60), joint.ROUTES, fine.recipe,
            lambda o, b: joint.terms(o, b, 1.0),
        ),
    }  # fmt: skip
    for name, (streams, heads, routes, recipe, terms) in cases.items():
        count = 200
        recipe = recipe.model_copy(update={"steps": count, "eval_every": 0})

        def run(given: dict, heads=heads, routes=routes, recipe=recipe, terms=terms) -> float:  # noqa: ANN001
            backbone = model_io.build(params.backbone, heads[0]).backbone
            network = Network(backbone, target=heads[0], source=heads[1]).to(accelerator.device)
            start = time.perf_counter()
            fit(Task(network, given, terms, recipe, routes), Context(accelerator))
            return recipe.steps / (time.perf_counter() - start)

        synthetic = {k: Synthetic(s) for k, s in streams.items()}
        sides = {"uotft": lambda s=streams: run(s), "synthetic": lambda s=synthetic: run(s)}
        found = turns(sides, repeats)
        report(f"{name}, steps a second", found, "uotft", "synthetic")


# ---- crops


def crops(repeats: int) -> None:
    """Images a second of processor time, 500 x 375 JPEGs into batches of crops of 224 x 224."""
    on_one_core()
    from torchvision import transforms as t
    from torchvision.datasets import ImageFolder

    count = 4 * BATCH
    with tempfile.TemporaryDirectory() as name:
        images = photos(Path(name, "photos"), count)
        print(f"{count} files of {images.files.bytes.mean() / 1000:.0f} kB")
        rival = ImageFolder(
            Path(name, "photos"),
            t.Compose([
                t.RandomResizedCrop(224), t.RandomHorizontalFlip(), t.ToTensor(),
                t.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
            ]),
        )  # fmt: skip
        full = stored(images, Path(name, "full"))
        full.images.fill(np.arange(count))

        def batches(given: ImageSet) -> Iterable[object]:
            stream = Stream(
                given.images,
                given.labels,
                Sampling("target", BATCH, 0, PAPER, channels=3),
                files=given.files,
            )
            return (stream[step] for step in range(count // BATCH))

        def theirs() -> Iterable[object]:
            order = np.random.default_rng(0).permutation(count)
            for rows in order.reshape(-1, BATCH).tolist():
                yield torch.utils.data.default_collate([rival[row] for row in rows])

        def filling() -> Iterable[object]:
            folder = Path(name, "new")
            new = stored(images, folder)
            new.images.fill(np.arange(count))  # as a training does before its first step
            yield from batches(new)
            shutil.rmtree(folder)

        def rate(made: Callable[[], Iterable[object]]) -> float:
            start = time.process_time()
            for _ in made():
                pass
            return count / (time.process_time() - start)

        sides = {
            "uotft, store filled": lambda: rate(lambda: batches(full)),
            "uotft, store being filled": lambda: rate(filling),
            "torchvision": lambda: rate(theirs),
        }
        found = turns(sides, repeats)
        for side in list(sides)[:2]:
            report("images a second of one core", found, side, "torchvision")


# ---- decoder


def decoder(repeats: int) -> None:
    """Milliseconds of processor time for a JPEG, decoded, and scaled to a square of 256."""
    on_one_core()
    from torchvision.io import ImageReadMode, decode_jpeg

    warnings.simplefilter("ignore")  # decode_jpeg is deprecated

    def by_pillow(content: bytes) -> Image.Image:
        return picture_of(content, Path(), "RGB", 256)

    def by_torchvision(content: bytes) -> np.ndarray:
        encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        return decode_jpeg(encoded, ImageReadMode.RGB).permute(1, 2, 0).numpy()

    ways = {
        "Pillow decodes": by_pillow,
        "Pillow decodes, Pillow scales": lambda c: np.asarray(
            by_pillow(c).resize((256, 256), Image.Resampling.BILINEAR)
        ),
        "Pillow decodes, torch scales (uotft)": lambda c: square(c, 256, Path()),
        "torchvision decodes": by_torchvision,
        "torchvision decodes, torch scales": lambda c: scaled(by_torchvision(c), 256),
    }

    def cost(way: Callable[[bytes], object], contents: list[bytes]) -> float:
        start = time.process_time()
        for content in contents:
            way(content)
        return 1000 * (time.process_time() - start) / len(contents)

    for size, count in ((WIDTH, HEIGHT), BATCH), ((4000, 3000), 2):
        encoded = [photo(i, *size) for i in range(count)]
        found = turns({k: lambda w=w, f=encoded: cost(w, f) for k, w in ways.items()}, repeats)
        print(f"{size[0]} x {size[1]}")
        for name, values in found.items():
            print(f"  {name}: {statistics.median(values):.2f} ms")


# ---- features


def features(repeats: int) -> None:
    """Images a second through ResNet18 at 224 pixels, from files and from one tensor."""
    from uotft.models import embedding

    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    count = 8 * BATCH if torch.cuda.is_available() else 2 * BATCH
    network = model_io.build({"name": "resnet18", "weights": "none"}, 10)
    network = network.to(accelerator.device).eval()
    with tempfile.TemporaryDirectory() as name:
        images = photos(Path(name, "photos"), count)
        full = stored(images, Path(name, "full"))
        full.images.fill(np.arange(count))
        ready = to_input(torch.as_tensor(Views(full, np.arange(BATCH))[:]), 3)
        ready = ready.to(accelerator.device)

        def wait() -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()

        def from_files(given: ImageSet) -> float:
            start = time.perf_counter()
            seen, wanted = Views(given, np.arange(count)), [range(count)]
            [_] = embedding.shards(network, seen, wanted, Context(accelerator), batch_size=BATCH)
            return count / (time.perf_counter() - start)

        def alone() -> float:
            start = time.perf_counter()
            with torch.no_grad():
                for _ in range(count // BATCH):
                    network.backbone(ready)
            wait()
            return count / (time.perf_counter() - start)

        found = turns({"uotft": lambda: from_files(full), "backbone": alone}, repeats)
        report("features, images a second", found, "uotft", "backbone")


# ---- views


def views(repeats: int) -> None:
    """Mean difference in levels of 255, and PSNR in dB, of 20 test views to another way."""
    from torchvision.transforms import v2

    del repeats
    paper = v2.Compose([v2.Resize(256), v2.CenterCrop(224)])

    def soft(seed: int) -> bytes:
        blobs = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(blobs).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(file, "PNG")
        return file.getvalue()

    def seen(content: bytes, stored: int) -> np.ndarray:
        size = np.array([upright_size(content)])
        return test_views([square(content, stored, Path())], size, 0.875, 224)[0]

    def resized(content: bytes) -> np.ndarray:
        return np.asarray(paper(Image.open(io.BytesIO(content))))

    def exact(content: bytes) -> np.ndarray:
        picture = Image.open(io.BytesIO(content))
        side = 0.875 * min(picture.size)
        left, top = ((length - side) / 2 for length in picture.size)
        box = (left, top, left + side, top + side)
        return np.asarray(picture.resize((224, 224), Image.Resampling.BILINEAR, box=box))

    def compare(title: str, contents: list[bytes], one: Callable, other: Callable) -> None:
        found = []
        for content in contents:
            difference = one(content).astype(float) - other(content)
            found.append(
                (np.abs(difference).mean(), 10 * np.log10(255**2 / (difference**2).mean()))
            )
        levels, decibels = np.mean(found, 0)
        print(f"{title}: {levels:.2f} of 255, {decibels:.1f} dB")

    noise, here = [photo(i) for i in range(20)], lambda content: seen(content, 256)
    compare("soft, beside torchvision", [soft(i) for i in range(20)], here, resized)
    compare("noise, beside torchvision", noise, here, resized)
    compare("noise, torchvision beside the exact box", noise, resized, exact)
    compare("noise, beside the exact box", noise, here, exact)
    compare("the same, stored 384", noise, lambda content: seen(content, 384), exact)
    squares = [photo(i, 320, 320) for i in range(20)]
    compare("square noise of 320, beside torchvision", squares, here, resized)


def on_one_core() -> None:
    """Keep this process, whatever threads it starts, on one core."""
    if sys.platform == "linux":
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)


def report(title: str, found: dict[str, list[float]], ours: str, theirs: str) -> None:
    """One line: the medians of both sides, and that of the ratios turn by turn."""
    ratio = statistics.median(a / b for a, b in zip(found[ours], found[theirs], strict=True))
    figures = ", ".join(f"{side} {statistics.median(found[side]):.1f}" for side in (ours, theirs))
    print(f"{title}: {figures}, ratio {ratio:.3f}")


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser()
    parts = {"steps": steps, "crops": crops, "features": features, "decoder": decoder,
             "views": views}  # fmt: skip
    parser.add_argument("part", choices=[*parts])
    parser.add_argument("--repeats", type=int, default=5)
    words = parser.parse_args()
    parts[words.part](words.repeats)


if __name__ == "__main__":
    main()
