"""Which module of a package imports which, read from the source by `ast`: nothing is run.

Used by `.ci/structure.py` (what the tree measures) and `.ci/stage_code.py` (what DVC watches).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Set
from functools import cache, cached_property
from pathlib import Path


class Package:
    """The modules below a folder, by dotted name; a package is its ``__init__.py``."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name
        self.files = {self._dotted(path): path for path in sorted(folder.rglob("*.py"))}

    def _dotted(self, path: Path) -> str:
        parts = (self.name, *path.relative_to(self.folder).with_suffix("").parts)
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @cached_property
    def trees(self) -> dict[str, ast.Module]:
        """{module: its parsed source}."""
        return {name: ast.parse(path.read_bytes()) for name, path in self.files.items()}

    def is_package(self, module: str) -> bool:
        """Whether a module is a folder."""
        return self.files[module].name == "__init__.py"

    @cache  # noqa: B019  the package lives as long as the command
    def imports(
        self, module: str, *, deferred: bool = True, typing: bool = False
    ) -> frozenset[str]:
        """The modules of the package that ``module`` names in its imports.

        ``deferred``: also those inside functions. ``typing``: also those below TYPE_CHECKING.
        """
        found: set[str] = set()
        for node in walk(self.trees[module], deferred=deferred, typing=typing):
            if isinstance(node, ast.Import):
                found |= {self._existing(alias.name) for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = self._base(module, node)
                found |= {self._existing(f"{base}.{alias.name}") for alias in node.names}
        return frozenset(found - {"", module})

    def _base(self, module: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts = module.split(".")
        up = node.level - self.is_package(module)
        return ".".join([*parts[: len(parts) - up], *([node.module] if node.module else [])])

    def _existing(self, dotted: str) -> str:
        """The longest beginning of a dotted name that is a module here; "" if none is."""
        while dotted and dotted not in self.files:
            dotted = dotted.rpartition(".")[0]
        return dotted

    def parents(self, module: str) -> Iterator[str]:
        """The packages around a module, which Python imports before it."""
        while module := module.rpartition(".")[0]:
            if module in self.files:
                yield module

    def closure(self, start: str, stop: Set[str] = frozenset()) -> set[str]:
        """All that may be imported once ``start`` is; modules of ``stop`` are left out, unread.

        Of a package that is only passed on the way to a module, only what its ``__init__.py``
        imports when it is loaded counts: functions there are of interest to those who name them.
        """
        named, passed = {start}, set[str]()
        new = [(start, True)]
        while new:
            module, deferred = new.pop()
            found = self.imports(module, deferred=deferred) - stop
            around = {p for name in (module, *found) for p in self.parents(name)} - stop
            new += [(name, True) for name in found - named]
            named |= found
            new += [(name, False) for name in around - named - passed]
            passed |= around
        return named | passed


def walk(tree: ast.AST, *, deferred: bool = True, typing: bool = True) -> Iterator[ast.AST]:
    """All nodes below one, without functions or `if TYPE_CHECKING:` bodies if so asked."""
    for child in ast.iter_child_nodes(tree):
        if not deferred and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        yield child
        if not typing and isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            for other in child.orelse:
                yield other
                yield from walk(other, deferred=deferred, typing=typing)
            continue
        yield from walk(child, deferred=deferred, typing=typing)


def cycles(edges: Mapping[str, Set[str]]) -> list[list[str]]:
    """Groups of nodes that reach each other, sorted; empty where there is no cycle."""
    reach = {name: set(targets) for name, targets in edges.items()}
    for middle in edges:
        for targets in reach.values():
            if middle in targets:
                targets |= reach[middle]
    groups = {
        tuple(sorted(other for other in reach[name] if name in reach.get(other, ())))
        for name in edges
        if name in reach[name]
    }
    return [list(group) for group in sorted(groups)]
