"""What MLflow's server lacks, in front of it: `mlflow server --app-name uotft`.

1. MLflow reads a request's body into memory before it checks it. The guard refuses large bodies
   first; except uploads of artifacts, which MLflow writes to disk as they arrive.
2. MLflow lets any client choose a folder on this machine for an experiment's artifacts. The guard
   refuses such requests, so the server chooses.
3. MLflow's compare page begins with the first metric of the runs, the one that was logged first.
   The guard puts the test accuracy first, where a run has it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

MOST = 2**24  # bytes of a request's body; MLflow's own client sends at most 2**20
FIRST = "test/top1"
RUNS = ("/mlflow/runs/get", "/mlflow/runs/search")  # the page keeps the first order it gets
STREAMED = re.compile(r"/(ajax-)?api/2\.0/mlflow-artifacts/artifacts/")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Guard:
    """An ASGI application that passes a request on to MLflow's if its body is small.

    It is an object because MLflow would call a function as an application factory.
    """

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        from mlflow.server.fastapi_app import app as mlflow  # takes seconds, so not at import

        if scope["type"] != "http" or (scope["method"] == "PUT" and STREAMED.match(scope["path"])):
            await mlflow(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        size = int(length) if length.isdigit() else 0
        body, more = bytearray(), True
        while more and size <= MOST:
            message = await receive()
            if message["type"] != "http.request":  # the client has disconnected
                return
            body += message.get("body", b"")
            size, more = max(size, len(body)), message.get("more_body", False)
        if size > MOST:
            await _refuse(send, 413, f"the body is larger than {MOST} bytes")
            return
        if scope["path"].endswith("/experiments/create") and _places(bytes(body)):
            await _refuse(send, 403, "artifact_location: only the server chooses this folder")
            return
        whole = iter([{"type": "http.request", "body": bytes(body), "more_body": False}])

        async def again() -> Message:
            return next(whole, None) or await receive()

        await mlflow(scope, again, _Ordered(send) if scope["path"].endswith(RUNS) else send)


class _Ordered:
    """Sends an answer that is runs, with the test accuracy before the other metrics of each."""

    def __init__(self, send: Send) -> None:
        self.send, self.start, self.body = send, dict[str, Any](), bytearray()

    async def __call__(self, message: Message) -> None:
        """Keep a part of the answer; send the whole with its last part."""
        if message["type"] == "http.response.start":
            self.start = dict(message)
            return
        self.body += message.get("body", b"")
        if message.get("more_body", False):
            return
        body = ordered(bytes(self.body))
        kept = [(k, v) for k, v in self.start["headers"] if k.lower() != b"content-length"]
        length = (b"content-length", str(len(body)).encode())
        await self.send({**self.start, "headers": [*kept, length]})
        await self.send({"type": "http.response.body", "body": body})


def ordered(body: bytes) -> bytes:
    """Runs in JSON with the test accuracy of each first; anything else as it is."""
    try:
        answer = json.loads(body)
        for run in answer["runs"] if "runs" in answer else [answer["run"]]:
            run["data"].get("metrics", []).sort(key=lambda metric: metric["key"] != FIRST)
    except (ValueError, LookupError, TypeError, AttributeError):  # an error
        return body
    return json.dumps(answer).encode()


async def _refuse(send: Send, status: int, message: str) -> None:
    head = [(b"content-type", b"text/plain"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": message.encode()})


def _places(body: bytes) -> bool:
    """Whether a request chooses a folder for artifacts; parsed as MLflow parses it."""
    try:
        asked = json.loads(body)
        asked = json.loads(asked) if isinstance(asked, str) else asked  # old clients encode twice
    except ValueError:
        return False  # MLflow will refuse it
    return isinstance(asked, dict) and bool(
        asked.keys() & {"artifact_location", "artifactLocation"}
    )


app = Guard()
