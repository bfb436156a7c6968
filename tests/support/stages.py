"""Stages of the pipeline run in the test's own process, and images put under them."""

from __future__ import annotations

from pathlib import Path

from support.projects import workspace
from uotft.core.context import Context
from uotft.core.records import Cell
from uotft.pipeline import readers


def up_to_units(root: Path) -> None:
    """Prepare, pre-train, embed and make the units of a workspace with one target."""
    from uotft.pipeline import embed, prepare, pretrain, units
    from uotft.training import runtime

    ws = workspace(root)
    quiet = {"progress": lambda items, label: items}
    datasets = ws.params.source, *ws.params.targets
    for dataset in datasets:
        prepare.prepare(ws, dataset, **quiet)
    pretrain.pretrain(ws, Context(runtime.start(0, 1), log=lambda *_: None, **quiet))
    for dataset in datasets:
        embed.embed(ws, dataset, Context(runtime.start(0, 1), **quiet))
    units.units(ws)


def put_under_features(ws, dataset: str, images) -> None:  # noqa: ANN001
    """Other images in the place of those that were embedded, unknown to the features."""
    from uotft.core import storage

    storage.write_images(ws.data(dataset), images)
    take_for_embedded(ws, dataset)


def take_for_embedded(ws, dataset: str) -> None:  # noqa: ANN001
    """The features of a data set, as if they were of the files that are there now."""
    from uotft.core import storage

    index, bank = ws.features(dataset) / "index.npz", ws.embedding(dataset)
    new = {"data": storage.fingerprint(ws.data(dataset))}
    made = {"features_sha256": storage.fingerprint(ws.features(dataset) / "features.npy")}
    storage.write_arrays(index, **storage.read_arrays(index) | new | made)
    if bank != index:
        new["features"] = storage.fingerprint(index)
        storage.write_arrays(bank, **storage.read_arrays(bank) | new)


def plant(root: Path, rows, first: int) -> None:  # noqa: ANN001
    """Put the digits' test images number ``first`` and following into these rows of the source."""
    ws = workspace(root)
    source, target = readers.images(ws, "glyphs"), readers.images(ws, "digits")
    source.images[rows] = target.images[target.rows("test")[first : first + len(rows)]]
    put_under_features(ws, "glyphs", source)


def find_overlap(root: Path) -> dict:
    """Compare the digits' test part with the glyphs' training part."""
    from uotft.pipeline import overlap

    ws = workspace(root)
    quiet = {"progress": lambda items, label: items, "workspace": lambda: ws}
    return overlap.overlap("glyphs", "digits", ws.overlap("digits"), **quiet)


def run_train(root: Path, strategy: str = "uot", seed: int = 0) -> list[tuple[int, dict]]:
    """Select and train in this process; returns the logged points."""
    from uotft.pipeline import select, train
    from uotft.training import runtime

    ws, points = workspace(root), []
    find_overlap(root)
    select.select(ws, Cell("digits", strategy, seed))
    train.train(
        ws,
        Cell("digits", strategy, seed),
        Context(
            runtime.start(seed, 1),
            log=lambda step, numbers: points.append((step, numbers)),
            progress=lambda items, label: items,
        ),
    )
    return points
