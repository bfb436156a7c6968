"""MLflow's server behind two limits that it lacks: `mlflow server --app-name uotft`.

MLflow reads a body into memory before it looks at it; here it is counted first. Files that a client
sends to be kept are the exception: MLflow writes them to the disk as they come.

And it lets whoever asks have the artifacts of an experiment lie in any folder of this machine: here
the server alone says where.
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
    """An ASGI application that asks MLflow's once the body is known to be small.

    MLflow takes a function for one that makes an application.
    """

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        from mlflow.server.fastapi_app import app as mlflow  # seconds: not where it is looked up

        if scope["type"] != "http" or (scope["method"] == "PUT" and STREAMED.match(scope["path"])):
            await mlflow(scope, receive, send)
            return
        said = dict(scope["headers"]).get(b"content-length", b"0")
        size = int(said) if said.isdigit() else 0
        body, more = bytearray(), True
        while more and size <= MOST:
            message = await receive()
            if message["type"] != "http.request":  # the client has gone
                return
            body += message.get("body", b"")
            size, more = max(size, len(body)), message.get("more_body", False)
        if size > MOST:
            await _refuse(send, 413, f"the body is larger than {MOST} bytes")
            return
        if scope["path"].endswith("/experiments/create") and _places(bytes(body)):
            await _refuse(send, 403, "artifact_location: the server says where artifacts lie")
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
    """Whether a request names a place for artifacts, as MLflow would read it."""
    try:
        asked = json.loads(body)
        asked = json.loads(asked) if isinstance(asked, str) else asked  # as old clients send it
    except ValueError:
        return False  # MLflow refuses it
    return isinstance(asked, dict) and bool(
        asked.keys() & {"artifact_location", "artifactLocation"}
    )


app = Guard()
