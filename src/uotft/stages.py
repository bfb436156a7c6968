"""One function per DVC stage: read files, call a room, write files.

Nothing heavy is imported before a stage needs it. Training stages run in worker processes
(`uotft.launch` starts them) and report through ``log``; MLflow is never imported here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from uotft import config, registry, store
from uotft.errors import UserError
from uotft.records import ClassBank, ImageSet, Selection

if TYPE_CHECKING:
    from accelerate import Accelerator

    from uotft.compare import Row
    from uotft.network import Network
    from uotft.statistics import Interval

Progress = Callable[..., Any]
Log = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class Workspace:
    """A clone's settings, and where each stage keeps its files."""

    root: Path
    params: config.Params

    @classmethod
    def find(cls) -> Workspace:
        """The workspace around the current folder: the nearest one with a params.yaml."""
        here = Path.cwd()
        found = (folder for folder in (here, *here.parents) if (folder / "params.yaml").is_file())
        root = next(found, here)
        return cls(root, config.load(root))

    def data(self, dataset: str) -> Path:
        """The images of a data set."""
        return self.root / "data" / f"{dataset}.npz"

    def pretrained(self) -> Path:
        """The folder of the backbone pre-trained on the source."""
        return self.root / "pretrained" / self.params.source

    def embedding(self, dataset: str) -> Path:
        """Class means of the source, or features of a target's training pool."""
        return self.root / "embeddings" / f"{dataset}.npz"

    def cell(self, kind: str, target: str, strategy: str, seed: int) -> Path:
        """The folder of one cell of the matrix; ``kind`` is selections or models."""
        return self.root / kind / target / strategy / str(seed)

    def metrics(self, target: str, strategy: str) -> Path:
        """Test metrics of all seeds of one strategy."""
        return self.root / "metrics" / target / f"{strategy}.json"

    def images(self, dataset: str) -> ImageSet:
        """The prepared images of a data set."""
        return store.read_images(self.data(dataset))


def prepare(ws: Workspace, dataset: str, *, progress: Progress) -> str:
    """Make data/DATASET.npz and its summary; returns a line that says what was made."""
    settings = config.dataset_settings(ws.params, dataset)
    images = registry.load("datasets", dataset, "data set").load(settings, progress)
    store.write_images(ws.data(dataset), images)
    counts = {split: len(images.rows(split)) for split in dict.fromkeys(images.splits.tolist())}
    summary = {"classes": len(images.names), "images": counts, "names": list(images.names)}
    store.write_json(ws.data(dataset).with_suffix(".json"), summary)
    parts = ", ".join(f"{n} {split}" for split, n in counts.items())
    return f"{dataset}: {len(images.names)} classes, {parts} images"


def pretrain(ws: Workspace, accelerator: Accelerator, *, log: Log, progress: Progress) -> None:
    """Train the backbone on every source class; writes pretrained/SOURCE/."""
    import torch

    from uotft import checkpoint
    from uotft.objectives import plain

    settings, images = ws.params.pretrain, ws.images(ws.params.source)
    torch.manual_seed(settings.seed)
    network = checkpoint.build(ws.params.backbone, len(images.names))
    stream = _Stream(accelerator, settings.seed, settings.augment)
    rows = images.rows("train")
    streams = {"target": stream("target", images, rows, images.labels[rows], settings.batch_size)}
    facts = {"stage": "pretrain", "source": ws.params.source, "seed": settings.seed}
    _fit_and_write(
        ws, ws.pretrained(), network, streams, lambda o, b: plain.terms(o, b, 0), settings.recipe,
        images, facts, accelerator, log, progress,
    )  # fmt: skip


def embed(ws: Workspace, dataset: str, *, progress: Progress) -> str:
    """Features of the training part: class means for the source, single images for a target."""
    from uotft import checkpoint, embed as room, runtime

    accelerator = runtime.start(0, ws.params.cpu_threads)
    network, facts = checkpoint.read(ws.pretrained())
    images = ws.images(dataset)
    rows = images.rows("train")
    features = room.features(network, images.images[rows], accelerator, progress=progress)
    if dataset == ws.params.source:
        means, counts = room.class_means(features, images.labels[rows], len(images.names))
        bank = ClassBank(means, images.names, counts, facts["sha256"])
        store.write_bank(ws.embedding(dataset), bank)
    else:
        store.write_arrays(
            ws.embedding(dataset),
            features=features,
            labels=images.labels[rows],
            rows=rows,
            names=np.array(images.names),
            backbone=np.array(facts["sha256"]),
        )
    return f"{dataset}: {features.shape[0]} training images, {features.shape[1]} features"


def select(ws: Workspace, target: str, strategy: str, seed: int) -> Selection:
    """Score the source classes against one seed's target images, keep K, write the selection."""
    from uotft import selection

    settings = config.selector_settings(ws.params, strategy)
    module = registry.load("selectors", strategy, "strategy")
    source, bank = store.read_bank(ws.embedding(ws.params.source)), target_bank(ws, target, seed)
    if source.backbone != bank.backbone:
        raise UserError(
            f"{ws.embedding(target)} and {ws.embedding(ws.params.source)} were made with different "
            "backbones: run dvc repro"
        )
    scores = module.score(source, bank, settings, seed)
    kept = selection.keep(scores, source.names, ws.params.select.top_k)
    chosen = Selection(
        strategy=strategy,
        kept=kept,
        names=source.names,
        scores=scores,
        settings={"top_k": ws.params.select.top_k, "seed": seed, **settings.model_dump()},
        fingerprints={
            "source": store.fingerprint(ws.embedding(ws.params.source)),
            "target": store.fingerprint(ws.embedding(target)),
        },
    )
    folder = ws.cell("selections", target, strategy, seed)
    if scores.plan is not None:
        from uotft import report

        store.write_arrays(folder / "plan.npz", plan=scores.plan.astype(np.float32), kept=kept)
        picture = report.plan_picture(scores.plan, kept, source.names, bank.names)
        store.write_bytes(folder / "plan.png", picture)
    store.write_json(folder / "selection.json", selection.to_json(chosen))
    return chosen


def target_bank(ws: Workspace, target: str, seed: int) -> ClassBank:
    """Class means of the target images that this seed may train on, and of no others."""
    from uotft.subset import few_shot

    pool = store.read_arrays(ws.embedding(target))
    drawn = few_shot(pool["labels"], ws.params.subset.shots, seed)
    labels, names = pool["labels"][drawn], tuple(pool["names"].tolist())
    means = np.stack([pool["features"][drawn][labels == c].mean(0) for c in range(len(names))])
    counts = np.bincount(labels, minlength=len(names))
    return ClassBank(means.astype(np.float64), names, counts, str(pool["backbone"]))


def train(
    ws: Workspace,
    target: str,
    strategy: str,
    seed: int,
    accelerator: Accelerator,
    *,
    log: Log,
    progress: Progress,
) -> None:
    """Fine-tune on one seed's target images and the selected classes; writes models/…/SEED/."""
    import torch

    from uotft import checkpoint
    from uotft.network import Network, nearest_mean_rows, separate_norms
    from uotft.subset import few_shot

    settings = ws.params.train
    chosen = read_selection(ws, target, strategy, seed)
    pretrained, facts = checkpoint.read(ws.pretrained())
    images, kept = ws.images(target), np.array([c["row"] for c in chosen["classes"]], np.int64)

    # ---- network: the pre-trained backbone under fresh heads
    torch.manual_seed(seed)
    network = Network(pretrained.backbone, target=len(images.names), source=len(kept))
    if settings.batch_norm == "target":
        separate_norms(network)
    if settings.target_head == "class_means":
        means = torch.as_tensor(target_bank(ws, target, seed).means, dtype=torch.float32)
        network.start_head("target", *nearest_mean_rows(means, settings.head_scale))
    if len(kept) and settings.source_head == "classifier":
        classifier = pretrained.head("target")
        network.start_head("source", classifier.weight[kept], classifier.bias[kept])

    # ---- streams: the seed's few labelled images, and the kept source classes renumbered
    stream = _Stream(accelerator, seed, settings.augment)
    pool = images.rows("train")
    rows = pool[few_shot(images.labels[pool], ws.params.subset.shots, seed)]
    streams = {"target": stream("target", images, rows, images.labels[rows], settings.target_batch)}
    if len(kept):
        source = ws.images(ws.params.source)
        number = np.full(len(source.names), -1)
        number[kept] = np.arange(len(kept))
        rows = source.rows("train")
        rows = rows[number[source.labels[rows]] >= 0]
        labels = number[source.labels[rows]]
        streams["source"] = stream("source", source, rows, labels, settings.source_batch)
    objective = registry.load("objectives", settings.objective if len(kept) else "plain", "")

    facts = {
        "stage": "train",
        "target": target,
        "strategy": strategy,
        "seed": seed,
        "source_classes": [c["name"] for c in chosen["classes"]],
        "pretrained": facts["sha256"],
        "data": store.fingerprint(ws.data(target)),
    }
    _fit_and_write(
        ws, ws.cell("models", target, strategy, seed), network, streams,
        lambda o, b: objective.terms(o, b, settings.source_weight), settings.recipe,
        images, facts, accelerator, log, progress,
    )  # fmt: skip


def read_selection(ws: Workspace, target: str, strategy: str, seed: int) -> dict[str, Any]:
    """A selection.json, refused when it was made from other embeddings than today's."""
    path = ws.cell("selections", target, strategy, seed) / "selection.json"
    chosen: dict[str, Any] = store.read_json(path)
    for side, dataset in (("source", ws.params.source), ("target", target)):
        if chosen["fingerprints"][side] != store.fingerprint(ws.embedding(dataset)):
            raise UserError(f"{path} belongs to another {ws.embedding(dataset)}: run dvc repro")
    return chosen


def evaluate(ws: Workspace, target: str, strategy: str, *, progress: Progress) -> dict[str, Any]:
    """Read the test part once for every seed of a strategy; writes metrics/TARGET/STRATEGY.json."""
    from uotft import checkpoint, evaluate as room, metrics, runtime

    accelerator = runtime.start(0, ws.params.cpu_threads)
    images = ws.images(target)
    rows, results = images.rows("test"), {}
    for seed in progress(ws.params.seeds, "evaluating"):
        network, facts = checkpoint.read(ws.cell("models", target, strategy, seed))
        if facts["data"] != store.fingerprint(ws.data(target)):
            raise UserError(f"{ws.data(target)} changed since seed {seed} was trained: dvc repro")
        confusion = room.confusion(
            network.to(accelerator.device), images.images[rows], images.labels[rows], accelerator,
            classes=len(images.names),
        )  # fmt: skip
        results[str(seed)] = {
            "top1": metrics.top1(confusion),
            "mean_per_class": metrics.mean_per_class(confusion),
            "images": len(rows),
            "source_classes": len(facts["source_classes"]),
            "model": facts["sha256"],
            "confusion": confusion.tolist(),
        }
    store.write_json(ws.metrics(target, strategy), results)
    return results


def compare(ws: Workspace) -> dict[str, list[Row]]:
    """Read metrics and histories of every target; writes tables and pictures to reports/."""
    from uotft import compare as room, report

    tables, summary = {}, {}
    parts: list[report.Part] = []
    runs, points = [], []
    for target in ws.params.targets:
        results = {s: store.read_json(ws.metrics(target, s)) for s in ws.params.strategies}
        rows = tables[target] = room.table(results)
        flat = [{"target": target, **room.flat(row)} for row in rows]
        summary[target] = {row["strategy"]: _numbers(row) for row in flat}
        curves = _curves(ws, target)
        pictures = {
            "comparison": report.comparison_picture(
                target,
                {row.strategy: row.top1 for row in rows},
                {row.strategy: row.against["none"] for row in rows if "none" in row.against},
            ),
            "curves": report.curves_picture(target, curves),
            "classes": report.classes_picture(
                f"Selected classes, best first (seed {ws.params.seeds[0]})", _sheets(ws, target)
            ),
        }
        for name, picture in pictures.items():
            store.write_bytes(ws.root / "reports/pictures" / f"{name}-{target}.png", picture)
        runs += [
            {"target": target, "strategy": s, "seed": k, "top1": m["top1"],
             "mean_per_class": m["mean_per_class"]}
            for s, seeds in results.items() for k, m in seeds.items()
        ]  # fmt: skip
        points += [
            {"target": target, "strategy": s, "step": step, "top1": round(value.mean, 4)}
            for s, curve in curves.items() for step, value in curve.items()
        ]  # fmt: skip
        parts += [
            (target, [room.HEADER, *(row.cells() for row in rows)]),
            ("Accuracy on the test part", pictures["comparison"]),
            ("Learning curves", pictures["curves"]),
            ("Selected classes", pictures["classes"]),
        ]
    folder = ws.root / "reports"
    store.write_csv(folder / "runs.csv", runs)
    store.write_csv(folder / "curves.csv", points)
    store.write_json(folder / "summary.json", summary)
    text = "\n".join(f"## {t}\n\n{room.markdown(rows)}" for t, rows in tables.items())
    note = (
        "Mean ± 95 % t-interval over seeds; Δ: paired difference in top-1 on the same seeds, in "
        "points. Every seed draws its own labelled images."
    )
    store.write_bytes(folder / "comparison.md", f"{text}\n{note}\n".encode())
    html = report.page("uotft comparison", [*parts, ("How to read this", note)])
    store.write_bytes(folder / "index.html", html.encode())
    return tables


def _curves(ws: Workspace, target: str) -> dict[str, dict[int, Interval]]:
    """{strategy: {step: validation top-1 over seeds}} from the runs' histories."""
    from uotft.statistics import interval

    curves: dict[str, dict[int, Interval]] = {}
    for strategy in ws.params.strategies:
        steps: dict[int, list[float]] = {}
        for seed in ws.params.seeds:
            history = ws.cell("models", target, strategy, seed) / "history.csv"
            for row in store.read_csv(history):
                if row["val/top1"]:
                    steps.setdefault(int(row["step"]), []).append(float(row["val/top1"]))
        curves[strategy] = {step: interval(values) for step, values in steps.items()}
    return curves


def _sheets(ws: Workspace, target: str) -> dict[str, list[tuple[str, NDArray[np.uint8]]]]:
    """The target's classes, then the first seed's selected classes of every strategy."""
    images, source = ws.images(target), ws.images(ws.params.source)

    def sheet(images: ImageSet, rows: list[int]) -> list[tuple[str, NDArray[np.uint8]]]:
        train = images.rows("train")
        return [(images.names[c], images.images[train[images.labels[train] == c][0]]) for c in rows]

    sheets = {target: sheet(images, list(range(len(images.names))))}
    for strategy in ws.params.strategies:
        chosen = read_selection(ws, target, strategy, ws.params.seeds[0])
        if chosen["classes"]:
            sheets[strategy] = sheet(source, [c["row"] for c in chosen["classes"]])
    return sheets


def _numbers(row: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in row.items() if k not in ("target", "strategy")}


def _fit_and_write(
    ws: Workspace,
    folder: Path,
    network: Network,
    streams: dict[str, Any],
    objective: Any,
    recipe: config.Recipe,
    images: ImageSet,
    facts: dict[str, Any],
    accelerator: Accelerator,
    log: Log,
    progress: Progress,
) -> None:
    """Train, validate on the way, and write weights, facts and history into ``folder``."""
    from uotft import checkpoint, evaluate as room, metrics, train as loop

    rows = images.rows("val")
    history: dict[int, dict[str, float]] = {}

    def validate() -> dict[str, float]:
        confusion = room.confusion(
            network, images.images[rows], images.labels[rows], accelerator,
            classes=len(images.names),
        )  # fmt: skip
        return {
            "val/top1": metrics.top1(confusion),
            "val/mean_per_class": metrics.mean_per_class(confusion),
        }

    def remember(step: int, numbers: dict[str, float]) -> None:
        history.setdefault(step, {}).update(numbers)
        log(step, numbers)

    loop.fit(
        network, streams, objective, recipe, accelerator,
        log=remember, evaluate=validate, progress=progress,
    )  # fmt: skip
    if accelerator.is_main_process:
        points = [{"step": step, **numbers} for step, numbers in sorted(history.items())]
        store.write_csv(folder / "history.csv", points)
        last = {k: v for k, v in points[-1].items() if k.startswith("val/")}
        checkpoint.write(
            folder,
            network,
            {
                **facts,
                "backbone": ws.params.backbone,
                "classes": list(images.names),
                "source_classes": facts.get("source_classes", []),
                "image_size": list(images.images.shape[1:]),
                "steps": recipe.steps,
                "validation": last,
            },
        )


class _Stream:
    """Makes the streams of one run: what they share is said once."""

    def __init__(self, accelerator: Accelerator, seed: int, augment: config.Augment) -> None:
        self.accelerator, self.seed, self.augment = accelerator, seed, augment

    def __call__(
        self,
        name: str,
        images: ImageSet,
        rows: NDArray[np.int64],
        labels: NDArray[np.int64],
        batch_size: int,
    ) -> Any:
        from uotft.images import Stream

        world = self.accelerator.num_processes
        if batch_size % world:
            raise UserError(
                f"the {name} batch of {batch_size} cannot be shared by {world} processes: "
                f"choose a multiple of {world} in params.yaml"
            )
        return Stream(
            images.images[rows], labels, name=name, batch_size=batch_size, seed=self.seed,
            augment=self.augment, device=self.accelerator.device,
            rank=self.accelerator.process_index, world=world,
        )  # fmt: skip
