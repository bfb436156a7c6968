"""The stage train: images and a selection -> weights."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from uotft.core import config, disk, storage
from uotft.core.errors import Interrupted, UserError
from uotft.core.records import ImageSet, SourcePart
from uotft.core.settings import Augment, Recipe
from uotft.data import subset
from uotft.data.pixel_cache import Store
from uotft.pipeline.overlap import read_overlap
from uotft.pipeline.select import read_selection, source_part, target_bank
from uotft.pipeline.workspace import Log, Progress, Stop, Workspace, never
from uotft.training import objectives

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

    from uotft.models.network import Network, Routes


BELONGS = "belongs.json"  # beside a finished model of a variant: what it belongs to, and seconds


Finish = Callable[["Network", Log, Callable[[], dict[str, float]]], None]


def nothing(network: Network, log: Log, validate: Callable[[], dict[str, float]]) -> None:
    """Nothing is left to do after the last step."""


def train(
    ws: Workspace,
    target: str,
    strategy: str,
    seed: int,
    accelerator: Accelerator,
    *,
    log: Log,
    progress: Progress,
    stop: Stop = never,
) -> None:
    """Fine-tune on one seed's target images and the selected units; writes models/…/SEED/."""
    import torch

    from uotft.models import model_io
    from uotft.models.inputs import Views
    from uotft.models.network import Network, nearest_mean_rows, random_rows, separate_norms
    from uotft.training import loop

    settings = ws.params.train
    chosen = read_selection(ws, target, strategy, seed)
    pretrained, facts = model_io.read(ws.pretrained())
    images = ws.images(target)
    pool = ws.rows(target, images, "train")
    part = source_part(ws, np.array([c["row"] for c in chosen["classes"]], np.int64))
    _must_fit(ws, facts, part)

    found, left_out = read_overlap(ws, target)["source"], 0

    # ---- objective: which parts of a batch it reads, and which heads it trains
    name = settings.objective
    objective, own = config.objective(ws.params, name)
    if "source" in objectives.parts(objective) and not len(part.names):
        name = "plain"
        objective, own = config.objective(ws.params, name)
    parts, heads = objectives.parts(objective), objectives.heads(objective)
    source_names = part.names if "source" in parts else tuple(facts["classes"])
    source_names = source_names if "source" in heads else ()

    # ---- network: the pre-trained backbone under fresh heads
    torch.manual_seed(seed)
    network = Network(pretrained.backbone, target=len(images.names), source=len(source_names))
    if settings.batch_norm == "target":
        separate_norms(network)
    classifier, own_rows = pretrained.head("target"), part.classes
    starts = {"target": settings.target_head, "source": settings.source_head}
    if "source" not in parts:
        starts["source"], own_rows = "classifier", np.arange(len(classifier.weight))
    for head in network.heads:
        if starts[head] == "random":
            start = random_rows(head, network.head(head).weight.shape, seed)
        elif starts[head] == "classifier" and len(own_rows):
            start = classifier.weight[own_rows], classifier.bias[own_rows]
        else:  # clusters, too: no classifier has seen them
            bank = target_bank(ws, target, seed).head_means() if head == "target" else part.means
            means = torch.as_tensor(bank, dtype=torch.float32)
            start = nearest_mean_rows(means, settings.head_scale)
        network.start_head(head, *start)

    # ---- streams: the seed's few labelled images, and those of the kept source units
    stream = _Stream(accelerator, seed, settings.augment, network.channels, progress, stop)
    rows = pool[subset.draw(images.labels[pool], ws.params.subset, seed)]
    streams = {"target": stream("target", images, rows, images.labels[rows], settings.target_batch)}
    recipe = settings.recipe.counted(len(rows), settings.target_batch)
    if "source" in parts:
        keep = np.ones(len(part.rows), bool)
        if settings.overlap == "exclude":
            keep = ~np.isin(part.rows, found)
            left_out = int((~keep).sum())
        if not keep.any():
            raise UserError(
                f"every image of the selected source classes is a test image of {target} too "
                f"({ws.overlap(target)}): select other classes, or prepare another source"
            )
        of_source = part.data, part.rows[keep], part.labels[keep], settings.source_batch
        streams["source"] = stream("source", *of_source)
        if "strong" in parts:
            streams["strong"] = stream("source", *of_source, strong=settings.strong)

    # ---- terms: with what the objective wants to know before the first step
    network.to(accelerator.device)
    context = objectives.Context(
        settings.source_weight, network.backbone, network.head("target"),
        lambda: _seen(pretrained, images, rows, accelerator, stop),
        lambda: _seen(pretrained, part.data, part.data.rows("val"), accelerator, stop),
        part.classes,
    )  # fmt: skip
    terms = objectives.ready(objective, own, context)

    def finish(network: Network, log: Log, validate: Callable[[], dict[str, float]]) -> None:
        """What the target alone has to say after the last step, as the settings want it."""
        if settings.reestimate_norm:
            loop.reestimate_norm(network, Views(images, rows))
        if settings.head_steps:
            loop.fit_head(
                network, streams["target"], recipe, settings.head_steps, accelerator,
                log=log, progress=progress, stop=stop,
            )  # fmt: skip
        if settings.reestimate_norm or settings.head_steps:
            log(recipe.steps + settings.head_steps, validate())

    facts = {
        "stage": "train",
        "target": target,
        "strategy": strategy,
        "seed": seed,
        "objective": name,
        "source_classes": list(source_names),
        "reused": list(part.names) if "source" in parts else [],
        "overlap": {"found": len(found), "excluded": left_out},
        "pretrained": facts["sha256"],
        "selection": storage.fingerprint(
            ws.cell("selections", target, strategy, seed) / "selection.json"
        ),
        "data": storage.fingerprint(ws.data(target)),
        # how pictures become images of this set
        "dataset": {"kind": target, **ws.params.datasets[target]},
    }
    belongs = train_belongs(ws, target, strategy, seed)
    _fit_and_write(
        ws, ws.cell("models", target, strategy, seed), network, streams,
        terms, objective.ROUTES, recipe, images, facts, belongs, accelerator, log,
        progress, stop, finish if settings.reestimate_norm or settings.head_steps else nothing,
    )  # fmt: skip


def _must_fit(ws: Workspace, pretrained: dict[str, Any], part: SourcePart) -> None:
    """Refuse a pre-trained network of another backbone or source, and embeddings of another one."""
    classes = tuple(pretrained["classes"])
    stale = {
        "the section backbone of params.yaml": pretrained["backbone"] != ws.params.backbone,
        f"the classes of {ws.data(ws.params.source)}": classes != part.data.names,
        f"{ws.embedding(ws.params.source)}": part.backbone != pretrained["sha256"],
    }
    if names := [name for name, bad in stale.items() if bad]:
        raise UserError(f"{ws.pretrained()} does not belong to {', '.join(names)}: run dvc repro")


def train_belongs(ws: Workspace, target: str, strategy: str, seed: int) -> dict[str, Any]:
    """What an unfinished fine-tuning belongs to: settings, and fingerprints of what it reads."""
    selection = ws.cell("selections", target, strategy, seed) / "selection.json"
    files = [ws.data(ws.params.source), ws.data(target), selection, ws.overlap(target)]
    files += [ws.embedding(ws.params.source), ws.embedding(target)]
    return {
        "backbone": ws.params.backbone,
        "subset": ws.params.subset.words,
        "train": _decisive(ws.params.train.model_dump(by_alias=True)),
        "objective": ws.params.objectives.get(ws.params.train.objective, {}),
        "files": ws.fingerprints([*files, ws.pretrained() / "model.json"]),
    }


def cell_belongs(
    ws: Workspace, target: str, strategy: str, seed: int, processes: int
) -> dict[str, Any]:
    """What a finished cell belongs to: also the settings that its selection was made with."""
    wanted = ws.params.select
    selectors = {strategy, "uot"} if wanted.top_k == "auto" else {strategy}
    return {
        **train_belongs(ws, target, strategy, seed),
        "processes": processes,  # batch norm takes the statistics of each one's share
        "source_fraction": ws.params.source_fraction,
        "select": wanted.model_dump(),
        "selectors": {
            name: config.selector_settings(ws.params, name).model_dump() for name in selectors
        },
    }


def finished(
    ws: Workspace, target: str, strategy: str, seed: int, processes: int
) -> dict[str, Any] | None:
    """The facts in a variant's belongs.json, if its model is today's: ``seconds`` it took."""
    folder = ws.cell("models", target, strategy, seed)
    try:
        facts: dict[str, Any] = storage.read_json(folder / BELONGS)
        same = facts["belongs"] == cell_belongs(ws, target, strategy, seed, processes)
        mixed = "processes" in storage.read_json(folder / "model.json")
    except UserError:
        return None
    return facts if same and not mixed else None


def _decisive(section: dict[str, Any]) -> dict[str, Any]:
    """A section without what decides nothing about the weights."""
    recipe = {k: v for k, v in section["recipe"].items() if k != "checkpoint_every"}
    return {**section, "recipe": recipe}


def _fit_and_write(
    ws: Workspace,
    folder: Path,
    network: Network,
    streams: dict[str, Any],
    objective: objectives.Terms,
    routes: Routes,
    recipe: Recipe,
    images: ImageSet,
    facts: dict[str, Any],
    belongs: dict[str, Any],
    accelerator: Accelerator,
    log: Log,
    progress: Progress,
    stop: Stop,
    finish: Finish = nothing,
) -> None:
    """Train, validate on the way, and write weights, facts and history into ``folder``.

    Goes on from the checkpoint of the same training that was interrupted, if there is one.
    ``finish`` may change the network after the last step; the last validation logged counts. The
    checkpoints stay for the caller to remove: what is still to be done after this may be killed.
    """
    from uotft.models import model_io
    from uotft.models.inputs import Views
    from uotft.training import checkpoints, evaluation, loop, metrics, state as snapshot

    rows = ws.rows(facts.get("target", ws.params.source), images, "val")
    _decode(images, rows, accelerator, progress, stop)
    seen = Views(images, rows)
    history: dict[int, dict[str, float]] = {}
    left = ws.unfinished(folder)
    if accelerator.is_main_process and (aside := checkpoints.claim(left, belongs)):
        print(f"uotft: {aside}", file=sys.stderr)  # noqa: T201
    accelerator.wait_for_everyone()
    line = _need_space(network, recipe, left, accelerator.num_processes)
    if accelerator.is_main_process:
        print(f"uotft: {line}", file=sys.stderr)  # noqa: T201
    keeper = snapshot.Keeper(left, belongs, history, log)

    def validate(network: Network) -> dict[str, float]:
        confusion = evaluation.confusion(
            network, seen, images.labels[rows], accelerator,
            classes=len(images.names), stop=stop,
        )  # fmt: skip
        return {
            "val/top1": metrics.top1(confusion),
            "val/mean_per_class": metrics.mean_per_class(confusion),
        }

    def remember(step: int, numbers: dict[str, float]) -> None:
        history.setdefault(step, {}).update(numbers)
        log(step, numbers)

    network = loop.fit(
        network, streams, objective, recipe, accelerator,
        routes=routes, log=remember, evaluate=validate, progress=progress, keeper=keeper, stop=stop,
        more=finish is not nothing,
    )  # fmt: skip
    finish(network, remember, lambda: validate(network))
    if accelerator.is_main_process:
        points = [{"step": step, **numbers} for step, numbers in sorted(history.items())]
        storage.write_csv(folder / "history.csv", points)
        last = {k: v for k, v in points[-1].items() if k.startswith("val/")}
        mixed = {"processes": keeper.processes} if len(keeper.processes) > 1 else {}
        model_io.write(
            folder,
            network,
            {
                **facts,
                **mixed,
                "backbone": ws.params.backbone,
                "classes": list(images.names),
                "source_classes": facts.get("source_classes", []),
                "image_size": list(seen.shape[1:]),
                "steps": recipe.steps,
                "validation": last,
            },
        )


def _need_space(network: Network, recipe: Recipe, left: Path, processes: int) -> str:
    """A line on what checkpoints in ``left`` and the model take, or an error if it is not free.

    A checkpoint is written before an older one goes, so three are there at a time; what is there
    of an interrupted training counts among them.
    """
    weights = sum(t.nbytes for t in network.state_dict().values())
    state = weights * (1 + (recipe.momentum > 0) + (recipe.ema > 0)) * processes
    there = sum(path.stat().st_size for path in left.rglob("*.safetensors"))
    wanted = {"for checkpoints": max(0, 3 * state - there), "for the model": weights}
    return disk.need(wanted, left)


def _seen(
    pretrained: Network,
    images: ImageSet,
    rows: NDArray[np.int64],
    accelerator: Accelerator,
    stop: Stop,
) -> tuple[Tensor, Tensor]:
    """The pre-trained classifier's logits (n, classes) of some images, and their labels (n,)."""
    import torch

    from uotft.models.inputs import Views
    from uotft.selection import embedding

    found = embedding.features(pretrained, Views(images, rows), accelerator, stop=stop)
    features = torch.as_tensor(found)
    with torch.no_grad():
        return pretrained.head("target")(features), torch.as_tensor(images.labels[rows])


def _decode(
    images: ImageSet,
    rows: NDArray[np.int64],
    accelerator: Accelerator,
    progress: Progress,
    stop: Stop = never,
) -> None:
    """Have the pixels of files kept that all processes are going to read, each decoded once."""
    if not isinstance(images.images, Store):
        return

    def bar(starts: Iterable[int], label: str) -> Iterator[int]:
        for start in progress(starts, label):
            if stop():
                raise Interrupted("training was interrupted before its images were decoded")
            yield start

    # every process its share; then one on each machine what others, which keep theirs, have done
    images.images.hold(rows[accelerator.process_index :: accelerator.num_processes], bar)
    accelerator.wait_for_everyone()
    with accelerator.local_main_process_first():
        images.images.hold(rows, bar)


class _Stream:
    """Makes the streams of one run: what they share is said once."""

    def __init__(
        self,
        accelerator: Accelerator,
        seed: int,
        augment: Augment,
        channels: int = 1,
        progress: Progress = lambda items, label: items,
        stop: Stop = never,
    ) -> None:
        self.accelerator, self.seed = accelerator, seed
        self.augment, self.channels = augment, channels
        self.progress, self.stop = progress, stop

    def __call__(
        self,
        name: str,
        images: ImageSet,
        rows: NDArray[np.int64],
        labels: NDArray[np.int64],
        batch_size: int,
        strong: Augment | None = None,
    ) -> Any:
        from uotft.training.streams import Stream

        world = self.accelerator.num_processes
        if batch_size % world or batch_size // world < 2:  # batch norm needs two images
            raise UserError(
                f"the {name} batch of {batch_size} cannot be shared by {world} processes: "
                f"choose a multiple of {world} in params.yaml, and two images for each at least"
            )
        _decode(images, rows, self.accelerator, self.progress, self.stop)
        return Stream(
            images.images, labels, name=name, batch_size=batch_size, seed=self.seed,
            augment=strong or self.augment, view=2 if strong else 1, channels=self.channels,
            device=self.accelerator.device, rank=self.accelerator.process_index, world=world,
            origin=rows, files=images.files,
        )  # fmt: skip
