"""The stage compare: test metrics and histories -> tables, pictures and a page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from uotft import store
from uotft.records import ImageSet
from uotft.stages.forecasting import hindsight
from uotft.stages.selecting import read_selection, source_bank, source_images
from uotft.stages.workspace import Workspace
from uotft.statistics import Interval, interval, paired

if TYPE_CHECKING:
    from uotft.compare import Row

Curves = dict[str, dict[int, dict[int, float]]]


def compare(ws: Workspace) -> dict[str, list[Row]]:
    """Read metrics and histories of every target; writes tables and pictures to reports/."""
    from uotft import compare as room, report

    tables, summary = {}, {}
    parts: list[report.Part] = []
    runs, points, texts = [], [], []
    for target in ws.params.targets:
        results = {s: store.read_json(ws.metrics(target, s)) for s in ws.params.strategies}
        rows = tables[target] = room.table(results)
        note = room.overlap_note(results)
        flat = [{"target": target, **room.flat(row)} for row in rows]
        summary[target] = {row["strategy"]: _numbers(row) for row in flat}
        curves = _curves(ws, target)
        pictures = {
            "comparison": report.comparison_picture(
                target,
                {row.strategy: row.top1 for row in rows},
                {row.strategy: row.against["none"] for row in rows if "none" in row.against},
            ),
            "curves": report.curves_picture(
                target,
                {s: _by_step(curve) for s, curve in curves.items()},
                {
                    s: {step: paired(v, curves["none"][step]) for step, v in curve.items()}
                    for s, curve in curves.items()
                    if "none" in curves and s != "none"
                },
            ),
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
            for s, curve in curves.items() for step, value in _by_step(curve).items()
        ]  # fmt: skip
        parts += [
            (target, room.cells(rows)),
            *([("Test images in the source", note)] if note else []),
            ("Accuracy on the test part", pictures["comparison"]),
            ("Learning curves", pictures["curves"]),
            ("Selected classes", pictures["classes"]),
        ]
        top1 = {
            "validation": {s: curve[max(curve)] for s, curve in curves.items()},
            "test": {s: {int(k): m["top1"] for k, m in v.items()} for s, v in results.items()},
        }
        foretold, lines = hindsight(ws, target, top1)
        parts += foretold
        overlap = f"\n{note}\n" if note else ""
        texts.append(f"## {target}\n\n{report.markdown(room.cells(rows))}{overlap}{lines}")
    folder = ws.root / "reports"
    store.write_csv(folder / "runs.csv", runs)
    store.write_csv(folder / "curves.csv", points)
    store.write_json(folder / "summary.json", summary)
    text = "\n".join(texts)
    legend = (
        "Mean ± 95 % t-interval over seeds; Δ: paired difference in top-1 on the same seeds, in "
        "points. Every seed draws its own labelled images."
    )
    store.write_bytes(folder / "comparison.md", f"{text}\n{legend}\n".encode())
    html = report.page("uotft comparison", [*parts, ("How to read this", legend)])
    store.write_bytes(folder / "index.html", html.encode())
    return tables


def _curves(ws: Workspace, target: str) -> Curves:
    """{strategy: {step: {seed: validation top-1}}} from the runs' histories."""
    curves: Curves = {}
    for strategy in ws.params.strategies:
        curve = curves.setdefault(strategy, {})
        for seed in ws.params.seeds:
            history = ws.cell("models", target, strategy, seed) / "history.csv"
            for row in store.read_csv(history):
                if row["val/top1"]:
                    curve.setdefault(int(row["step"]), {})[seed] = float(row["val/top1"])
    return curves


def _by_step(curve: dict[int, dict[int, float]]) -> dict[int, Interval]:
    return {step: interval(list(values.values())) for step, values in curve.items()}


def _sheets(ws: Workspace, target: str) -> dict[str, list[tuple[str, NDArray[np.uint8]]]]:
    """The target's classes, then the first seed's selected units of every strategy."""
    from uotft.images import Views

    images, bank = ws.images(target), source_bank(ws)
    source = source_images(ws, bank)

    def first(
        images: ImageSet, members: NDArray[np.int64], wanted: list[int]
    ) -> list[NDArray[np.uint8]]:
        """The first training image of each unit wanted, where ``members`` is the unit of each."""
        found, rows = np.unique(members, return_index=True)
        views = Views(images, images.rows("train")[rows[np.searchsorted(found, wanted)]])
        return [*views[:]]

    labels, names = images.labels[images.rows("train")], bank.labels or bank.names
    classes = np.unique(labels).tolist()
    shown = first(images, labels, classes)
    sheets = {target: [(images.names[c], x) for c, x in zip(classes, shown, strict=True)]}
    for strategy in ws.params.strategies:
        chosen = read_selection(ws, target, strategy, ws.params.seeds[0])
        if chosen["classes"]:
            rows = [c["row"] for c in chosen["classes"]]
            shown = first(source, bank.members, rows)
            sheets[strategy] = [(names[r], image) for r, image in zip(rows, shown, strict=True)]
    return sheets


def _numbers(row: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in row.items() if k not in ("target", "strategy")}
