"""Serves MLflow's page on the runs of a store, in one process, until the user stops it.

MLflow checks the Host and Origin of a request but has no passwords: each client that it answers can
read and change everything. So by default it listens only on this machine.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from time import sleep

from uotft.core import environment, signals
from uotft.core.errors import UserError
from uotft.tracking.store import make_store, shown, store_uri

POLL_S = 0.2
AT_ONCE = 64  # connections; others get "try again", so that all request bodies fit into memory
HERE = ("127.0.0.1", "localhost", "::1")
EVERYWHERE = ("0.0.0.0", "::")
QUIET = {
    "PYTHONWARNINGS": "ignore",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # saves 13 processes, for language models
}


def serve(home: Path, host: str, port: int, say: Callable[[str], None]) -> None:
    """Serve the store until Ctrl-C or SIGTERM; ``say`` gets the addresses once the page answers.

    A taken port, a store that is a server itself, and a server that fails are a ``UserError``.
    """
    uri = store_uri(home)
    if uri.startswith(("http:", "https:")):
        raise UserError(
            f"MLFLOW_TRACKING_URI: {shown(home)} is already a server; open it in a browser"
        )
    with suppress(KeyboardInterrupt), signals.as_ctrl_c():  # Ctrl-C is the normal end
        _must_be_free(host, port)
        make_store(home)
        with signals.running(
            _command(host, port, home / "mlruns"),
            # everyone on this machine can read a command line, and the store may have a password
            env=environment.child(QUIET | {"MLFLOW_BACKEND_STORE_URI": uri}),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        ) as server:
            place = _place(host, port)
            _wait(server, place)
            say(f"MLflow: http://{place} (Ctrl-C stops it)")
            for number, name in _experiments(place):
                # without this query MLflow opens its pages for language models, which are empty
                page = f"experiments/{number}/runs?workflowType=machine_learning"
                say(f"{name}: http://{place}/#/{page}")
            server.wait()
        raise UserError(f"the tracking server ended with exit code {server.returncode}")


def _must_be_free(host: str, port: int) -> None:
    """Raise if the port is taken, before starting the server, which takes seconds."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"--port {port} on --host {host}: {error.strerror}; choose another --port, or stop "
                "the program that uses this one"
            ) from error


def _command(host: str, port: int, artifacts: Path) -> list[str]:
    options = ["--host", host, "--port", str(port), "--workers", "1"]
    options += ["--app-name", "uotft"]  # uotft.tracking.guard
    quiet = "--log-level warning --timeout-graceful-shutdown 3"
    options += ["--artifacts-destination", str(artifacts)]  # for runs sent by other clients
    options += ["--uvicorn-opts", f"{quiet} --limit-concurrency {AT_ONCE}"]
    # MLflow refuses its own page under a host name that is not in these lists
    names = [socket.gethostname(), socket.getfqdn()] if host in EVERYWHERE else [host]
    places = dict.fromkeys(_place(name, port) for name in (*HERE, *names))
    if "MLFLOW_SERVER_ALLOWED_HOSTS" not in os.environ:
        options += ["--allowed-hosts", ",".join(places)]
    if "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS" not in os.environ:
        options += ["--cors-allowed-origins", ",".join(f"http://{place}" for place in places)]
    return [sys.executable, "-m", "uotft.tracking.mlflow_command", "server", *options]


def _wait(server: subprocess.Popen[bytes], place: str) -> None:
    """Return when the server answers; a ``UserError`` if it ends before."""
    while server.poll() is None:
        with closing(HTTPConnection(place, timeout=5)) as line:
            try:
                line.request("GET", "/health")
                if line.getresponse().status == 200:
                    return
            except (OSError, HTTPException):
                sleep(POLL_S)
    raise UserError(
        f"the tracking server did not start: exit code {server.returncode}, see its message above"
    )


def _experiments(place: str) -> list[tuple[str, str]]:
    """(id, name) of the experiments, newest first, without MLflow's empty Default."""
    with closing(HTTPConnection(place, timeout=60)) as line:
        query = json.dumps({"max_results": 20, "order_by": ["last_update_time DESC"]})
        kind = {"Content-Type": "application/json"}
        line.request("POST", "/api/2.0/mlflow/experiments/search", query, kind)
        found = json.load(line.getresponse()).get("experiments", [])
    return [(e["experiment_id"], e["name"]) for e in found if e["name"] != "Default"]


def _place(host: str, port: int) -> str:
    """The server's address, HOST:PORT."""
    name = "127.0.0.1" if host in EVERYWHERE else host
    return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"
