"""MLflow runs -> finished trainings, as the same records as from the pipeline's files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from uotft.core import storage
from uotft.core.errors import UserError
from uotft.core.records import Answers, Floats, Origin, Trial
from uotft.tracking.notes import CLASSES, NONE
from uotft.tracking.store import (
    CLEAN,
    PROJECT,
    WARNING,
    WEIGHTS,
    is_there,
    open_store,
    project_of,
    shown,
)

PAGE = 200  # runs per request


def trials(
    home: Path,
    experiments: list[str],
    filter_string: str,
    tags: dict[str, str],
    *,
    project: str | None = "",
    here: Callable[[str], str] = lambda target: "",
) -> tuple[list[Trial], Counter[str]]:
    """The finished trainings among the matching runs, and {reason: number of runs left out}.

    Without ``experiments``, searches all. ``filter_string`` is in MLflow's syntax; all ``tags``
    must match. If no training is found, a ``UserError`` says what the store has.

    ``project`` is the one that asks, None if none does, and ``here`` is the SHA-256 of its images
    of a target, or "". Projects may call other images by one name: then the target of those that do
    not ask is TARGET (PROJECT).
    """
    mlflow = reader(home)
    made: list[Trial] = []
    out: Counter[str] = Counter()
    for run in _search(mlflow, experiments, filter_string):
        if why := _lacks(run, tags):
            out[why] += 1
        else:
            made.append(_trial(mlflow, run))
    if not made:
        raise UserError(_nothing(mlflow, home, experiments, filter_string, tags, out))
    return _told_apart(made, project, here), out


def _told_apart(made: list[Trial], project: str | None, here: Callable[[str], str]) -> list[Trial]:
    """The trials, with other targets where projects tested other images of one target's name."""
    tested: dict[str, dict[str, set[str]]] = {}  # {target: {project: SHA-256 of its images}}
    for trial in made:
        of_project = tested.setdefault(trial.target, {}).setdefault(_project(trial), set())
        of_project.add(trial.answers.data if trial.answers else "")
    for target, found in tested.items():
        if project is not None and (own := here(target)):
            found.setdefault(project, set()).add(own)

    def named(trial: Trial) -> str:
        found, own = tested[trial.target], _project(trial)
        images = set[str]().union(*found.values())
        if own == project or len(found) == 1 or (len(images) == 1 and "" not in images):
            return trial.target
        return f"{trial.target} ({own or '.'})"

    return [replace(trial, target=named(trial)) for trial in made]


def _project(trial: Trial) -> str:
    return trial.settings.get(PROJECT, "")


def origins(home: Path, experiments: list[str], project: str = "") -> dict[str, Origin]:
    """{SHA-256 of weights: the project's newest finished run that made them}."""
    mlflow = reader(home)
    known = {e.name for e in mlflow.search_experiments()}
    names = [name for name in experiments if name in known]
    runs = _search(mlflow, names, "status = 'FINISHED'") if names else []
    own = [run for run in runs if project_of(run) == project]
    ordered = sorted(own, key=lambda run: int(run.info.start_time))
    return {run.data.tags[WEIGHTS]: _origin(run) for run in ordered if WEIGHTS in run.data.tags}


def reader(home: Path) -> Any:
    """The mlflow module, connected to an existing store; a ``UserError`` if there is none."""
    if not is_there(home):
        raise UserError(
            f"{home / 'mlflow.db'} is missing, so there are no runs: run `uotft train`, or set "
            "MLFLOW_TRACKING_URI to another store"
        )
    return open_store(home)


def _search(mlflow: Any, experiments: list[str], filter_string: str) -> list[Any]:
    """All runs of the experiments that match the filter, requested page by page."""
    known = {e.name: e.experiment_id for e in mlflow.search_experiments()}
    for name in experiments:
        if name not in known:
            raise UserError(f"--experiment: got {name!r}; known are {', '.join(sorted(known))}")
    ids = [known[name] for name in experiments] or [*known.values()]
    found: list[Any] = []
    token: str | None = ""
    while token is not None:
        try:
            page = mlflow.MlflowClient().search_runs(
                ids, filter_string, max_results=PAGE, page_token=token or None
            )
        except mlflow.exceptions.MlflowException as error:
            raise UserError(f"--filter: got {filter_string!r}: {error.message}") from error
        found += page
        token = page.token or None
    return found


def _lacks(run: Any, tags: dict[str, str]) -> str:
    """Why a run cannot be compared, or ""."""
    if any(run.data.tags.get(name) != value for name, value in tags.items()):
        return "with other tags"
    if not {"strategy", "seed"} <= run.data.params.keys():
        return "not trainings"
    if run.info.status != "FINISHED":
        return "not finished"
    if not {"test/top1", "test/mean_per_class"} <= run.data.metrics.keys():
        return "without test metrics (`uotft evaluate` adds them)"
    return ""


def _nothing(
    mlflow: Any, home: Path, experiments: list[str], filter_string: str, tags: dict[str, str],
    out: Counter[str],
) -> str:  # fmt: skip
    """The message if no run can be compared."""
    counts = {e.name: len(_search(mlflow, [e.name], "")) for e in mlflow.search_experiments()}
    there = ", ".join(f"{name} ({count} runs)" for name, count in sorted(counts.items()))
    wanted = [f"experiments {', '.join(experiments)}"] if experiments else []
    wanted += [f"--filter {filter_string!r}"] if filter_string else []
    wanted += [f"--tag {name}={value}" for name, value in tags.items()]
    left = f"; left out: {left_out(out)}" if out else ""
    return (
        f"{shown(home)}: no finished training with test metrics"
        f"{' for ' + ', '.join(wanted) if wanted else ''}{left}. The store has {there}"
    )


def left_out(out: Counter[str]) -> str:
    """{reason: number of runs} as a message."""
    return ", ".join(f"{count} {why}" for why, count in sorted(out.items()))


def _origin(run: Any) -> Origin:
    versions = {k: v for k, v in run.data.tags.items() if k.startswith(("git.", "dvc."))}
    seconds = (run.info.end_time - run.info.start_time) / 1000
    return Origin(run.info.run_id, run.info.start_time, seconds, versions)


def _trial(mlflow: Any, run: Any) -> Trial:
    """A run as a Trial: its metrics, and its small artifacts if it has them."""
    client, params, tags = mlflow.MlflowClient(), run.data.params, run.data.tags
    history = client.get_metric_history(run.info.run_id, "val/top1")
    target = tags.get("target") or client.get_experiment(run.info.experiment_id).name
    selection, plan_KT, answers = _artifacts(client, run.info.run_id)
    found = run.data.metrics.items()
    clean = {name.removeprefix(CLEAN): value for name, value in found if name.startswith(CLEAN)}
    return Trial(
        target=target,
        strategy=params["strategy"],
        seed=int(params["seed"]),
        test={name: run.data.metrics[f"test/{name}"] for name in ("top1", "mean_per_class")}
        | ({} if answers is None else {"images": len(answers.rows)})
        | ({"clean": clean} if clean else {}),
        settings={k: v for k, v in params.items() if k != CLASSES and v != NONE}
        | ({PROJECT: tags[PROJECT]} if PROJECT in tags else {}),
        curve={point.step: point.value for point in sorted(history, key=lambda p: p.step)},
        selection=selection,
        plan_KT=plan_KT,
        answers=answers,
        origin=_origin(run),
        warning=tags.get(WARNING, ""),
    )


def _artifacts(client: Any, run: str) -> tuple[dict[str, Any], Floats | None, Answers | None]:
    """Selection, plan and predictions of a run; empty or None if it has none."""
    have = {a.path for a in client.list_artifacts(run)}
    selection: dict[str, Any] = {}
    plan_KT, answers = None, None
    with TemporaryDirectory(prefix="uotft-") as name:
        folder = Path(name)
        for part in {"selection", "test"} & have:
            client.download_artifacts(run, part, str(folder))
        if (folder / "selection/selection.json").is_file():
            selection = storage.read_json(folder / "selection/selection.json")
        if (folder / "selection/plan.npz").is_file():
            plan_KT = storage.read_arrays(folder / "selection/plan.npz")["plan"]
        if (folder / "test/predictions.npz").is_file():
            [answers] = storage.read_answers(folder / "test/predictions.npz").values()
    return selection, plan_KT, answers
