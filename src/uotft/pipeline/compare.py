"""The stage compare: finished trainings -> tables, pictures and a page.

`compare` reads those of params.yaml from the pipeline's files, `compare_runs` takes any.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from uotft.analysis import trials
from uotft.analysis.sections import LEGEND, by_step, curve, sections
from uotft.core import config, storage
from uotft.core.errors import UserError
from uotft.core.records import Cell, Origin, Trial
from uotft.pipeline import freshness
from uotft.pipeline.forecast import hindsight
from uotft.pipeline.select import read_selection, source_bank
from uotft.pipeline.workspace import Workspace

if TYPE_CHECKING:
    from uotft.analysis.comparison import Row
    from uotft.analysis.figures import Part
    from uotft.analysis.trials import Line

PICTURES = "comparison", "curves", "classes"  # those that stand in reports/pictures/, too


def compare(ws: Workspace, origins: dict[str, Origin] | None = None) -> dict[str, list[Row]]:
    """Read metrics and histories of every target; writes tables and pictures to reports/.

    ``origins`` {SHA-256 of weights: the run that made them}, as far as anybody knows.
    """
    from uotft.analysis import comparison, figures

    found, _ = trials.lines(finished(ws, origins or {}), [])
    tables, summary = {}, {}
    parts: list[Part] = []
    texts, points = [], []
    for target, rows in found.items():
        table = tables[target] = comparison.table(trials.results(rows), trials.baselines(rows))
        made = sections(target, rows, [], ws)
        for name in PICTURES:
            for picture in (part for _, part in made[name] if isinstance(part, bytes)):
                storage.write_bytes(ws.root / "reports/pictures" / f"{name}-{target}.png", picture)
        summary[target] = {row.strategy: _numbers(row) for row in table}
        curves = {row.label: curve(row) for row in rows}
        points += [
            {"target": target, "strategy": s, "step": step, "top1": round(value.mean, 4)}
            for s, found_curve in curves.items() for step, value in by_step(found_curve).items()
        ]  # fmt: skip
        top1 = {
            "validation": {s: values[max(values)] for s, values in curves.items()},
            "test": {
                row.label: {seed: t.test["top1"] for seed, t in row.trials.items()} for row in rows
            },
        }
        foretold, lines = hindsight(ws, target, top1)
        versions = made.pop("versions")
        made |= {"forecast": foretold, "versions": versions}
        parts += _parts(target, made, len(found) > 1)
        texts.append(_text(target, rows, lines))
    folder = ws.root / "reports"
    storage.write_csv(folder / "runs.csv", [_run(t) for t in _trials(found)])
    storage.write_csv(folder / "curves.csv", points)
    storage.write_json(folder / "summary.json", summary)
    storage.write_bytes(folder / "comparison.md", _markdown(texts))
    storage.write_bytes(folder / "index.html", figures.page(_title(found), parts).encode())
    return tables


def finished(ws: Workspace, origins: dict[str, Origin]) -> list[Trial]:
    """Every training of params.yaml, from the pipeline's files."""
    settings = {k: str(v) for k, v in config.flat(ws.params.model_dump(by_alias=True)).items()}
    found = []
    source_bank(ws)  # refuses units of other images or settings, which the report would show
    for target in ws.params.targets:
        for strategy in ws.params.strategies:
            tested = storage.read_json(ws.metrics(target, strategy))
            answers = storage.read_answers(ws.predictions(target, strategy))
            for seed in map(int, tested):
                model = ws.cell("models", Cell(target, strategy, seed))
                facts = storage.read_json(model / "model.json")
                freshness.check_model(ws, Cell(target, strategy, seed), facts)
                if tested[str(seed)]["model"] != facts["sha256"]:
                    raise UserError(
                        f"{ws.metrics(target, strategy)} is of another {model}: run dvc repro"
                    )
                history = model / "history.csv"
                plan = ws.cell("selections", Cell(target, strategy, seed)) / "plan.npz"
                found.append(
                    Trial(
                        target=target,
                        strategy=strategy,
                        seed=seed,
                        test=tested[str(seed)],
                        settings=settings,
                        curve={
                            int(row["step"]): float(row["val/top1"])
                            for row in storage.read_csv(history)
                            if row["val/top1"]
                        },
                        selection=read_selection(ws, Cell(target, strategy, seed)),
                        plan_KT=storage.read_arrays(plan)["plan"] if plan.is_file() else None,
                        answers=answers.get(seed),
                        origin=origins.get(tested[str(seed)]["model"], Origin()),
                    )
                )
    return found


def compare_runs(
    made: list[Trial], by: list[str], output: Path | None, ws: Workspace | None
) -> tuple[dict[str, list[Row]], list[str]]:
    """Compare any trainings; returns the tables and what there is to say of them.

    Rows are told apart by the parameters ``by``, or by all in which the trainings differ. With
    ``output``, a folder, it writes table.csv, table.md, runs.csv and index.html there; ``ws`` has
    the images, where there is one.
    """
    from uotft.analysis import comparison, figures

    differ = trials.differing(made)
    told = by or differ
    ordered = sorted(made, key=lambda t: (t.target, trials.rank(t.strategy), t.strategy))
    found, older = trials.lines(ordered, told)
    notes = [f"rows are told apart by {', '.join(told)}"] if told else []
    if hidden := [name for name in differ if name not in told]:
        notes.append(f"trainings of one row differ in {', '.join(hidden)}")
    if older:
        notes.append(f"{older} left out: a newer training has the same row and seed")
    tables = {
        target: comparison.table(trials.results(rows), trials.baselines(rows))
        for target, rows in found.items()
    }
    if output is not None:
        parts: list[Part] = []
        for target, rows in found.items():
            parts += _parts(target, sections(target, rows, told, ws), len(found) > 1)
        said: list[Part] = [("These runs", f"{note}.") for note in notes[:1]]
        said += [("", f"{note}.") for note in notes[1:]]
        lines = [
            {"target": target, "strategy": line.strategy, **line.settings, **_numbers(row)}
            for target, rows in found.items()
            for line, row in zip(rows, tables[target], strict=True)
        ]
        storage.write_csv(output / "table.csv", lines)
        texts = [_text(target, rows, "") for target, rows in found.items()]
        storage.write_bytes(output / "table.md", _markdown(texts))
        runs = [
            _run(t) | {"run": t.origin.run} | {name: t.settings.get(name) for name in told}
            for t in _trials(found)
        ]
        storage.write_csv(output / "runs.csv", runs)
        page = figures.page(_title(found), [*parts, *said])
        storage.write_bytes(output / "index.html", page.encode())
    return tables, notes


def _text(target: str, rows: list[Line], more: str) -> str:
    """The tables of one target in Markdown."""
    from uotft.analysis import comparison, figures

    results, baselines = trials.results(rows), trials.baselines(rows)
    note = comparison.overlap_note(results)
    standing = comparison.standing(results, comparison.pairs(results))
    tables = figures.markdown(comparison.cells(comparison.table(results, baselines)))
    overlap = f"\n{note}\n" if note else ""
    return f"## {target}\n\n{tables}{overlap}\n{figures.markdown(standing)}{more}"


def _markdown(texts: list[str]) -> bytes:
    return ("\n".join(texts) + f"\n{LEGEND}\n").encode()


def _trials(found: dict[str, list[Line]]) -> list[Trial]:
    return [t for rows in found.values() for row in rows for t in row.trials.values()]


def _run(trial: Trial) -> dict[str, Any]:
    """One training's line of runs.csv."""
    return {
        "target": trial.target,
        "strategy": trial.strategy,
        "seed": trial.seed,
        "top1": trial.test["top1"],
        "mean_per_class": trial.test["mean_per_class"],
    }


def _parts(target: str, made: dict[str, list[Part]], several: bool) -> list[Part]:
    """Section after section; of several targets, headings say which one is meant."""
    return [
        (f"{target}: {heading}" if several and heading else heading, part)
        for section in made.values()
        for heading, part in section
    ]


def _title(found: dict[str, list[Line]]) -> str:
    return f"uotft comparison: {', '.join(found)}"


def _numbers(row: Row) -> dict[str, Any]:
    from uotft.analysis import comparison

    return {k: v for k, v in comparison.flat(row).items() if k != "strategy"}
