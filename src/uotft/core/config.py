"""params.yaml -> checked settings; a bad value is an error at once, which names the value."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from uotft.core import registry, storage
from uotft.core.errors import UserError
from uotft.core.settings import Axis, Cluster, Params, Recipe, Select, Subset, Train

Model = TypeVar("Model", bound=BaseModel)

# --set may change these sections: variants of them have folders of their own. The results of other
# settings have only one place in a project.
CHANGEABLE = (
    "source_fraction", "source_means", "subset", "select", "cluster", "selectors", "objectives",
    "train",
)  # fmt: skip


NOTHING = "none"  # the strategy that keeps no class; controls select by it
BOTH = "both"  # as target_batch of a control: as many images as a step with reuse
#: Endings of files of weights.
WEIGHTS = (".safetensors", ".pth", ".pt", ".tar", ".bin")


def load(root: Path) -> Params:
    """Read and check ``root``/params.yaml, with the sections of data sets and strategies.

    A missing file and any bad value are a ``UserError``.
    """
    path = root / "params.yaml"
    try:
        raw = storage.from_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is missing; run uotft inside a project (a clone of the repository or a folder "
            "made by `uotft init`)"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {error}") from error
    return checked(raw, str(path))


def checked(raw: Any, path: str) -> Params:
    """The content of a params.yaml, checked; ``path`` is how messages call it."""
    params = _check(Params, raw, path)
    for section in ("datasets", "controls"):  # names become file names, and names of DVC's stages
        for name in getattr(params, section):
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", name):
                raise UserError(
                    f"{path}: {section}: the name {name!r} may have only letters, digits, - and _"
                )
    for name in (params.source, *params.targets):
        dataset_settings(params, name)
    for name in params.strategies:
        selector_settings(params, name)
    # names only: loading these modules would import torch, which most commands do not need
    registry.check("backbones", params.backbone.get("name"), f"{path}: backbone.name")
    registry.check("objectives", params.train.objective, f"{path}: train.objective")
    for name in params.objectives:
        registry.check("objectives", name, f"{path}: objectives")
    for name in params.controls:
        _check_control(params, name, path)
    return params


def _check_control(params: Params, name: str, path: str) -> None:
    """Refuse a control with the name of a strategy, an unknown setting or a bad value."""
    where = f"controls.{name}"
    if name in registry.names("strategies"):
        raise UserError(f"{path}: {where}: a strategy has this name: give the control another one")
    changes = {**params.controls[name]}
    if changes.get("target_batch") == BOTH:
        del changes["target_batch"]
    raw = _merged(params.train.model_dump(by_alias=True), changes)
    made = _check(Train, raw, path, f"{where}.")
    registry.check("objectives", made.objective, f"{path}: {where}.objective")


def is_control(params: Params, name: str) -> bool:
    """Whether a row is a control: a training on no source images, with settings of its own."""
    return name in params.controls


def keeps(params: Params, name: str) -> bool:
    """Whether the rows of a strategy, or of a control, reuse source classes."""
    return name != NOTHING and not is_control(params, name)


def selector(params: Params, name: str) -> str:
    """The strategy that selects for the rows called ``name``: for a control, ``none``.

    Raises `UserError` for a name that is neither.
    """
    if is_control(params, name):
        return NOTHING
    try:
        registry.check("strategies", name, "strategy")
    except UserError as error:
        raise UserError(f"{error}; and the controls {', '.join(params.controls)}") from error
    return name


def of_strategy(params: Params, name: str) -> Params:
    """The settings that rows called ``name`` train with; those of a strategy are ``params``.

    A control changes the section train. With its ``target_batch: both`` a step reads as many target
    images as one of ``params`` reads of target and source, and there are as many steps: epochs are
    multiplied by the same factor, to the nearest whole number. A second call changes nothing.
    """
    if not is_control(params, name):
        return params
    changes, train = {**params.controls[name]}, params.train
    if changes.get("target_batch") == BOTH:
        changes["target_batch"] = images_a_step(params)
        length = changes.get("recipe", {}), changes["target_batch"] / train.target_batch
        changes["recipe"] = longer(train.recipe, *length)
    made = _check(Train, _merged(train.model_dump(by_alias=True), changes), f"controls.{name}")
    return params.model_copy(update={"train": made, "controls": {**params.controls, name: changes}})


def images_a_step(params: Params, *, keeps: bool = True) -> int:
    """The number of images in a batch; ``keeps``: where there are source images, these too."""
    module, _ = objective(params, params.train.objective)
    others = {part for part, _ in module.ROUTES.values()} - {"target"}
    return params.train.target_batch + keeps * len(others) * params.train.source_batch


def fixed(params: Params, name: str) -> set[str]:
    """The settings that rows called ``name`` have from their control, whatever params.yaml says."""
    own = flat(params.controls.get(name, {}))
    return {f"train.{key}" for key, value in own.items() if value != BOTH}


def longer(recipe: Recipe, changes: dict[str, Any], factor: float) -> dict[str, Any]:
    """``changes`` of a recipe, with its epochs times ``factor``; a length in steps stays."""
    epochs, warmup = (changes.get(key, getattr(recipe, key)) for key in ("epochs", "warmup"))
    if not epochs:
        return changes
    found = {"epochs": round(epochs * factor)}
    return changes | found | ({"warmup": round(warmup * factor)} if warmup else {})


def _merged(raw: Any, changes: Any) -> Any:
    """``raw`` with ``changes``, section by section."""
    if not (isinstance(raw, dict) and isinstance(changes, dict)):
        return changes
    return raw | {key: _merged(raw.get(key), value) for key, value in changes.items()}


def changed(params: Params, overrides: Sequence[str]) -> tuple[Params, tuple[str, ...]]:
    """``params`` with ``overrides`` (SETTING=VALUE) applied; and the overrides, sorted, normalised.

    A setting of ``subset`` replaces the others, since they exclude each other.
    """
    values, raw = parsed(overrides), params.model_dump(by_alias=True)
    if any(name.startswith("subset.") for name in values):
        raw["subset"] = {}
    for name, value in values.items():
        _put(raw, name, value)
    where = f"--set {' '.join(overrides)}"
    made = _check(Params, raw, where)
    for section, kind in (("selectors", "strategies"), ("objectives", "objectives")):
        for name in {n.split(".")[1] for n in values if n.startswith(f"{section}.")}:
            module = registry.load(kind, name, f"{where}: {section}")
            _check(module.Settings, raw[section][name], f"{where}: {section}.{name}")
    registry.check("objectives", made.train.objective, f"{where}: train.objective")
    return made, tuple(sorted(f"{name}={_spelled(value)}" for name, value in values.items()))


def parsed(overrides: Sequence[str]) -> dict[str, Any]:
    """["tau_target=10"] -> {"tau_target": 10}; values are parsed as YAML."""
    values: dict[str, Any] = {}
    for override in overrides:
        name, equals, value = override.partition("=")
        if not (name and equals):
            raise UserError(f"--set: got {override!r}; write NAME=VALUE")
        if name in values:
            raise UserError(f"--set {override}: {name} is given twice")
        try:
            values[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"--set {name}: got {value!r}, which is not YAML") from error
    return values


def _put(raw: dict[str, Any], name: str, value: Any) -> None:
    """Set one setting of params.yaml, by its dotted name, in ``raw``."""
    *parents, last = name.split(".")
    first = (*parents, last)[0]
    if first not in CHANGEABLE:
        raise UserError(
            f"--set {name}: --set changes only {', '.join(CHANGEABLE)}; change "
            "others in params.yaml, in a project of their own"
        )
    section: Any = raw
    for parent in parents:
        section = section.setdefault(parent, {}) if isinstance(section, dict) else None
    if not isinstance(section, dict) or isinstance(section.get(last), dict):
        raise UserError(f"--set {name}: name one setting: SECTION.SETTING=VALUE")
    section[last] = value


def _spelled(value: Any) -> str:
    """The normalised YAML of a value; 10.0 becomes 10."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**9)
    return text.removesuffix("\n...\n").removesuffix("\n")


def dataset_settings(params: Params, name: str) -> Any:
    """The settings of one data set."""
    return dataset(params, name)[1]


def dataset(params: Params, name: str) -> tuple[ModuleType, Any]:
    """The module and settings of a data set; its ``kind`` is by default its name."""
    if name not in params.datasets:
        raise UserError(
            f"data set {name!r} has no section under datasets: in params.yaml; "
            f"known are {', '.join(sorted(params.datasets))}"
        )
    return dataset_section({"kind": name, **params.datasets[name]}, f"datasets.{name}")


def known_dataset(params: Params, name: str) -> tuple[ModuleType, Any]:
    """As ``dataset``; but a registered data set without a section gets its defaults."""
    if name in params.datasets or name not in registry.names("datasets"):
        return dataset(params, name)
    return dataset_section({"kind": name}, f"datasets.{name}")


def dataset_section(section: dict[str, Any], where: str) -> tuple[ModuleType, Any]:
    """The module of a section's ``kind``, and its settings; ``where`` names the section."""
    settings = dict(section)
    module = registry.load("datasets", settings.pop("kind"), f"params.yaml: {where}.kind")
    return module, _check(module.Settings, settings, f"params.yaml: {where}")


def selector_settings(params: Params, name: str) -> Any:
    """The settings of one strategy; its defaults if it has no section. A control has none's."""
    name = selector(params, name)
    return strategy_settings(name, params.selectors.get(name, {}), f"params.yaml: selectors.{name}")


def strategy_settings(name: str, raw: dict[str, Any], where: str = "") -> Any:
    """The settings of a strategy from a raw section; errors begin with ``where``."""
    module = registry.load("strategies", name, "strategy")
    return _check(module.Settings, raw, where or f"strategy {name}")


def objective(params: Params, name: str) -> tuple[ModuleType, Any]:
    """The module and settings of an objective; its defaults if it has no section."""
    module = registry.load("objectives", name, "train.objective")
    raw = params.objectives.get(name, {})
    return module, _check(module.Settings, raw, f"params.yaml: objectives.{name}")


def subset_settings(text: str) -> Subset:
    """NAME=VALUE -> a subset with that one setting."""
    name, _, value = text.partition("=")
    wrong = f"--subset: got {text!r}; write shots=N, fraction=SHARE or longtail=IMBALANCE"
    try:
        wanted = _check(Subset, {name: yaml.safe_load(value)}, "subset")
    except (UserError, yaml.YAMLError) as error:
        raise UserError(f"{wrong}\n{error}") from error
    if not wanted.given:
        raise UserError(wrong)
    return wanted


def cluster_settings(raw: dict[str, Any]) -> Cluster:
    """The settings of a ``cluster`` section."""
    return _check(Cluster, raw, "cluster")


def select_settings(raw: dict[str, Any]) -> Select:
    """The settings of a ``select`` section."""
    return _check(Select, raw, "select")


def space(raw: Any, where: str) -> dict[str, Axis]:
    """{setting: values that a search tries}, from ``raw``, the content of the file ``where``."""
    if not isinstance(raw, dict) or not raw:
        raise UserError(
            f"{where}: got {raw!r}; write lines like `train.lambda: {{choices: [0.3, 1.0]}}`"
        )
    return {str(name): _check(Axis, axis, f"{where}: {name}") for name, axis in raw.items()}


def backbone(section: dict[str, Any]) -> tuple[ModuleType, Any]:
    """The module and settings of a ``backbone`` section."""
    settings = dict(section)
    module = registry.load("backbones", settings.pop("name"), "backbone.name")
    return module, _check(module.Settings, settings, "backbone")


def backbone_section(text: str) -> dict[str, Any]:
    """NAME, NAME:WEIGHTS, timm:MODEL or timm:MODEL:WEIGHTS -> a ``backbone`` section.

    WEIGHTS is the path of a file; in the section it is absolute, since those of params.yaml start
    at the project. Raises `UserError` for an unknown name and for a file that is not there.
    """
    name, _, rest = text.partition(":")
    if name not in registry.names("backbones") and (Path(text).suffix in WEIGHTS or "/" in text):
        raise UserError(
            f"--backbone: got {text!r}, which names no network: write NAME:{text} with the network "
            f"that the weights are for, such as resnet50:{text}"
        )
    registry.check("backbones", name, "--backbone")
    section: dict[str, Any] = {"name": name}
    if name == "timm":
        section["model"], _, rest = rest.partition(":")
        if not section["model"]:
            raise UserError(
                "--backbone: got 'timm' without a model: write timm:NAME, such as "
                "timm:resnet18.tv_in1k; `import timm; timm.list_pretrained()` lists them"
            )
    if name in ("moco", "state_dict") and not rest:
        raise UserError(
            f"--backbone: got {name!r} without its weights: write {name}:PATH with the path of the "
            "file"
        )
    if rest:
        path = Path(rest).expanduser().absolute()
        if not path.is_file():
            raise UserError(f"--backbone: {rest}: no such file of weights")
        section["weights"] = str(path)
    return section


def section(model: type[Model], raw: Any, where: str) -> Model:
    """``raw`` as a ``model``; errors begin with ``where``, and name the setting and its value."""
    return _check(model, raw, where)


def flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}: MLflow's compare page needs flat parameters."""
    found: dict[str, Any] = {}
    for key, item in value.items():
        found |= flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {prefix + key: item}
    return found


def _check(model: type[Model], raw: Any, where: str, section: str = "") -> Model:
    """``raw`` as a ``model``; else a `UserError`, in which settings are below ``section``."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        lines = [_explain(dict(e), model) for e in error.errors()]
        raise UserError(
            f"{where}:\n" + "\n".join(f"  {section}{line}" for line in lines)
        ) from error


def _explain(error: dict[str, Any], model: type[BaseModel]) -> str:
    """One line: the setting, the value it got, and what was expected or is known."""
    setting = ".".join(map(str, error["loc"])) or "(the whole section)"
    if error["type"] == "extra_forbidden":
        return f"{setting}: no such setting; known are {', '.join(_known(model, error['loc']))}"
    if error["type"] == "missing":
        return f"{setting}: missing"
    line = f"{setting}: got {error['input']!r}: {error['msg'].removeprefix('Value error, ')}"
    if isinstance(error["input"], str) and "number" in error["msg"]:
        line += " (YAML reads 1e-4 as text: write 1.0e-4)"
    return line


def _known(model: Any, location: tuple[Any, ...]) -> list[str]:
    """The names of the settings at ``location`` in ``model``."""
    for part in location[:-1]:
        fields = {f.alias or name: f for name, f in model.model_fields.items()}
        model = fields[part].annotation
    return sorted(f.alias or name for name, f in model.model_fields.items())
