"""`torch.distributed.run` that ends with its workers' exit code, and without tracebacks of its own.

python -m uotft.runs.launcher --standalone --nproc-per-node N -m uotft.runs.worker …

With --standalone, on one machine, all that it and its workers listen on is that machine's own
(docs/decisions/0022-who-may-reach-what.md).
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys

HERE = "127.0.0.1"
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"


def main(arguments: list[str]) -> int:
    """Run the workers; returns the exit code of the one that failed first."""
    from torch.distributed import DistError, run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from uotft.core.errors import killed
    from uotft.runs.processes import INTERRUPTED

    # all have finished by then; machine 0, which holds what they wait by, may be the first to leave
    agent = logging.getLogger("torch.distributed.elastic.agent.server.api")
    agent.addFilter(lambda record: "exit barrier" not in record.getMessage())
    try:
        run.main(_here(arguments) if arguments[:1] == ["--standalone"] else arguments)
    except SignalException:  # it has asked the workers to stop, and waited for them
        return INTERRUPTED
    except DistError as error:
        print(f"uotft: the machines did not meet: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except ChildFailedError as error:  # the worker has said why
        rank, first = error.get_first_failure()
        code: int = first.exitcode
        if code == -signal.SIGTERM:  # before it had begun
            return INTERRUPTED
        if code < 0:
            who = f"worker {rank} of them, process {first.pid},"
            print(f"uotft: {killed(who, -code)}", file=sys.stderr)  # noqa: T201
        return code if code > 0 else 128 - code
    return 0


def _here(arguments: list[str]) -> list[str]:
    """The same on a store of this machine's own; torch's --standalone listens on every address.

    What is read from that store is unpickled.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]
    from torch.distributed.elastic.rendezvous import (
        RendezvousHandler,
        RendezvousInfo,
        RendezvousParameters,
        RendezvousStoreInfo,
        rendezvous_handler_registry,
    )
    from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous

    class Here(StaticTCPRendezvous):
        def get_backend(self) -> str:
            return "here"

        def next_rendezvous(self) -> RendezvousInfo:
            listener = socket.create_server((HERE, 0))
            port = listener.getsockname()[1]
            self._store = TCPStore(
                HERE, port, is_master=True, wait_for_workers=False,
                master_listen_fd=listener.detach(),
            )  # fmt: skip
            return RendezvousInfo(self._store, 0, 1, RendezvousStoreInfo(HERE, port))

    def make(parameters: RendezvousParameters) -> RendezvousHandler:
        return Here(HERE, 0, 0, 1, parameters.run_id, timeout=0)

    rendezvous_handler_registry.register("here", make)
    for library in ("GLOO", "NCCL"):  # they choose the first address that others can reach
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", LOOPBACK)
    return ["--rdzv-backend", "here", *arguments[1:]]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
