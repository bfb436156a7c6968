"""Where the workers of a training run, what each is told of the others, and how they end."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.commands import call
from uotft.core import environment, signals
from uotft.core.errors import UserError, WorkerFailed
from uotft.core.signals import StopRequest
from uotft.runs import meeting
from uotft.runs.processes import HERE_ALONE, MEET_S, Crew, Fleet, fleet, follow

MEETING = Path("folder/meeting")
LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


def of(processes: int = 1, machines: int = 1, rank: int = 0, address: str = "") -> Fleet:
    return fleet(processes, machines, rank, address, 29511)


@pytest.fixture(autouse=True)
def nobody_launched_us(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)


def test_one_process_meets_nobody() -> None:
    assert of().ranks(MEETING) == [{}]
    assert of().defaults == {}
    meeting.meet()  # returns at once


def test_processes_of_one_machine_meet_through_a_file() -> None:
    ranks = of(4).ranks(MEETING)
    assert [place["RANK"] for place in ranks] == ["0", "1", "2", "3"]
    for place in ranks:
        assert place["LOCAL_RANK"] == place["RANK"]
        assert (place["WORLD_SIZE"], place["LOCAL_WORLD_SIZE"]) == ("4", "4")
        assert place[environment.MEETING_FILE] == str(MEETING)
        assert not {"MASTER_ADDR", "MASTER_PORT", environment.MEETING_S} & {*place}
    assert of(4).defaults == {"OMP_NUM_THREADS": "1", **HERE_ALONE}


@pytest.fixture
def roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Linux machine of 16 GiB without a GPU, whose user has set nothing about memory."""
    for name in (*environment.ALLOCATOR, "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(environment, "memory", lambda: 16 << 30)
    monkeypatch.setattr(environment, "gpus", list)
    monkeypatch.setattr(sys, "platform", "linux")


def started(monkeypatch: pytest.MonkeyPatch, folder: Path, processes: int, crews: int) -> dict:
    """The variables about memory that a worker is started with."""
    given: list[dict[str, str]] = []

    class Worker:
        def __init__(self, command: list[str], **options: object) -> None:
            self.pid = len(given)
            given.append(dict(options["env"]))

    monkeypatch.setattr(subprocess, "Popen", Worker)
    monkeypatch.setattr(signals, "stop", lambda workers: None)
    crew = Crew(of(processes), folder, crews=crews)
    crew.start(folder / "meeting")
    crew.dismiss()
    assert len(given) == processes
    return {k: v for k, v in given[0].items() if k in environment.ALLOCATOR}


@pytest.mark.usefixtures("roomy")
def test_workers_keep_the_memory_of_a_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert started(monkeypatch, tmp_path, 1, 1) == environment.ALLOCATOR
    assert started(monkeypatch, tmp_path, 2, 2) == environment.ALLOCATOR
    assert started(monkeypatch, tmp_path, 2, 3) == {}, "six share 16 GiB"
    for change in (
        lambda m: m.setenv("MALLOC_TOP_PAD_", "0"),
        lambda m: m.setenv("GLIBC_TUNABLES", "glibc.malloc.check=3"),
        lambda m: m.setattr(environment, "gpus", lambda: ["0"]),
        lambda m: m.setattr(environment, "memory", lambda: 2 << 30),
        lambda m: m.setattr(environment, "memory", lambda: 0),
        lambda m: m.setattr(sys, "platform", "darwin"),
    ):
        with monkeypatch.context() as changed:
            change(changed)
            assert environment.allocator(1) == {}
    monkeypatch.setenv("MALLOC_TOP_PAD_", "5")
    assert started(monkeypatch, tmp_path, 1, 1) == {"MALLOC_TOP_PAD_": "5"}, "the user's"


FAULTS = """
import resource
from uotft.core import environment

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(9):
        bytearray(64 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults())
with environment.memory_kept():
    faults()
    print(faults())
"""


@pytest.mark.skipif(not environment.allocator(1), reason="a GPU here, or not enough memory")
def test_a_process_that_predicts_keeps_memory_unless_the_user_has_settings() -> None:
    plain, kept = faults()
    assert kept < plain / 10
    plain, kept = faults(MALLOC_TOP_PAD_="0")
    assert kept > plain / 2


def faults(**variables: str) -> list[int]:
    """Page faults before and while memory is kept, in a process of its own."""
    done = call(sys.executable, "-c", FAULTS, cwd=Path.cwd(), **variables)
    assert not done.returncode, done.stderr
    return [int(line) for line in done.stdout.split()]


def test_this_machine_has_memory() -> None:
    assert environment.memory() > 1 << 28


def test_each_machine_starts_its_share() -> None:
    ranks = of(8, 2, 1, "10.0.0.1").ranks(MEETING)
    assert [place["RANK"] for place in ranks] == ["4", "5", "6", "7"]
    assert [place["LOCAL_RANK"] for place in ranks] == ["0", "1", "2", "3"]
    for place in ranks:
        assert (place["WORLD_SIZE"], place["LOCAL_WORLD_SIZE"]) == ("8", "4")
        assert (place["MASTER_ADDR"], place["MASTER_PORT"]) == ("10.0.0.1", "29511")
        assert float(place[environment.MEETING_S]) == MEET_S
        assert environment.MEETING_FILE not in place
    assert of(8, 2, 1, "10.0.0.1").defaults == {"OMP_NUM_THREADS": "1"}, "others must reach them"
    [alone] = of(2, 2, 0, "10.0.0.1").ranks(MEETING)
    assert (alone["RANK"], alone["LOCAL_WORLD_SIZE"]) == ("0", "1")


def test_another_launcher_has_started_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    ours = of()
    assert (ours.processes, ours.rank, ours.first) == (4, 2, 2)
    assert ours.ranks(MEETING) == [{}], "it has said all"
    assert ours.defaults == {}
    meeting.meet()  # Accelerate does it
    with pytest.raises(UserError, match="one of 4 processes that another launcher has started"):
        of(4)


def test_a_launcher_of_one_process_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert of(4) == Fleet(4, port=29511)
    assert not {*LAUNCHER} & {*environment.unlaunched()}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((3, 2, 0, "10.0.0.1"), "--num-processes: got 3, .* 2 machines cannot share"),
        ((1, 2, 0, "10.0.0.1"), "--num-processes: got 1, .* choose a multiple of 2"),
        (
            (2, 2, 2, "10.0.0.1"),
            "--machine-rank: got 2; with --num-machines 2 the last machine is 1",
        ),
        ((2, 1, 1, ""), "--machine-rank: got 1; with --num-machines 1 the last machine is 0"),
        ((2, 2, 0, ""), "--num-machines above 1 and --main-process-ip.* go together"),
        ((2, 1, 0, "10.0.0.1"), "--num-machines above 1 and --main-process-ip.* go together"),
    ],
)
def test_words_that_contradict(words: tuple[int, int, int, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        of(*words)


def child(code: str) -> subprocess.Popen[bytes]:
    """A Python process that leads a session, as workers do."""
    return subprocess.Popen([sys.executable, "-c", code], start_new_session=True)


SLEEPS = "import time; time.sleep(60)"


def crew_of(folder: Path, *codes: str) -> Crew:
    """Workers number 4 and following, at work."""
    fleet = Fleet(2 * 4, 2, 1)
    crew = Crew(fleet, folder, workers=[child(code) for code in codes])
    crew.busy[:] = crew.workers
    return crew


@pytest.mark.parametrize(
    ("codes", "expected", "message"),
    [
        (["pass", "raise SystemExit(2)", SLEEPS], 2, ""),
        (
            [SLEEPS, "import os; os.kill(os.getpid(), 9)"],
            137,
            "worker 5 of them, process {1}, was ended by SIGKILL: ",
        ),
        # the killed one explains the others, whoever is seen first
        (["raise SystemExit(1)", "import os; os.kill(os.getpid(), 9)"], 137, "worker 5 of them"),
    ],
)
def test_the_first_failure_counts(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    codes: list[str],
    expected: int,
    message: str,
) -> None:
    monkeypatch.setattr(logging.getLogger("uotft"), "propagate", True)
    crew = crew_of(tmp_path, *codes)
    if SLEEPS not in codes:
        for worker in crew.workers:
            worker.wait()
    try:
        with pytest.raises(WorkerFailed) as failed:
            follow(crew, tmp_path / "events", StopRequest(), lambda points: None)
    finally:
        signals.stop(crew.workers)
    assert failed.value.code == expected
    said = [record.getMessage() for record in caplog.records]
    pids = [worker.pid for worker in crew.workers]
    assert [text for text in said if text.startswith(message.format(*pids))] == said
    assert bool(said) == bool(message)
    assert not crew.living(), "no other one is left"


def test_a_worker_that_was_asked_by_somebody_else_interrupts(tmp_path: Path) -> None:
    crew = crew_of(tmp_path, "raise SystemExit(130)", SLEEPS)
    with pytest.raises(KeyboardInterrupt):
        follow(crew, tmp_path / "events", StopRequest(), lambda points: None)
    signals.stop(crew.workers)
    assert not crew.living()


STUBBORN = "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); " + SLEEPS


def test_a_process_that_does_not_stop_is_killed() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STUBBORN], start_new_session=True, stdout=subprocess.PIPE
    )
    assert process.stdout
    process.stdout.readline()
    signals.stop([process], grace_s=0.2)
    process.stdout.close()
    assert process.returncode == -signal.SIGKILL


GRANDCHILD = """\
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
child.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process adopt orphans")
@pytest.mark.parametrize("killed", [True, False])
def test_children_of_a_process_that_is_killed_are_stopped_too(killed: bool) -> None:
    """As a stage of a `dvc` that is killed; without adoption nobody could wait for it."""
    start = time.monotonic()
    command = [sys.executable, "-c", GRANDCHILD]
    with signals.running(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        grandchild = int(process.stdout.readline())
        if killed:
            process.kill()
            process.wait()
            assert Path(f"/proc/{grandchild}").exists()
    process.stdout.close()
    assert not Path(f"/proc/{grandchild}").exists(), "ended, and no zombie"
    assert process.returncode == (-signal.SIGKILL if killed else -signal.SIGTERM)
    assert time.monotonic() - start < 10


def test_sigterm_in_a_block_is_ctrl_c_and_leaves_no_alarm() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), signals.as_ctrl_c():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before
    assert signal.alarm(0) == 0


def test_a_stop_request_counts_and_gives_time_once() -> None:
    before, stop = signal.getsignal(signal.SIGTERM), StopRequest()
    try:
        stop.listen()
        assert not stop
        signal.raise_signal(signal.SIGTERM)
        left = signal.alarm(5)
        assert 0 < left <= signals.GRACE_S
        signal.raise_signal(signal.SIGTERM)
        assert stop
        assert stop.count == 2
        assert signal.alarm(0) == 5, "the second one gives no more time"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGTERM, before)
