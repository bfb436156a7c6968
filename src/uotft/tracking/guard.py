"""MLflow's server behind two limits that it lacks: `mlflow server --app-name uotft`.

1. MLflow reads a request's body into memory before it checks it; the guard counts bytes first.
   Uploads of artifacts are the exception: MLflow writes them to disk as they arrive.
2. MLflow lets any client choose the folder on this machine in which an experiment's artifacts lie;
   behind the guard only the server chooses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

MOST = 2**24  # bytes; MLflow's own client sends a megabyte at most
STREAMED = re.compile(r"/(ajax-)?api/2\.0/mlflow-artifacts/artifacts/")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Guard:
    """An ASGI application that calls MLflow's once the body is known to be small.

    An object, since MLflow would take a function for a factory of applications.
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
            await _refuse(send, 403, "artifact_location: the server chooses where artifacts lie")
            return
        whole = iter([{"type": "http.request", "body": bytes(body), "more_body": False}])

        async def again() -> Message:
            return next(whole, None) or await receive()

        await mlflow(scope, again, send)


async def _refuse(send: Send, status: int, words: str) -> None:
    head = [(b"content-type", b"text/plain"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": words.encode()})


def _places(body: bytes) -> bool:
    """Whether a request names a folder for artifacts, read as MLflow would read it."""
    try:
        asked = json.loads(body)
        asked = json.loads(asked) if isinstance(asked, str) else asked  # as old clients send it
    except ValueError:
        return False  # MLflow refuses it
    return isinstance(asked, dict) and bool(
        asked.keys() & {"artifact_location", "artifactLocation"}
    )


app = Guard()
