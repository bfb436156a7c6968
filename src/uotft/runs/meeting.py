"""How the workers of one training find each other: by a file on one machine, a port on several.

The file is safer than a port that strangers could connect to: on one machine only gloo and NCCL
listen, on 127.0.0.1. Accelerate then uses the process group that exists
(docs/decisions/0023-ranks-meet-through-a-file.md).
"""

from __future__ import annotations

from datetime import timedelta

from uotft.core import environment
from uotft.core.errors import UserError


def meet() -> None:
    """Wait for the other workers, and form torch's process group with them.

    Does nothing in a single process, or under torchrun or `accelerate launch`, where Accelerate
    forms the group. Raises `UserError` if a worker does not come in time.
    """
    file, seconds = environment.meeting_file(), environment.meeting_seconds()
    place = environment.launched()
    if place is None or not (file or seconds):
        return
    import torch
    from torch import distributed
    from torch.distributed import FileStore, TCPStore  # type: ignore[attr-defined]

    rank, world = place
    try:
        store: FileStore | TCPStore
        if file:
            store = FileStore(file, world)
        else:
            address, port = environment.main_address()
            patience = timedelta(seconds=seconds)
            store = TCPStore(address, port, world, rank == 0, timeout=patience)
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend, store=store, rank=rank, world_size=world)
    except distributed.DistError as error:
        who = "workers" if file else "machines"
        raise UserError(f"the {who} did not meet: {error}") from error
