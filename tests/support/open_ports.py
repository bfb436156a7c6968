"""What a process and those that descend from it listen on; Linux only."""

from __future__ import annotations

import re
import socket
import struct
from pathlib import Path

LISTENS = "0A"  # the state of a TCP socket in /proc/net/tcp


def descendants(leader: int) -> list[int]:
    """The processes that descend from ``leader``, which may be gone."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue
        parents[int(stat.parent.name)] = int(text.rpartition(")")[2].split()[1])
    found, before = {leader}, set()
    while found != before:
        before = found
        found = found | {process for process, parent in parents.items() if parent in found}
    return sorted(found - {leader})


def addresses(process: int) -> set[str]:
    """The addresses, without ports, on which a process listens."""
    inodes = set()
    try:
        links = [*Path(f"/proc/{process}/fd").iterdir()]
    except OSError:  # it has just ended
        return set()
    for link in links:
        try:
            if match := re.fullmatch(r"socket:\[(\d+)\]", str(link.readlink())):
                inodes.add(match[1])
        except OSError:
            continue
    found = set()
    for name, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        try:
            lines = Path(f"/proc/{process}/net/{name}").read_text().splitlines()[1:]
        except OSError:
            continue
        for fields in (line.split() for line in lines):
            if fields[3] == LISTENS and fields[9] in inodes:
                raw = bytes.fromhex(fields[1].partition(":")[0])
                swapped = struct.pack(
                    f"<{len(raw) // 4}I", *struct.unpack(f">{len(raw) // 4}I", raw)
                )
                found.add(socket.inet_ntop(family, swapped))
    return found
