"""Where the workers of a training run, in the words of Accelerate; and what a launcher says."""

from __future__ import annotations

import pytest

from uotft.core.errors import UserError
from uotft.runs import launcher
from uotft.runs.processes import Fleet, fleet

WORKER = ["-m", "uotft.runs.worker", "journal", "pretrain"]


def of(processes: int = 1, machines: int = 1, rank: int = 0, address: str = "") -> Fleet:
    return fleet(processes, machines, rank, address, 29511)


@pytest.fixture(autouse=True)
def nobody_launched_us(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_one_process_needs_no_launcher() -> None:
    assert of().command(WORKER) == WORKER


def test_processes_of_one_machine() -> None:
    command = of(4).command(WORKER)
    assert command == [
        "-m",
        "uotft.runs.launcher",
        "--standalone",
        "--nproc-per-node",
        "4",
        *WORKER,
    ]


def test_each_machine_starts_its_share() -> None:
    command = " ".join(of(8, 2, 1, "10.0.0.1").command(WORKER))
    assert "--nnodes 2 --node-rank 1 --master-addr 10.0.0.1 --master-port 29511" in command
    assert "--nproc-per-node 4 -m uotft.runs.worker" in command
    assert "--nproc-per-node 1 " in " ".join(of(2, 2, 0, "10.0.0.1").command(WORKER))


def test_another_launcher_has_started_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    ours = of()
    assert (ours.processes, ours.rank) == (4, 2)
    assert ours.command(WORKER) == WORKER
    with pytest.raises(UserError, match="one of 4 processes that another launcher has started"):
        of(4)


def test_a_launcher_of_one_process_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert of(4) == Fleet(4, port=29511)


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


def test_a_machine_that_leaves_last_is_no_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """torch prints a traceback where the machine with its store was the first to leave."""
    from torch.distributed import run
    from torch.distributed.elastic.agent.server import api

    def leave(arguments: list[str]) -> None:
        api.logger.error("Error waiting on exit barrier. Elapsed: %s seconds", 1)
        api.logger.error("something else")

    monkeypatch.setattr(run, "main", leave)
    monkeypatch.setattr(api.logger, "filters", [])
    monkeypatch.setattr(api.logger, "handlers", [caplog.handler])
    monkeypatch.setattr(api.logger, "propagate", False)
    assert launcher.main([]) == 0
    assert [record.getMessage() for record in caplog.records] == ["something else"]
