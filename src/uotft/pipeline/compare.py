"""The stage compare: finished trainings -> tables, pictures and a page.

`compare` reads the trainings of params.yaml from the pipeline's files. `compare_runs` takes any
trainings, which `uotft compare --experiment …` reads from MLflow.
"""

from __future__ import annotations

import shutil
from math import isclose
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uotft.analysis import endings, trials
from uotft.core import config, storage
from uotft.core.errors import UserError
from uotft.core.records import Answers, Cell, Origin, Trial
from uotft.pipeline import freshness
from uotft.pipeline.readers import read_selection, source_bank, validation_images, validations
from uotft.pipeline.report_images import WorkspaceImages
from uotft.pipeline.workspace import Workspace
from uotft.training import metrics

if TYPE_CHECKING:
    from uotft.analysis.comparison import Row

WRITTEN = ("table.csv", "table.md", "runs.csv", "index.html")  # by `compare_runs`


def compare(
    ws: Workspace, origins: dict[str, Origin] | None = None
) -> tuple[dict[str, list[Row]], list[str]]:
    """Read the metrics and histories of every target; write tables and pictures to reports/.

    Returns {target: table} and the cautions below the tables.

    `dvc metrics show` prints a row for each reports/metrics/TARGET/STRATEGY.json.

    ``origins`` is {SHA-256 of weights: the run that made them}, for the runs that are known.
    """
    from uotft.analysis import forecast_evaluation, report

    found, _ = trials.lines(finished(ws, origins or {}), [])
    images, folder, reports = WorkspaceImages(ws), ws.root / "reports", []
    for target, rows in found.items():
        forecast = forecast_evaluation.evaluate(
            target, storage.read_json(ws.forecast(target)), ws.params.strategies, report.top1(rows)
        )
        made = report.of_target(target, rows, [], images, forecast, about(ws, target))
        for name, png in made.pictures.items():
            storage.write_bytes(folder / "pictures" / f"{name}-{target}.png", png)
        reports.append(made)
    storage.write_csv(folder / "runs.csv", report.runs(reports))
    storage.write_csv(folder / "curves.csv", report.points(reports))
    storage.write_json(folder / "summary.json", (numbers := report.summary(reports)))
    shutil.rmtree(folder / "metrics", ignore_errors=True)  # of strategies no longer in params.yaml
    for target, strategies in numbers.items():
        for strategy, own in strategies.items():
            storage.write_json(folder / "metrics" / target / f"{strategy}.json", own)
    storage.write_bytes(folder / "comparison.md", report.document(reports).encode())
    storage.write_bytes(folder / "index.html", report.html(reports).encode())
    below = [line for made in reports for line in report.below(made.target, made.rows, made.table)]
    return {made.target: made.table for made in reports}, below


def finished(ws: Workspace, origins: dict[str, Origin]) -> list[Trial]:
    """Every training of params.yaml, from the pipeline's files."""
    found = []
    source_bank(ws)  # refuses units of other images or settings, else the report would show them
    for target in ws.params.targets:
        images = validation_images(ws, target)
        for strategy in ws.params.strategies:
            own = ws.of(strategy).params.model_dump(by_alias=True, exclude={"controls"})
            settings = {k: str(v) for k, v in config.flat(own).items()}
            tested = storage.read_json(ws.metrics(target, strategy))
            answers = storage.read_answers(ws.predictions(target, strategy))
            for seed in map(int, tested):
                model = ws.cell("models", Cell(target, strategy, seed))
                facts = storage.read_json(model / "model.json")
                freshness.check_model(ws, Cell(target, strategy, seed), facts)
                if tested[str(seed)]["model"] != facts["sha256"]:
                    raise UserError(
                        f"{ws.metrics(target, strategy)} was measured on another version of "
                        f"{model}: run dvc repro"
                    )
                if seed in answers:
                    _must_agree(ws, target, strategy, tested[str(seed)], answers[seed])
                curve = validations(model)
                plan = ws.cell("selections", Cell(target, strategy, seed)) / "plan.npz"
                found.append(
                    Trial(
                        target=target,
                        strategy=strategy,
                        seed=seed,
                        test=tested[str(seed)],
                        settings=settings,
                        curve=curve,
                        selection=read_selection(ws, Cell(target, strategy, seed)),
                        plan_KT=storage.read_arrays(plan)["plan"] if plan.is_file() else None,
                        answers=answers.get(seed),
                        origin=origins.get(tested[str(seed)]["model"], Origin()),
                        warning=endings.warning(curve, images, len(facts["classes"])),
                    )
                )
    return found


def _must_agree(
    ws: Workspace, target: str, strategy: str, tested: dict[str, Any], answers: Answers
) -> None:
    """Raise `UserError` if the numbers of a test are not those of its predictions.

    JSON has no checksum: DVC brings a file that a remote or its cache damaged as if it were whole.
    """
    found = metrics.confusion(answers.labels, answers.predicted, len(answers.names))
    same = tested["confusion"] == found.tolist() and tested["images"] == found.sum()
    if found.any():
        numbers = {"top1": metrics.top1(found), "mean_per_class": metrics.mean_per_class(found)}
        same &= all(isclose(tested[name], value) for name, value in numbers.items())
    if not same:
        raise UserError(
            f"{ws.metrics(target, strategy)} is not what {ws.predictions(target, strategy)} gives: "
            "one of them is damaged; uotft data verify tells which"
        )


def about(ws: Workspace | None, target: str) -> tuple[str, ...]:
    """The notes of the stage prepare on the source and the target, if their files are here."""
    files = (
        {name: ws.data(name).with_suffix(".json") for name in (ws.params.source, target)}
        if ws
        else {}
    )
    return tuple(
        f"{name}: {note}"
        for name, file in files.items()
        if file.is_file()
        for note in storage.read_json(file).get("notes", [])
    )


def _must_be_ours(output: Path) -> None:
    """Raise `UserError` if the comparison would replace files that none has written."""
    page = output / "index.html"
    if page.is_file() and "<title>uotft comparison" in page.read_text(errors="replace"):
        return
    if found := [name for name in WRITTEN if (output / name).exists()]:
        raise UserError(
            f"--output {output}: {found[0]} there is of no comparison of uotft, and would be "
            "replaced: name another folder"
        )


def compare_runs(
    made: list[Trial], by: list[str], output: Path | None, ws: Workspace | None
) -> tuple[dict[str, list[Row]], list[str]]:
    """Compare any trainings; returns ({target: table}, how runs became rows, and cautions).

    Rows differ in the parameters ``by``, or in all in which the trainings differ; no row has runs
    of two projects. Writes table.csv,
    table.md, runs.csv and index.html to the folder ``output``, if given. ``ws`` provides the
    images, if there is one.
    """
    from uotft.analysis import comparison, report

    if output is not None:
        _must_be_ours(output)
    differ = trials.differing(made)
    by = [*by, *({"project"} & {*differ} - {*by})] if by else differ
    ordered = sorted(made, key=lambda t: (t.target, trials.rank(t.strategy), t.strategy))
    found, older = trials.lines(ordered, by)
    notes = report.row_notes(by, differ, older) + trials.image_notes(made)
    notes += [line for rows in found.values() for line in trials.unpaired(rows)]
    tables = {
        target: comparison.table(trials.results(rows), trials.baselines(rows))
        for target, rows in found.items()
    }
    below = [line for t, rows in found.items() for line in report.below(t, rows, tables[t])]
    if output is None:
        return tables, below + notes
    images = WorkspaceImages(ws)
    reports = [
        report.of_target(target, rows, by, images, about=about(ws, target))
        for target, rows in found.items()
    ]
    storage.write_csv(output / "table.csv", report.lines(reports))
    storage.write_bytes(output / "table.md", report.document(reports).encode())
    storage.write_csv(output / "runs.csv", report.named_runs(reports, by))
    storage.write_bytes(output / "index.html", report.html(reports, notes).encode())
    return tables, below + notes
