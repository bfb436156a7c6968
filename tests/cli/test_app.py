"""Options before the command: how loud uotft is, its version, its help; tables and completion."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import typer.core

from support.commands import answer, call
from support.image_folders import pictures
from uotft.cli import app
from uotft.cli.tables import print_table
from uotft.core import environment, locks, messages, signals
from uotft.core.errors import UserError
from uotft.core.progress import track
from uotft.pipeline.init import Wanted, project
from uotft.runs import doctor


def test_version() -> None:
    done = call("uotft", "--version", cwd=Path.cwd())
    assert (done.returncode, done.stdout, done.stderr) == (0, f"uotft {version('uotft')}\n", "")


@pytest.mark.parametrize("command", ["", "train", "data", "data list", "experiment run"])
def test_the_short_help_is_the_long_one(command: str, tmp_path: Path) -> None:
    short, long = (answer("uotft", *command.split(), o, cwd=tmp_path) for o in ("-h", "--help"))
    assert "-h, --help" in long.stdout
    assert (short.returncode, short.stdout) == (0, long.stdout)


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    """Two folders of images and the project that `uotft train` would make of them."""
    for number, name in enumerate(("old", "birds")):
        pictures(tmp_path / name, 2, 4, seed=number)
    folder, _ = project(Wanted("small", str(tmp_path / "old"), str(tmp_path / "birds"), tmp_path))
    model = folder / "models" / "birds" / "uot" / "0" / "model.json"
    model.parent.mkdir(parents=True)
    model.touch()  # so there is no plan, which is for a first training
    return tmp_path


def test_quiet_leaves_the_error_and_verbose_says_where_it_comes_from(birds: Path) -> None:
    arguments = ("train", "--source", "old", "--dataset", "birds", "--num-processes", "3")
    arguments = (*arguments, "--num-machines", "2")
    usual, quiet, verbose = (
        answer("uotft", *option, *arguments, cwd=birds) for option in ((), ("-q",), ("-v",))
    )
    info = f"uotft: in {birds / 'uotft-birds'}, with the settings of its params.yaml\n"
    error = quiet.stderr
    assert {done.returncode for done in (usual, quiet, verbose)} == {2}
    assert error.startswith("uotft: --num-processes: got 3")
    assert usual.stderr == info + error
    assert "Traceback" in verbose.stderr
    assert info in verbose.stderr
    assert verbose.stderr.endswith(error)


@pytest.mark.parametrize("cause", [KeyboardInterrupt(), None])
def test_ctrl_c_in_the_import_of_an_extension_module(
    cause: BaseException | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """pybind11 makes an ImportError of it."""

    def start(*_: object) -> None:
        raise ImportError("initialization failed") from cause

    monkeypatch.setattr(typer.core.TyperGroup, "invoke", start)
    monkeypatch.setattr(signals, "install_as_ctrl_c", lambda: None)
    monkeypatch.setattr(environment, "prepare", lambda: None)
    monkeypatch.setattr(sys, "argv", ["uotft", "units"])
    with pytest.raises(SystemExit if cause else ImportError) as caught:
        app.main()
    if cause:
        assert caught.value.code == signals.INTERRUPTED
        assert "interrupted; no file is half written" in capsys.readouterr().err


def test_quiet_and_verbose_contradict_each_other(tmp_path: Path) -> None:
    done = answer("uotft", "-q", "-v", "doctor", cwd=tmp_path)
    assert done.returncode == 2
    assert "-v and -q contradict each other" in done.stderr


def test_the_doctor_names_what_decides_how_the_cpu_rounds(tmp_path: Path) -> None:
    done = answer("uotft", "doctor", cwd=tmp_path)
    kernels = torch.backends.cpu.get_cpu_capability()
    assert re.search(rf"ok +cpu +\d+ cores, torch's kernels for {kernels}\n", done.stdout)


def test_the_doctor_counts_cores_where_none_are_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS."""
    monkeypatch.delattr(os, "sched_getaffinity")
    assert (True, "cpu") in [(ok, what) for ok, what, _ in doctor._devices()]


def test_a_level_that_is_none_is_named(tmp_path: Path) -> None:
    done = answer("uotft", "experiment", "list", cwd=tmp_path, UOTFT_LOG_LEVEL="loud")
    assert done.returncode == 2
    assert done.stderr == (
        "uotft: UOTFT_LOG_LEVEL: got 'loud'; known are DEBUG, INFO, WARNING, ERROR\n"
    )


@pytest.fixture
def loudness() -> Iterator[None]:
    """For tests that call `messages.setup`: it is undone at the end, in the environment too.

    Otherwise later tests would find another level, and messages twice in their output.
    """
    logger, level = logging.getLogger("uotft"), os.environ.pop("UOTFT_LOG_LEVEL", None)
    before = [*logger.handlers], logger.level, logger.propagate
    yield
    logger.handlers[:], _, logger.propagate = before
    logger.setLevel(before[1])
    os.environ.pop("UOTFT_LOG_LEVEL", None)
    if level is not None:
        os.environ["UOTFT_LOG_LEVEL"] = level


@pytest.mark.usefixtures("loudness")
def test_the_level_is_handed_down_to_processes_that_start_later() -> None:
    messages.setup("WARNING")
    code = "from uotft.core import messages; messages.setup(); print(messages.are_quiet())"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


@pytest.mark.usefixtures("loudness")
def test_progress_is_shown_unless_the_user_wants_quiet() -> None:
    items = [1, 2]
    for level, quiet in (("INFO", False), ("DEBUG", False), ("WARNING", True)):
        messages.setup(level)
        assert (track(items, "counting") is items) == quiet
        assert [*track(items, "counting")] == items


@pytest.mark.usefixtures("loudness")
def test_a_message_is_written_once_with_the_name_in_front(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for level in ("INFO", "DEBUG"):
        messages.setup(level)
        with locks.exclusive(tmp_path / "lock", "busy"):
            pass
    assert capsys.readouterr().err == f"uotft: {tmp_path / 'lock'}: locked\n"
    with pytest.raises(UserError, match="got 'LOUD'"):
        messages.setup("LOUD")
    assert environment.log_level() == "DEBUG"


def test_a_table_in_a_pipe_has_the_width_it_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [("a [b]", "1.5"), ("", "10.5"), ("c", "2")]
    print_table(("name", "value"), rows, width=30, title="T", text_columns=1, lines_after={1})
    printed = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert printed == [
        "T",
        "┏━━━━━━━┳━━━━━━━┓",
        "┃ name  ┃ value ┃",
        "┡━━━━━━━╇━━━━━━━┩",
        "│ a [b] │   1.5 │",
        "│       │  10.5 │",
        "├───────┼───────┤",
        "│ c     │     2 │",
        "└───────┴───────┘",
    ]


def test_the_shell_completes_commands_without_heavy_imports() -> None:
    code = (
        "import atexit, sys; from uotft.cli.app import main\n"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr)); main()"
    )
    completion = {"COMP_WORDS": "uotft e", "COMP_CWORD": "1", "_UOTFT_COMPLETE": "complete_bash"}
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.argv = ['uotft']\n{code}"],
        env=os.environ | completion, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["embed", "evaluate", "export", "experiment"]
    assert not {"rich", "yaml", "numpy", "torch"} & set(done.stderr.split())
