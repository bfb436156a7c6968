"""Can the rows of a pre-trained classifier stand in for the source's class means? In which form?

EfficientNet-Lite0 on Caltech-101 (the target, six images a class) and Tiny-ImageNet (the source,
whose real class means come from 50 images a class). Recall: of the n ImageNet classes of the
target's kind, the share that is among the first n of all 1000 rows; `bird@100`: among the first 100
as in Liu et al. (2022). Agreement: the share of the first K Tiny-ImageNet classes that real means
put there too. Features are kept in --cache.

    python benchmarks/source_means.py --source tinyimagenet200_64px.zip \
        --target caltech101_128px.zip --classes tinyimagenet200_classes.tsv \
        --concepts imagenet_classes.json --cache CACHE
    ... --train 3            # and the accuracy after training, on so many seeds; hours on a CPU
"""

from __future__ import annotations

import argparse
import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import stats
from torch.nn import functional

from uotft.models import model_io, network
from uotft.selection import classifier, transport

SHOTS, SOURCE_SHOTS, SIDE = 6, 50, 128
KINDS = {  # of ImageNet: Caltech-101's classes of that kind, and in the source by WordNet id
    "bird": "emu flamingo flamingo_head ibis pigeon rooster",
    "vehicle": "airplanes Motorbikes car_side ferry helicopter ketch schooner",
    "dog": "dalmatian",
    "mammal": "Leopards beaver cougar_body cougar_face dolphin elephant gerenuk hedgehog kangaroo "
    "llama okapi panda platypus rhino wild_cat",
    "animal": "ant butterfly crab crayfish crocodile crocodile_head dragonfly hawksbill lobster "
    "mayfly nautilus octopus scorpion sea_horse starfish tick trilobite",
    "structure": "minaret pagoda pyramid",
    "container": "cup ewer barrel",
}
Cost = Callable[[np.ndarray, np.ndarray], np.ndarray]  # rows (S, D), target (T, D) -> (S, T)


# ---------------------------------------------------------------- pictures and features


def pictures(file: Path, part: str, most: int, side: int) -> tuple[np.ndarray, np.ndarray, list]:
    """At most ``most`` pictures a class, (n, side, side, 3) uint8; labels (n,); names."""
    pixels, labels = [], []
    with zipfile.ZipFile(file) as archive:
        found: dict[str, list[str]] = {}
        for path in sorted(archive.namelist()):
            if path.startswith(f"{part}/") and not path.endswith("/"):
                found.setdefault(path.split("/")[1], []).append(path)
        for label, name in enumerate(sorted(found)):
            chosen = np.random.default_rng(0).permutation(len(found[name]))[:most]
            for i in chosen:
                pixels.append(square(archive.read(found[name][i]), side))
                labels.append(label)
    return np.stack(pixels), np.array(labels), sorted(found)


def square(content: bytes, side: int) -> np.ndarray:
    """The centred square of a file's picture, (side, side, 3) uint8."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    short = min(image.size)
    left, top = ((length - short) // 2 for length in image.size)
    image = image.crop((left, top, left + short, top + short))
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))


def inputs(pixels: np.ndarray) -> torch.Tensor:
    """uint8 (n, H, W, 3) -> (n, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def features(backbone: torch.nn.Module, pixels: np.ndarray) -> np.ndarray:
    """(n, H, W, 3) -> (n, D), in evaluation mode."""
    backbone.eval()
    with torch.no_grad():
        parts = (inputs(pixels[i : i + 50]) for i in range(0, len(pixels), 50))
        return np.concatenate([backbone(part).numpy() for part in parts])


def embed(file: Path, most: int, cache: Path) -> dict[str, np.ndarray]:
    """The training part's features (n, D), labels (n,) and names, from the cache or new."""
    kept = cache / f"{file.stem}-train-{SIDE}-{most}.npz"
    if not kept.is_file():
        pixels, labels, names = pictures(file, "train", most, SIDE)
        points = features(lite0()[0], pixels)
        cache.mkdir(parents=True, exist_ok=True)
        np.savez(kept, features=points, labels=labels, names=names)
    with np.load(kept) as found:
        return dict(found)


def lite0() -> tuple[torch.nn.Module, np.ndarray]:
    """The backbone with its weights, and its classifier's weight (1000, 1280)."""
    found = model_io.pretrained({"name": "efficientnet_lite0"})
    weight = found.classifier[0].double().numpy()
    return found.backbone.to(memory_format=torch.channels_last), weight


# ---------------------------------------------------------------- ways to compare


def unit(points: np.ndarray) -> np.ndarray:
    """Rows of length one."""
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def centred(points: np.ndarray) -> np.ndarray:
    """Less the mean row."""
    return points - points.mean(0)


def cosine(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The cost of the library, (S, T)."""
    return 1 - unit(source) @ unit(target).T


def powers(weight: np.ndarray, power: float) -> np.ndarray:
    """Centred rows times a power of their second moment; 1 is what the library does."""
    rows = centred(weight)
    values, vectors = np.linalg.eigh(rows.T @ rows)
    return rows @ (vectors * np.maximum(values, 0) ** power) @ vectors.T


def log_probability(weight: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Minus the log-probability at the target mean, a tenth of it: the scale of a cosine."""
    logits = weight @ target.T
    top = logits.max(0)
    return (top + np.log(np.exp(logits - top).sum(0)) - logits) / 10


def probability(weight: np.ndarray, target: np.ndarray) -> np.ndarray:
    """One minus the probability at the target mean."""
    return 1 - np.exp(-10 * log_probability(weight, target))


def likeness(weight: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The cosine between the logits that a row and a target mean have."""
    return cosine(weight @ weight.T, target @ weight.T)


WAYS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], Cost]] = {  # rows, then their cost
    "bare rows": (np.asarray, cosine),
    "rows centred": (centred, cosine),
    "both centred": (centred, lambda w, t: cosine(w, centred(t) if len(t) > 1 else t)),
    "log-probability": (np.asarray, log_probability),
    "probability": (np.asarray, probability),
    "cosine of logits": (centred, likeness),
    "moment^0.5": (lambda w: powers(w, 0.5), cosine),
    "moment^1 (stand_ins)": (classifier.stand_ins, cosine),
    "moment^2": (lambda w: powers(w, 2), cosine),
}


def ranking(cost: np.ndarray, scale: float) -> np.ndarray:
    """Source classes by UOT, best first; the strategy uot's defaults but for the scale.

    A scale of 0 is the strategy nearest.
    """
    if not scale:
        return np.argsort(cost.min(1), kind="stable")
    problem = transport.DenseProblem(
        cost,
        weights_S=np.ones(cost.shape[0]),
        weights_T=np.ones(cost.shape[1]),
        epsilon=scale,
        tau_source=scale,
        tau_target=100 * scale,
    )
    plan = transport.solve(problem, transport.Solver(tolerance=1e-6, max_iterations=10_000))
    return np.argsort(-plan.log_mass_S, kind="stable")


# ---------------------------------------------------------------- recall and agreement


@dataclass(frozen=True)
class Source:
    """Classifier, concept of its rows; real means of a part of them, and which rows these are."""

    weight: np.ndarray
    concept: np.ndarray
    means: np.ndarray
    rows: np.ndarray


def target_means(pool: dict[str, np.ndarray], names: list[str], seed: int) -> np.ndarray:
    """Means of six images a class (T, D), other images for another seed."""
    rng, means = np.random.default_rng(seed), []
    for name in names:
        own = np.flatnonzero(pool["labels"] == list(pool["names"]).index(name))
        means.append(pool["features"][rng.permutation(own)[:SHOTS]].mean(0))
    return np.array(means, float)


def recall(order: np.ndarray, wanted: np.ndarray, most: int) -> float:
    """Per cent of the ``wanted`` (S,) among the first ``most`` of ``order``."""
    return 100 * wanted[order[:most]].sum() / wanted.sum()


def line(
    source: Source, rows: np.ndarray, targets: dict[str, list[np.ndarray]], way: Cost, scale: float
) -> str:
    """One way at one scale: a row of the table, means over draws of the target."""
    birds, found, inside, agree = [], [], [], []
    for kind, draws in targets.items():
        costs = [way(rows, target) for target in draws]
        parts = [ranking(cost[source.rows], scale) for cost in costs]
        real = [ranking(cosine(source.means, target), 0.01) for target in draws]
        most = 50 if kind == "all" else 20
        pairs = zip(parts, real, strict=True)
        agree.append(np.mean([100 * len({*a[:most]} & {*b[:most]}) / most for a, b in pairs]))
        if kind == "all":
            continue
        wanted, here = source.concept == kind, source.concept[source.rows] == kind
        orders = [ranking(cost, scale) for cost in costs]
        found.append(np.mean([recall(order, wanted, wanted.sum()) for order in orders]))
        inside.append(np.mean([recall(part, here, here.sum()) for part in parts]))
        if kind == "bird":
            birds = [recall(order, wanted, 100) for order in orders]
    spread = stats.sem(birds) * stats.t.ppf(0.975, len(birds) - 1)
    cells = (" ".join(f"{value:5.1f}" for value in part) for part in (found, inside, agree))
    return " | ".join((f"{np.mean(birds):5.1f} ± {spread:.1f}", *cells))


def compare(words: argparse.Namespace, source: Source, target: dict[str, np.ndarray]) -> None:
    """Print the table."""
    seeds, scales = words.target_seeds, words.scales
    named = {kind: names.split() for kind, names in KINDS.items()}
    named["all"] = list(target["names"])
    targets = {
        kind: [target_means(target, names, seed) for seed in range(seeds)]
        for kind, names in named.items()
    }
    kinds = " ".join(KINDS)
    print(
        f"way, scale: recall of 1000: bird@100 | {kinds} | recall of the source: {kinds} | "
        f"agreement: {kinds} all"
    )
    here = source.concept[source.rows]
    real = [
        np.mean(
            [
                recall(ranking(cosine(source.means, t), 0.01), here == kind, (here == kind).sum())
                for t in targets[kind]
            ]
        )
        for kind in KINDS
    ]
    print("real means:", " ".join(f"{value:5.1f}" for value in real))
    for name in words.ways:
        change, way = WAYS[name]
        rows = change(source.weight)
        for scale in scales:
            print(f"{name}, {scale:g}:", line(source, rows, targets, way, scale), flush=True)


# ---------------------------------------------------------------- accuracy after training


def choices(
    source: Source, target: dict[str, np.ndarray], seed: int, keep: int
) -> dict[str, np.ndarray]:
    """The classes of the source that each arm keeps, for the seed's six images a class."""
    means = target_means(target, list(target["names"]), seed)
    rows = classifier.stand_ins(source.weight)[source.rows]
    classes = len(source.rows)
    return {
        "none": np.empty(0, int),
        "random": np.random.default_rng(seed).permutation(classes)[:keep],
        "real means": ranking(cosine(source.means, means), 0.01)[:keep],
        "rows": ranking(cosine(rows, means), 0.03)[:keep],
    }


def train(
    target: tuple[np.ndarray, np.ndarray],
    source: tuple[np.ndarray, np.ndarray],
    seed: int,
    steps: int,
) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Joint training of one backbone with two heads; ``source`` may be empty.

    32 + 32 images a step in one batch with shared norm statistics, heads from class means, SGD
    with momentum, rate 0.003 and ten times that for the heads, lambda 0.3, crops and flips.
    """
    torch.manual_seed(seed)
    rng, (backbone, _) = np.random.default_rng(seed), lite0()
    sets = [part for part in (target, source) if len(part[1])]
    heads = [head(features(backbone, centre(pixels)), labels) for pixels, labels in sets]
    groups = [{"params": backbone.parameters(), "lr": 0.003}]
    groups += [{"params": one.parameters(), "lr": 0.03} for one in heads]
    optimiser = torch.optim.SGD(groups, momentum=0.9, nesterov=True, weight_decay=1e-4)
    drops = torch.optim.lr_scheduler.MultiStepLR(
        optimiser, [int(steps * 0.6), int(steps * 0.8)], 0.1
    )
    backbone.train()
    for _ in range(steps):
        drawn = [rng.choice(len(labels), 32, replace=False) for _, labels in sets]
        batch = [shaken(pixels[rows], rng) for (pixels, _), rows in zip(sets, drawn, strict=True)]
        parts = backbone(inputs(np.concatenate(batch))).split(32)
        losses = [
            functional.cross_entropy(one(part), torch.from_numpy(labels[rows]))
            for one, part, (_, labels), rows in zip(heads, parts, sets, drawn, strict=True)
        ]
        optimiser.zero_grad()
        (losses[0] + 0.3 * sum(losses[1:])).backward()
        optimiser.step()
        drops.step()
    return backbone, heads[0]


def head(points: np.ndarray, labels: np.ndarray) -> torch.nn.Linear:
    """A linear head that starts as the nearest class mean, as the library's."""
    means = np.stack([points[labels == c].mean(0) for c in range(labels.max() + 1)])
    layer = torch.nn.Linear(points.shape[1], len(means))
    weight, bias = network.nearest_mean_rows(torch.from_numpy(means), 10.0)
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


def centre(pixels: np.ndarray, side: int = 96) -> np.ndarray:
    """The middle of every picture."""
    start = (pixels.shape[1] - side) // 2
    return pixels[:, start : start + side, start : start + side]


def shaken(pixels: np.ndarray, rng: np.random.Generator, side: int = 96) -> np.ndarray:
    """A random crop of every picture, half of them mirrored."""
    room, out = pixels.shape[1] - side + 1, []
    for picture in pixels:
        top, left = rng.integers(room, size=2)
        crop = picture[top : top + side, left : left + side]
        out.append(crop[:, ::-1] if rng.random() < 0.5 else crop)
    return np.stack(out)


def accuracies(words: argparse.Namespace, source: Source, target: dict[str, np.ndarray]) -> None:
    """Print the accuracy on at most 20 test images a class, seed by seed and arm by arm."""
    pool, labels, names = pictures(words.target, "train", 20, 106)
    tests, truth, _ = pictures(words.target, "test", 20, 106)
    others, theirs, known = pictures(words.source, "train", SOURCE_SHOTS, 106)
    own = np.array([known.index(name) for name in source_names(words)])
    for seed in words.seeds:
        rng, rows = np.random.default_rng(seed), []
        for label in range(len(names)):  # the same images as in `target_means`
            rows.extend(rng.permutation(np.flatnonzero(labels == label))[:SHOTS])
        few = pool[rows], labels[rows]
        for arm, kept in choices(source, target, seed, 50).items():
            if words.arms and arm not in words.arms:
                continue
            chosen = np.isin(theirs, own[kept])
            part = others[chosen], np.unique(theirs[chosen], return_inverse=True)[1]
            backbone, linear = train(few, part, seed, words.steps)
            with torch.no_grad():
                scores = linear(torch.from_numpy(features(backbone, centre(tests))))
            right = scores.argmax(1).numpy() == truth
            each = np.mean([right[truth == c].mean() for c in range(len(names))])
            print(
                f"seed {seed}, {arm}: {100 * right.mean():.2f}, per class {100 * each:.2f}",
                flush=True,
            )


# ---------------------------------------------------------------- command


def source_names(words: argparse.Namespace) -> list[str]:
    """The source's classes that the classifier knows, in the order of `Source.means`."""
    ids = dict(row.split("\t")[:2] for row in words.classes.read_text().splitlines())
    known = {entry["wnid"] for entry in json.loads(words.concepts.read_text())}
    names = embed(words.source, SOURCE_SHOTS, words.cache)["names"]
    return [name for name in names if ids.get(name) in known]


def read(words: argparse.Namespace) -> Source:
    """The source as rows and as real means."""
    entries = json.loads(words.concepts.read_text())
    place = {entry["wnid"]: row for row, entry in enumerate(entries)}
    ids = dict(row.split("\t")[:2] for row in words.classes.read_text().splitlines())
    pool = embed(words.source, SOURCE_SHOTS, words.cache)
    order, names = list(pool["names"]), source_names(words)
    means = [pool["features"][pool["labels"] == order.index(name)].mean(0) for name in names]
    rows = np.array([place[ids[name]] for name in names])
    concept = np.array([entry["concept"] for entry in entries])
    return Source(lite0()[1], concept, np.array(means, float), rows)


def main() -> None:
    """Compare, or train."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--source", type=Path, required=True, metavar="ZIP")
    parser.add_argument("--target", type=Path, required=True, metavar="ZIP")
    parser.add_argument("--classes", type=Path, required=True, help="source class, WordNet id")
    parser.add_argument("--concepts", type=Path, required=True, help="ImageNet's rows, by concept")
    parser.add_argument("--cache", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--scales",
        type=float,
        nargs="+",
        default=[0.003, 0.01, 0.03, 0.1],
        help="0: the strategy nearest",
    )
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--target-seeds", type=int, default=10, help="draws of six images a class")
    parser.add_argument("--train", dest="seeds", type=int, nargs="*", help="train on these seeds")
    parser.add_argument("--arms", nargs="+", help="some of: none, random, 'real means', rows")
    parser.add_argument("--steps", type=int, default=100)
    words = parser.parse_args()
    source, target = read(words), embed(words.target, 20, words.cache)
    if words.seeds is None:
        compare(words, source, target)
    else:
        accuracies(words, source, target)


if __name__ == "__main__":
    main()
