"""Kind and name -> the module of a variant: a data set, backbone, strategy, objective, experiment.

Each variant is one file, and its name is the file's name. So no name can be registered twice.
"""

from __future__ import annotations

import logging
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

from uotft.core.errors import UserError

#: {kind: the package with its variants}; names only, so this module imports none of them.
PACKAGES = {
    "datasets": "uotft.data.datasets",
    "backbones": "uotft.models.backbones",
    "strategies": "uotft.selection.strategies",
    "objectives": "uotft.training.objectives",
    "experiments": "uotft.analysis.experiments",
}
#: {kind: {old name: name}}. An old name keeps working in params.yaml. Its file is a link to the new
#: one: DVC watches the file of the name in params.yaml, and the registry imports the new one.
RENAMED = {"strategies": {"band": "score_quantile"}}

logger = logging.getLogger(__name__)


def names(kind: str) -> list[str]:
    """All names of a kind, sorted, without old ones."""
    found = {m.name for m in iter_modules(import_module(PACKAGES[kind]).__path__)}
    return sorted(found - RENAMED.get(kind, {}).keys())


def check(kind: str, name: object, setting: str) -> None:
    """A ``UserError`` for an unknown name; it begins with ``setting``, where the name came from."""
    if name not in names(kind) and name not in RENAMED.get(kind, {}):
        raise UserError(f"{setting}: got {name!r}; known are {', '.join(names(kind))}")


def load(kind: str, name: str, setting: str) -> ModuleType:
    """The module of the variant ``name``; a ``UserError`` if there is none."""
    check(kind, name, setting)
    new = RENAMED.get(kind, {}).get(name, name)
    if new != name:
        _tell(name, new, setting)
    return import_module(f"{PACKAGES[kind]}.{new}")


@cache  # one warning per process
def _tell(name: str, new: str, setting: str) -> None:
    logger.warning(
        "%s: %r is now called %r; the old name still works in params.yaml", setting, name, new
    )
