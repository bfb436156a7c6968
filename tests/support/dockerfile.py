"""What the Dockerfile says, instruction by instruction."""

from __future__ import annotations

import re

from support.repository import REPOSITORY

Stage = list[tuple[str, str]]  # (instruction, the rest of its line)


def stages() -> list[Stage]:
    """The stages from FROM to FROM, after what stands before the first one; lines are joined."""
    text = re.sub(r"(?m)^#.*\n", "", (REPOSITORY / "Dockerfile").read_text("utf-8"))
    found: list[Stage] = [[]]
    for line in re.sub(r"\s*\\\n\s*", " ", text).splitlines():
        if line.strip():
            name, rest = line.split(maxsplit=1)
            if name == "FROM":
                found.append([])
            found[-1].append((name, rest))
    return found


def values(stage: Stage, name: str) -> list[str]:
    """The rest of every such instruction of a stage."""
    return [rest for found, rest in stage if found == name]


def environment(stage: Stage) -> dict[str, str]:
    """What ENV says in a stage."""
    words = [word for rest in values(stage, "ENV") for word in rest.split()]
    return dict(word.split("=", 1) for word in words)
