"""Hyper-parameter search: the space of settings, and the study, which survives a kill.

A space is a YAML file of lines ``setting: {choices: [...]}`` or ``setting: {low:, high:, log:}``. A
setting has its name in params.yaml, with dots. A study is Optuna's, in one SQLite file. It holds
trials: settings, and the validation top-1 of each seed. Trial 0 is params.yaml as it is.

    uotft search --dataset digits --strategy uot --space wide --sampler tpe --trials 20
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
import yaml

from uotft.analysis.statistics import Interval, interval, paired
from uotft.core import config, paths
from uotft.core.errors import UserError
from uotft.core.settings import Axis, Params, Value
from uotft.core.storage import from_yaml, share
from uotft.selection import choosing
from uotft.training import objectives

if TYPE_CHECKING:
    import optuna

Space = dict[str, Axis]
Setting = dict[str, Value]
State = Literal["running", "complete", "pruned", "failed"]

SPACES = resources.files("uotft") / "spaces"
OF_THE_SOURCE = ("select.", "selectors.", "cluster.", "source_fraction", "train.lambda",
                 "train.source_", "train.strong.")  # fmt: skip
OF_K = ("select.top_k", "select.mass_share")
NAME = "search"  # name of the study inside its file
APART = 10**9  # more than the steps of a training: a validation's place is seed * APART + step
UNPRUNED = 4  # trials that finish before any is pruned
HEADER = ("trial", "settings", "state", "seeds", "validation top-1 %", "Δ default")


def read_space(name: str) -> Space:
    """Read a space by the path of its YAML file, or by the name of one that uotft brings."""
    known = sorted(p.name[:-5] for p in SPACES.iterdir() if p.name.endswith(".yaml"))
    path = SPACES / f"{name}.yaml" if name in known else Path(name)
    if not path.is_file():
        raise UserError(f"--space: got {name!r}; name a YAML file, or {' or '.join(known)}")
    try:
        raw = from_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--space {name}: not valid YAML: {error}") from error
    return config.space(raw, name)


def deciding(space: Space, params: Params, strategy: str) -> Space:
    """The settings of a space that have an effect on the rows of a strategy or control.

    Without source images, those of the source have none, nor have those that a control sets. K has
    none on a strategy that ignores it.
    """
    if config.keeps(params, strategy):
        unread = OF_K if choosing.ignores_k(strategy) else ()
        return {name: axis for name, axis in space.items() if name not in unread}
    fixed, without = config.fixed(params, strategy), [*OF_THE_SOURCE]
    if not objectives.trains(config.of_strategy(params, strategy).train):
        without.append("train.recipe.")
    # a control that sees as many images as reuse does has as large a batch
    sized = params.controls.get(strategy, {}).get("target_batch") == config.BOTH
    with_effect = {"train.source_batch"} if sized else set()
    return {
        name: axis
        for name, axis in space.items()
        if name in with_effect or (name not in fixed and not name.startswith(tuple(without)))
    }


def grid(space: Space) -> list[Setting]:
    """Every combination of the choices; the last setting changes fastest."""
    for name, axis in space.items():
        if axis.choices is None:
            raise UserError(f"--sampler grid: {name} has low and high; give it choices, or use "
                            "--sampler tpe")  # fmt: skip
    values = (axis.choices or [] for axis in space.values())
    return [dict(zip(space, point, strict=True)) for point in product(*values)]


def overrides(setting: Setting) -> list[str]:
    """{"train.lambda": 0.3} -> ["train.lambda=0.3"], with values in YAML."""
    return [f"{name}={yaml.safe_dump(value).splitlines()[0]}" for name, value in setting.items()]


def standing(params: str, names: Iterable[str]) -> Setting:
    """The values of the settings ``names`` in ``params``, the text of a params.yaml."""
    return {name: yaml.safe_load(_node(params, name)[0]) for name in names}


def rewritten(params: str, setting: Setting) -> str:
    """The text of a params.yaml with new values for some settings; comments and layout stay."""
    for name, value in setting.items():
        _, start, end = _node(params, name)
        text = overrides({name: value})[0].removeprefix(f"{name}=")
        params = params[:start] + text + params[end:]
    return params


def _node(params: str, name: str) -> tuple[str, int, int]:
    """The text of a setting's value, and where it starts and ends."""
    node = yaml.compose(params, yaml.SafeLoader)
    for part in name.split("."):
        inner = node.value if isinstance(node, yaml.MappingNode) else []
        node = next((value for key, value in inner if key.value == part), None)
    if not isinstance(node, yaml.ScalarNode):
        raise UserError(
            f"{name} has no single value in params.yaml: write one there, since trial 0 measures "
            "the values of params.yaml"
        )
    start, end = node.start_mark.index, node.end_mark.index
    return params[start:end], start, end


@dataclass(frozen=True)
class Trial:
    """Settings, and ``values``: the validation top-1 in percent by seed, for the seeds trained."""

    number: int
    setting: Setting
    values: dict[int, float]
    state: State

    @property
    def mean(self) -> float:
        """The mean over the seeds; NaN if none is trained."""
        return float(np.mean(list(self.values.values()))) if self.values else float("nan")


class Study:
    """The trials of one search, in ``file``. Every change is on the disk when a method returns.

    Each value comes from a new sampler that is seeded by the value's place and knows the trials
    before it. So an interrupted search tries the same settings as one without a stop.
    """

    def __init__(self, file: Path, space: Space, default: Setting, *, tpe: bool) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space, self.tpe = space, tpe
        if not file.exists():
            _make(file)
        try:
            self.study = optuna.load_study(study_name=NAME, storage=paths.sqlite(file))
        except Exception as error:  # noqa: BLE001  SQLite and Optuna have their own
            raise UserError(
                f"{file}: cannot be read as the trials of a search ({error}); delete it"
            ) from error
        points = [default] if tpe else [default, *grid(space)]
        for point in points:  # skips those that the file has
            known = point if self._inside(point) else {}
            self.study.enqueue_trial(known, user_attrs={"setting": point}, skip_if_exists=True)

    def trials(self) -> list[Trial]:
        """All trials that have begun, in order."""
        begun = (t for t in self.study.get_trials(deepcopy=False) if t.state.name != "WAITING")
        return [self._record(trial) for trial in begun]

    def to_come(self, most: int) -> list[Setting]:
        """The settings that a grid has still to try, of its first ``most`` trials."""
        trials = self.study.get_trials(deepcopy=False)[:most]
        return [t.user_attrs["setting"] for t in trials if not t.state.is_finished()]

    def next(self, most: int) -> Trial | None:
        """The trial that was interrupted, or a new one.

        None once ``most`` trials have begun, or all points of a grid.
        """
        trials = self.study.get_trials(deepcopy=False)
        states = [trial.state.name for trial in trials]
        if "RUNNING" in states:
            trial = self._again(states.index("RUNNING"))
        elif len(states) - states.count("WAITING") < most and (self.tpe or "WAITING" in states):
            trial = self.study.ask()
        else:
            return None
        setting = trial.user_attrs.get("setting")
        if setting is None or self._inside(setting):
            drawn = self._draw(trial)  # even if unused: Optuna learns only from what it suggested
            setting = setting or drawn
        trial.set_user_attr("setting", setting)
        return self.trials()[trial.number]

    def report(self, number: int, place: int, step: int, top1: float) -> None:
        """Record a validation top-1 in percent, at ``step`` of the trial's seed number ``place``.

        Ignores the first half of a training. There, a large learning rate looks worse than it ends
        up, and a head that starts from class means looks better.
        """
        at = place * APART + step
        known = self._frozen(number).intermediate_values
        if 2 * step > self.length() and at not in known:  # a resumed training repeats some
            self._again(number).report(top1, at)

    def length(self) -> int:
        """Steps of the first training of trial 0; 0 until it has ended."""
        first = self._frozen(0)
        places = [at for at in first.intermediate_values if at < APART]
        return max(places, default=0) if "values" in first.user_attrs else 0

    def hopeless(self, number: int) -> bool:
        """Whether a trial's best validation is below the median of the others at the same place.

        False until four trials are complete.
        """
        import optuna

        self.study.pruner = optuna.pruners.MedianPruner(n_startup_trials=UNPRUNED)
        return self._again(number).should_prune()

    def measured(self, number: int, seed: int, top1: float) -> Trial:
        """Record the final validation top-1 of a seed, in percent."""
        trial = self._again(number)
        values: dict[str, float] = trial.user_attrs.get("values", {})
        trial.set_user_attr("values", values | {str(seed): top1})
        return self.trials()[number]

    def close(self, number: int, state: State) -> Trial:
        """Close a trial: no more seeds are trained for it."""
        import optuna

        ends = {
            "complete": optuna.trial.TrialState.COMPLETE,
            "pruned": optuna.trial.TrialState.PRUNED,
            "failed": optuna.trial.TrialState.FAIL,
        }
        value = self.trials()[number].mean if state == "complete" else None
        self.study.tell(number, value, state=ends[state])
        return self.trials()[number]

    def importance(self) -> dict[str, float]:
        """Share of variance that each setting explains (fANOVA); {} with fewer than 4 values."""
        import optuna

        values = {t.value for t in self.study.get_trials(deepcopy=False) if t.params and t.value}
        if len(values) < UNPRUNED:
            return {}
        found = optuna.importance.get_param_importances(
            self.study,
            evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0),
            params=list(self.space),
        )
        return dict(found)

    def _draw(self, trial: optuna.Trial) -> Setting:
        """The trial's values: those given or drawn before; otherwise the sampler draws them."""
        import optuna

        drawn: Setting = {}
        for place, (name, axis) in enumerate(self.space.items(), trial.number * len(self.space)):
            self.study.sampler = optuna.samplers.TPESampler(seed=place)
            drawn[name] = _suggest(trial, name, axis)
        return drawn

    def _frozen(self, number: int) -> optuna.trial.FrozenTrial:
        return self.study.get_trials(deepcopy=False)[number]

    def _again(self, number: int) -> optuna.Trial:
        import optuna

        return optuna.Trial(self.study, self._frozen(number)._trial_id)

    def _inside(self, setting: Setting) -> bool:
        """Whether the space contains a setting; the default may lie outside."""
        return all(_holds(axis, setting[name]) for name, axis in self.space.items())

    def _record(self, trial: optuna.trial.FrozenTrial) -> Trial:
        names: dict[str, State] = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
        values = {int(k): v for k, v in trial.user_attrs.get("values", {}).items()}
        setting = trial.user_attrs.get("setting", {})
        return Trial(trial.number, setting, values, names.get(trial.state.name, "running"))


def _make(file: Path) -> None:
    """Create an empty study beside ``file``, then move it there: ``file`` is never half made."""
    import optuna

    folder = file.with_name(f".{file.name}.tmp")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    storage = optuna.storages.RDBStorage(paths.sqlite(folder / file.name))
    optuna.create_study(storage=storage, study_name=NAME, direction="maximize")
    storage.remove_session()
    storage.engine.dispose()
    share(folder / file.name)
    (folder / file.name).replace(file)
    folder.rmdir()


def _suggest(trial: optuna.Trial, name: str, axis: Axis) -> Value:
    """A value of an axis, rounded to three digits, since it becomes part of a folder's name."""
    if axis.choices is not None:
        return cast(Value, trial.suggest_categorical(name, axis.choices))
    low, high = axis.low, axis.high
    assert low is not None
    assert high is not None
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(name, low, high, log=axis.log)
    drawn = float(f"{trial.suggest_float(name, low, high, log=axis.log):.3g}")
    return min(max(drawn, float(low)), float(high))


def _holds(axis: Axis, value: Value) -> bool:
    if axis.choices is not None:
        return value in axis.choices
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and axis.low <= value <= axis.high  # type: ignore[operator]


def best(trials: list[Trial]) -> Trial:
    """The complete trial with the highest mean; the earliest if several are equal."""
    complete = [trial for trial in trials if trial.state == "complete"]
    return max(complete, key=lambda trial: (trial.mean, -trial.number))


def table(trials: list[Trial]) -> list[tuple[str, ...]]:
    """A header and one row a trial, the best mean first; differences are paired by seed."""
    rows: list[tuple[str, ...]] = [HEADER]
    measured = sorted((t for t in trials if t.values), key=lambda t: (-t.mean, t.number))
    for trial in measured:
        against = paired(trial.values, trials[0].values).signed() if trial.number else ""
        mean = str(interval(list(trial.values.values())))
        rows.append((*_names(trial), mean, against))
    return rows + [(*_names(trial), "", "") for trial in trials if not trial.values]


def _names(trial: Trial) -> tuple[str, ...]:
    return (
        str(trial.number),
        " ".join(overrides(trial.setting)),
        trial.state,
        str(len(trial.values)),
    )


def gain(trials: list[Trial]) -> Interval:
    """Validation top-1 of the best trial minus that of the default, paired by seed."""
    return paired(best(trials).values, trials[0].values)


def verdict(trials: list[Trial]) -> str:
    """A sentence on what the search found."""
    chosen, found = best(trials), gain(trials)
    if not chosen.number:
        return f"nothing better than params.yaml in {len(trials)} trials"
    shown = (
        "" if found.mean - found.half > 0 else "; the interval includes 0: not shown to be better"
    )
    return (
        f"best is trial {chosen.number}: {' '.join(overrides(chosen.setting))}; {found.signed()} "
        f"points of validation top-1 over params.yaml, paired over {found.n} seeds{shown}. As the "
        f"best of {len(trials)} on these seeds it looks better than it will on other seeds."
    )
