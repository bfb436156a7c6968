"""What the repository promises of itself: its lock files, its help, its tree, its imports."""

from __future__ import annotations

import ast
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.commands import answer
from support.repository import REPOSITORY, files
from uotft.core import dvc, registry

COMMANDS = "init prepare pretrain embed units select forecast train".split()  # noqa: SIM905
COMMANDS += "evaluate search predict export register compare sync ui doctor".split()  # noqa: SIM905
COMMANDS += [f"bank {verb}" for verb in ("fetch", "make", "show")]
COMMANDS += [f"experiment {verb}" for verb in ("list", "run", "show")]
COMMANDS += [
    f"data {verb}"
    for verb in "accept export fetch keep list overlap prepare show subset verify".split()  # noqa: SIM905
]


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-tools.lock"])
def test_locks_are_exact_hashed_and_name_no_host(name: str) -> None:
    text = (REPOSITORY / name).read_text()
    assert not re.search(r"https?://|--(extra-)?index-url|--find-links", text)
    entries = re.split(r"\n(?=\S)", re.sub(r"(?m)^\s*#.*\n", "", text).strip())
    for entry in entries:
        assert re.match(r"[a-z0-9._-]+(\[[a-z,]+\])?==[^ ]+", entry), entry[:60]
        assert "--hash=sha256:" in entry, entry[:60]


# what a command may not import to start; each takes a tenth of a second to several seconds
TRAINS = {"torchvision", "accelerate", "mlflow", "optuna", "ot", "faiss", "scipy", "sklearn"}
DRAWS = {"matplotlib", "pandas", "pyarrow", "jinja2", "onnx"}
READS = {"numpy", "pydantic", "yaml", "rich"}


@pytest.mark.parametrize(
    ("words", "heavy"),
    [
        ("--help", TRAINS | DRAWS | READS | {"torch", "ssl"}),
        ("train --help", TRAINS | DRAWS | {"torch", "ssl", "numpy", "yaml", "rich"}),
        ("data list", TRAINS | DRAWS | {"torch"}),
        ("predict --model nowhere a.png", TRAINS | DRAWS | {"torch"}),
        ("export --model nowhere --format onnx --output a", TRAINS | DRAWS | {"torch"}),
        ("sync", TRAINS | DRAWS | {"torch"}),
        ("doctor", TRAINS | DRAWS),
    ],
)
def test_commands_start_without_what_they_do_not_need(
    words: str, heavy: set[str], tmp_path: Path
) -> None:
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    code = (
        f"import atexit, sys; sys.argv = {['uotft', *words.split()]!r}\n"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
        "from uotft.cli.app import main; main()"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "uotft.cli.app" in done.stderr
    assert not heavy & set(done.stderr.split())


def test_selection_runs_without_torch_or_mlflow() -> None:
    code = "import sys, uotft.pipeline.select, uotft.selection.strategies.uot; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "mlflow", "ot", "matplotlib"} & set(done.stdout.split())


SCRIPTS = [
    f for f in files() if f.startswith(("experiments/", "benchmarks/")) and f.endswith(".py")
]


PROJECTS = [name for name in files() if re.fullmatch("docs/experiments/[^/]*/params.yaml", name)]


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_import_what_is_there(name: str) -> None:
    for node in ast.walk(ast.parse((REPOSITORY / name).read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("uotft"):
            module = importlib.import_module(node.module)
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                assert hasattr(module, alias.name) or importlib.util.find_spec(whole), whole


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_documented(command: str) -> None:
    done = answer("uotft", *command.split(), "--help", cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split("\n")[2].strip()) > 20
    assert f"uotft {command}" in (REPOSITORY / "docs" / "commands.md").read_text()


def test_no_command_is_missing_from_the_list() -> None:
    from uotft.cli.app import app

    names = [c.callback.__name__ for c in app.registered_commands]
    for group in app.registered_groups:
        inside = group.typer_instance.registered_commands
        names += [f"{group.name} {c.name or c.callback.__name__}" for c in inside]
    assert sorted(names) == sorted(COMMANDS)


def test_the_map_in_the_readme_is_true() -> None:
    block = re.search(r"```text\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    assert block
    shown = {name.rstrip("/") for name in re.findall(r"[├└]── (\S+)", block[1])}
    there = {
        name.split("/")[2]
        for name in files()
        if name.startswith("src/uotft/") and name.endswith(".py") and name.count("/") > 2
    }
    assert shown == there


@pytest.mark.parametrize("kind", [kind for kind in registry.PACKAGES if kind != "experiments"])
def test_every_variant_says_what_it_is(kind: str) -> None:
    for name in registry.names(kind):
        module = registry.load(kind, name, "test")
        assert len(module.__doc__ or "") > 60, f"{kind}/{name}.py has no docstring"
        for setting, field in module.Settings.model_fields.items():
            assert field.description or setting == "solver", f"{name}.{setting}"


@pytest.mark.parametrize("name", PROJECTS)
def test_projects_on_record_run_with_the_pipeline_of_today(name: str, tmp_path: Path) -> None:
    shutil.copy(REPOSITORY / name, tmp_path / "params.yaml")
    shutil.copy(REPOSITORY / "src/uotft/presets/project/pipeline.yaml", tmp_path / "dvc.yaml")
    assert dvc.absent_settings(tmp_path) == []
