"""Fault 23: abused servers (`uotft ui` and `mlflow models serve`): bodies of 100 MB or without end,
10^5 requests, another Host or Origin, paths that leave the folder, bodies that are no image.

Expected: 4xx, bounded memory, 127.0.0.1 by default.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from support.commands import call, users_environment
from support.image_folders import pictures
from support.open_ports import addresses, descendants
from support.ports import free_port
from support.projects import runs
from support.tracking_page import SEARCH, ask, served
from uotft.core.errors import UserError
from uotft.models import serving
from uotft.tracking.guard import MOST

BODY = 100_000_000
MIB = 2**20
JSON = {"Content-Type": "application/json"}
PATHS = [
    "../../../../etc/passwd",
    "/etc/passwd",
    "..%2f..%2f..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    "%252e%252e%252f%252e%252e%252fetc%252fpasswd",
    "....//....//etc/passwd",
    "file:///etc/passwd",
    "a/../../../../etc/passwd",
    "..\\..\\etc\\passwd",
    "%00/etc/passwd",
]
READERS = [
    "/get-artifact?run_uuid={run}&path={path}",
    "/model-versions/get-artifact?name=m&version=1&path={path}",
    "/api/2.0/mlflow-artifacts/artifacts/{path}",
    "/ajax-api/2.0/mlflow-artifacts/artifacts/{path}",
    "/api/2.0/mlflow/artifacts/list?run_id={run}&path={path}",
    "/api/2.0/mlflow-artifacts/artifacts?path={path}",
    "/ajax-api/2.0/mlflow/logged-models/m-1/artifacts/files?artifact_file_path={path}",
    "/static-files/{path}",
]


def request(
    port: int, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    """Status and content of one answer; a server may answer before it has read everything."""
    line = HTTPConnection("127.0.0.1", port, timeout=60)
    with suppress(BrokenPipeError, ConnectionResetError):
        line.request(method, path, body, headers or {})  # type: ignore[arg-type]
    try:
        answer = line.getresponse()
        return answer.status, answer.read()
    except ConnectionResetError:
        return 0, b""
    finally:
        line.close()


def memory(process: int) -> int:
    """Resident bytes of a process and of those that descend from it."""
    each = (process, *descendants(process))
    pages = (int(Path(f"/proc/{p}/statm").read_text().split()[1]) for p in each)
    return sum(pages) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="module")
def page(project: Path) -> Iterator[tuple[subprocess.Popen[str], int, Path]]:
    """`uotft ui` on a project with runs: process, port, project."""
    if sys.platform != "linux":
        pytest.skip("looks for processes and sockets in /proc")
    with served(project, most=1800) as (process, port):
        yield process, port, project


@pytest.mark.slow
def test_it_listens_on_this_machine_alone(page: tuple) -> None:
    process, port, _ = page
    found = set.union(*(addresses(p) for p in (process.pid, *descendants(process.pid))))
    assert found == {"127.0.0.1"}
    assert tuple(map(int, version("mlflow").split(".")[:2])) >= (3, 10)


@pytest.mark.slow
@pytest.mark.parametrize("path", [SEARCH, "/graphql", "/v1/traces", "/no-such-page"])
@pytest.mark.parametrize("told", [True, False])
def test_a_large_body(page: tuple, path: str, told: bool, measured: Callable[[str], None]) -> None:
    process, port, _ = page
    before = memory(process.pid)
    pieces = (bytes(MIB) for _ in range(BODY // MIB + 1))
    size = {"Content-Length": str((BODY // MIB + 1) * MIB)} if told else {}
    status, _ = request(port, "POST", path, pieces, JSON | size)
    assert status in (413, 0), "0: it hangs up while we still send"
    grown = memory(process.pid) - before
    assert grown < 4 * MOST
    assert ask(port)[0] == 200
    measured(f"{BODY:,} bytes: {status or 'hung up'}, memory {grown / MIB:+.0f} MiB")


@pytest.mark.slow
def test_a_body_that_never_ends(page: tuple, measured: Callable[[str], None]) -> None:
    process, port, _ = page
    before, sent = memory(process.pid), 0
    with socket.create_connection(("127.0.0.1", port), timeout=60) as line:
        line.sendall(
            f"POST {SEARCH} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
        )
        try:
            while sent < 10 * MOST:
                line.sendall(f"{MIB:x}\r\n".encode() + bytes(MIB) + b"\r\n")
                sent += MIB
        except OSError:
            pass
    assert sent < 10 * MOST, "the server reads on and on"
    grown = memory(process.pid) - before
    assert grown < 4 * MOST
    measured(f"without an end: refused within {sent // MIB} MiB, memory {grown / MIB:+.0f} MiB")


@pytest.mark.slow
def test_many_requests(
    page: tuple, trials: Callable[[int, int], int], measured: Callable[[str], None]
) -> None:
    """Each on a line that is kept, of 8 at once; the first ones fill caches and threads."""
    process, port, _ = page
    many, start = trials(2_000, 100_000), time.monotonic()

    def send(count: int) -> list[int]:
        line, said = HTTPConnection("127.0.0.1", port, timeout=60), []
        for number in range(count):
            if number % 10:
                line.request("GET", "/ajax-api/2.0/mlflow/no-such")
            else:
                line.request("POST", SEARCH, json.dumps({"max_results": 5}), JSON)
            answer = line.getresponse()
            answer.read()
            said.append(answer.status)
        line.close()
        return said

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(send, [50] * 8))
        before = memory(process.pid)
        said = [status for each in pool.map(send, [many // 8] * 8) for status in each]
    grown = memory(process.pid) - before
    assert len(said) == many
    assert set(said) == {200, 404}
    assert grown < 64 * MIB
    assert ask(port)[0] == 200
    seconds = time.monotonic() - start
    measured(f"{many:,} requests in {seconds:.0f} s: memory {grown / MIB:+.1f} MiB")


@pytest.mark.slow
def test_another_host_or_origin(page: tuple, measured: Callable[[str], None]) -> None:
    _, port, _ = page
    for host in ("evil.example", f"evil.example:{port}", f"127.0.0.1.evil.example:{port}", ""):
        assert ask(port, Host=host)[0] == 403, host
    for origin in ("http://evil.example", "null", f"http://127.0.0.1.evil.example:{port}"):
        assert ask(port, Origin=origin)[0] == 403, origin
    made = "/api/2.0/mlflow/experiments/create"
    plain = {"Origin": "http://evil.example", "Content-Type": "text/plain"}  # asks no leave first
    assert request(port, "POST", made, json.dumps({"name": "planted"}), plain)[0] == 403
    status, said = ask(port)
    assert status == 200
    assert b"planted" not in said
    measured("4 Hosts and 4 Origins that are not its own: 403")


@pytest.mark.slow
def test_paths_that_leave(page: tuple, measured: Callable[[str], None]) -> None:
    _, port, project = page
    [run] = [r for r in runs(project) if r.info.run_name == "digits-uot-0"]
    asked = 0
    for reader in READERS:
        for path in PATHS:
            place = reader.format(run=run.info.run_id, path=path)
            status, said = request(port, "GET", place.replace("\\", "%5c"))
            assert b"root:" not in said, place
            assert 300 <= status < 500 or b"passwd" not in said, f"{place}: {status} {said[:99]!r}"
            asked += 1
    before = sorted(p.name for p in project.parent.iterdir())
    for path in PATHS:
        place = f"/api/2.0/mlflow-artifacts/artifacts/{path.replace(chr(92), '%5c')}-planted"
        status, said = request(port, "PUT", place, b"planted")
        assert 400 <= status < 500 or "planted" not in str(said), f"{place}: {status} {said!r}"
    assert not [p for p in Path("/etc").glob("*planted*")]
    assert sorted(p.name for p in project.parent.iterdir()) == before
    measured(f"{asked} ways to read and {len(PATHS)} to write outside: none did")


@pytest.mark.slow
@pytest.mark.parametrize(
    "body",
    [
        {"name": "evil", "artifact_location": "file:///etc"},
        {"name": "evil", "artifactLocation": "/etc"},
        json.dumps({"name": "evil", "artifact_location": "/etc"}),
    ],
)
def test_nobody_else_says_where_artifacts_lie(page: tuple, body: object) -> None:
    _, port, _ = page
    for path in ("/api/2.0/mlflow/experiments/create", "/ajax-api/2.0/mlflow/experiments/create"):
        assert request(port, "POST", path, json.dumps(body), JSON)[0] == 403
    assert b"evil" not in ask(port)[1]


@pytest.mark.slow
def test_other_machines_are_let_in_on_demand_alone(tmp_path: Path) -> None:
    """Outside a clone, before the first run, and a page that is of another origin to MLflow."""
    old, new = (str(pictures(tmp_path / name, 2, 3)) for name in ("old", "new"))
    done = call("uotft", "init", "--source", old, "--target", new, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    name = socket.gethostname()
    with served(tmp_path, "--host", "0.0.0.0") as (process, port):
        place = f"{name}:{port}"
        assert ask(port, Host=place, Origin=f"http://{place}")[0] == 200
        assert ask(port, Host=place, Origin="http://evil.example")[0] == 403
        assert ask(port, Host="evil.example")[0] == 403
        process.terminate()
        _, said = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "--host 0.0.0.0: everyone who can reach it can read, change and delete runs" in said


@pytest.fixture
def model(tiny: Path) -> serving.Classifier:
    """What `mlflow.pyfunc.load_model` makes of a logged model."""
    made = serving.Classifier()
    made.load_context(SimpleNamespace(artifacts={"model": str(tiny / "pretrained/glyphs")}))
    return made


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((2, 16, 16)),
        np.zeros((2, 8, 8), np.uint8),
        np.full((1, 16, 16), 256),
        np.full((1, 16, 16), -1),
        np.array([["a.png", "b.png"]]),
        [],
    ],
)
def test_what_is_no_image(model: serving.Classifier, wrong: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"images: got .* known are uint8 images \(n, 16, 16\)"):
        model.predict(None, wrong)


def test_a_file_that_is_not_there(model: serving.Classifier) -> None:
    with pytest.raises(UserError, match=r"nowhere\.png: No such file"):
        model.predict(None, ["nowhere.png"])


@contextmanager
def model_served(model: Path, folder: Path) -> Iterator[int]:
    """`mlflow models serve`: the port."""
    port = free_port()
    words = ["models", "serve", "-m", str(model), "--env-manager", "local", "--port", str(port)]
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *words],
        cwd=folder, env=users_environment(), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(300):
            try:
                if request(port, "GET", "/ping")[0] == 200:
                    break
            except OSError:
                time.sleep(0.5)
        yield port
    finally:
        os.killpg(server.pid, 15)
        server.wait(30)


@pytest.mark.slow
def test_what_is_no_image_behind_mlflow_models_serve(
    project: Path,
    tmp_path: Path,
    trials: Callable[[int, int], int],
    measured: Callable[[str], None],
) -> None:
    if not trials(0, 1):
        pytest.skip("starts a server that imports torch; with make faults")
    [run] = [r for r in runs(project) if r.info.run_name == "digits-uot-0"]
    abouts = (project / "mlruns").rglob("MLmodel")
    [about] = [path for path in abouts if run.info.run_id in path.read_text()]
    model = Path(shutil.copytree(about.parent, tmp_path / "model"))
    (tmp_path / "page.jpg").write_text("<html>no image</html>")
    with model_served(model, tmp_path) as port:
        good = {"inputs": np.zeros((2, 16, 16), np.uint8).tolist()}
        status, said = request(port, "POST", "/invocations", json.dumps(good), JSON)
        assert status == 200, said
        wrong = [
            {"inputs": [str(tmp_path / "page.jpg")]},
            {"inputs": ["/etc/passwd"]},
            {"inputs": [["a", "b"], ["c", "d"]]},
            {"inputs": np.zeros((1, 3, 3)).tolist()},
            {"inputs": {"x": 1}},
            {"no": "inputs"},
            [],
        ]
        for body in [*map(json.dumps, wrong), "<html>", ""]:
            status, said = request(port, "POST", "/invocations", body, JSON)
            assert 400 <= status < 500, (body, status, said)
            assert b"root:" not in said
        assert request(port, "POST", "/invocations", json.dumps(good), JSON)[0] == 200
    measured(f"{len(wrong) + 2} bodies without an image to mlflow models serve: 4xx")
