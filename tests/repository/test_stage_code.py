"""dvc.yaml names all code that decides the result of each stage, and no other (`make graph`)."""

from __future__ import annotations

import subprocess
import sys
from copy import copy
from pathlib import Path

import pytest
import yaml

import stage_code
from import_graph import Package, cycles
from uotft.core import registry

REPOSITORY = stage_code.ROOT
STAGES = list(yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"])
CODE = stage_code.Code(REPOSITORY)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_all_code_that_decides_its_result(stage: str) -> None:
    found = list(CODE.problems(stage))
    assert not found, "run make graph:\n" + "\n".join(found)


def test_make_graph_has_nothing_to_write() -> None:
    before = (REPOSITORY / "dvc.yaml").read_text()
    code = {stage: CODE.deps(stage) for stage in STAGES}
    assert stage_code.written(before, code) == before, "run make graph"


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_loaded_at_import_is_in_the_closure(stage: str) -> None:
    """Python's own word, beside that of `ast`: what is in memory when the stage is imported."""
    code = f"import sys, uotft.pipeline.{stage}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name for name in done.stdout.split() if name.split(".")[0] == "uotft"}
    closure = CODE.package.closure(f"uotft.pipeline.{stage}")
    assert loaded <= closure | {"uotft"}


def deps(stage: str) -> list[str]:
    return [dep for dep in CODE.pipeline[stage] if dep.startswith("src/")]


@pytest.mark.parametrize("kind", stage_code.VARIANTS)
def test_a_stage_that_runs_variants_depends_on_its_own(kind: str) -> None:
    package, name = stage_code.VARIANTS[kind]
    assert f"uotft.{package}" == registry.PACKAGES[kind]
    folder = f"src/uotft/{package.replace('.', '/')}"
    pattern = f"{folder}/{name}.py" if name else folder
    stages = {stage for stage in STAGES if pattern in deps(stage)}
    assert stages >= {
        "datasets": {"prepare"},
        "backbones": {"pretrain", "embed", "train", "evaluate"},
        "strategies": {"select"},
        "objectives": {"train"},
    }[kind]  # fmt: skip
    if kind in stage_code.RUN_IN:
        assert stages == stage_code.RUN_IN[kind]


@pytest.mark.parametrize("stage", STAGES)
def test_a_new_variant_runs_its_own_cells_only(stage: str) -> None:
    """No dependency is a folder that has a registry in it, or a file of all that there are.

    But select runs all strategies in one stage, in seconds.
    """
    for kind, package in registry.PACKAGES.items():
        folder = f"src/{package.replace('.', '/')}/"
        if (stage, kind) == ("select", "strategies"):
            continue
        assert not [dep for dep in deps(stage) if folder.startswith(f"{dep}/")]
        named = {dep for dep in deps(stage) if dep.startswith(folder) and "$" not in dep}
        assert len(named) < len([*(REPOSITORY / folder).glob("*.py")])


def test_what_decides_no_result_is_still_there() -> None:
    for name in stage_code.NO_RESULT:
        assert f"uotft.{name}" in CODE.package.files, f"{name} is gone: take it out of NO_RESULT"
    for name in (*stage_code.NAMED_WITHIN, *(p for p, _ in stage_code.VARIANTS.values())):
        assert f"uotft.{name}" in CODE.package.files


def problems(stage: str, deps: list[str]) -> list[str]:
    """What is wrong with a stage if these are its deps."""
    other = copy(CODE)
    other.pipeline = {**CODE.pipeline, stage: deps}
    return list(other.problems(stage))


@pytest.mark.parametrize(
    ("dep", "stage"),
    [
        ("src/uotft/data/pixel_cache.py", "train"),
        ("src/uotft/models/network.py", "train"),
        ("src/uotft/selection/ranking.py", "select"),
        ("src/uotft/selection/transport", "select"),
        ("src/uotft/selection/strategies", "select"),
        ("src/uotft/training/objectives/co_tuning.py", "train"),
        ("src/uotft/training/objectives/${train.objective}.py", "train"),
        ("src/uotft/models/backbones/${backbone.name}.py", "embed"),
        ("src/uotft/models/backbones/resnet50.py", "train"),
        ("src/uotft/data/datasets/${item.kind}.py", "prepare"),
    ],
)
def test_a_dependency_that_is_missing_is_named(dep: str, stage: str) -> None:
    others = [other for other in CODE.pipeline[stage] if other != dep]
    assert len(others) == len(CODE.pipeline[stage]) - 1
    found = problems(stage, others)
    assert found
    assert all(line.startswith(f"stage {stage}: {dep}") for line in found)
    assert all("decides its result" in line for line in found)


@pytest.mark.parametrize(
    ("dep", "found"),
    [
        ("src/uotft/runs/job.py", "src/uotft/runs/job.py is among its deps and never imported"),
        ("src/uotft/tracking/reader.py", "is among its deps and never imported"),
        ("src/uotft/training/objectives/${train.objective}.py", "and never imported"),
        ("src/uotft/tracking", "below its dep src/uotft/tracking, is never imported"),
    ],
)
def test_a_dependency_too_many_is_named(dep: str, found: str) -> None:
    wrong = problems("units", [*CODE.pipeline["units"], dep])
    assert wrong
    assert all(found in line for line in wrong)


def test_a_page_depends_on_its_template(tmp_path: Path) -> None:
    """Jinja2's templates are no modules, and decide what the report says."""
    for name, text in {
        "core/__init__.py": "", "pipeline/__init__.py": "", "analysis/__init__.py": "",
        "pipeline/compare.py": "from uotft.analysis import page",
        "analysis/page.py": "def page():\n    return PackageLoader('uotft.analysis')",
        "analysis/templates/report.html": "<html>", "__init__.py": "",
    }.items():  # fmt: skip
        path = tmp_path / "src/uotft" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    files = stage_code.Code(tmp_path).files("compare")
    assert "src/uotft/analysis/templates/report.html" in files


FILES = {
    "__init__": "",
    "a": "from pkg.one import b\nif TYPE_CHECKING:\n    from pkg import unseen\n",
    "one/__init__": "import pkg.c\n\ndef later():\n    from pkg import lazy\n",
    "one/b": "def f():\n    from .. import d\n    from .e import name\n",
    "one/e": "import numpy\nfrom pkg.stopped import x\n",
    "c": "import pkg.a",
    "d": "", "lazy": "", "unseen": "", "stopped": "from pkg import behind", "behind": "",
}  # fmt: skip


def test_the_closure_of_imports(tmp_path: Path) -> None:
    """Those in functions count, those for type checking do not, nor does what is behind a stop."""
    for name, text in FILES.items():
        path = tmp_path / "pkg" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    package = Package(tmp_path / "pkg")
    names = {"pkg", "pkg.a", "pkg.one", "pkg.one.b", "pkg.one.e", "pkg.c", "pkg.d"}
    assert package.closure("pkg.a", {"pkg.stopped"}) - {"pkg.lazy"} == names
    assert package.imports("pkg.one.b") == {"pkg", "pkg.d", "pkg.one.e"} - {"pkg"}
    assert package.imports("pkg.a", typing=True) == {"pkg.one.b", "pkg.unseen"}
    assert package.imports("pkg.one", deferred=False) == {"pkg.c"}
    found = cycles({module: package.imports(module) for module in package.files})
    assert found == []
    (tmp_path / "pkg/d.py").write_text("from pkg.one import b")
    package = Package(tmp_path / "pkg")
    assert cycles({m: package.imports(m) for m in package.files}) == [["pkg.d", "pkg.one.b"]]
