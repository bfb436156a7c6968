"""What the source tree measures: `python .ci/structure.py [ROOT]`, for this tree or another one.

    --check        only the functions that are too long or take too much; exit code 1 if any do
    --path NAME    the modules that name a setting, from the command line down
    --docs BEFORE  write docs/architecture.md's table: the tree BEFORE beside this one

A *unit* is a module or a sub-package directly below src/uotft. An *edge* leads from one unit to
another that it imports, wherever the import stands: at the top, in a function, below TYPE_CHECKING;
`from uotft import config` is an edge to config and not to uotft, which no unit is. Cycles among
modules leave out what is below TYPE_CHECKING. A function is as long as from `def` to its last line;
self and cls are no parameters. Commands of Typer are listed and not counted: each of their options
is a parameter.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from import_graph import Package, cycles

LINES, PARAMETERS = 60, 8
MARKS = re.compile(r"# (noqa|fmt:|type:)")  # for tools, not for readers
LAYERS = [
    "cli", "api", "runs", "pipeline", "analysis", "training", "selection", "models", "data",
    "tracking", "core",
]  # fmt: skip
MARKERS = "<!-- measures -->", "<!-- end -->"
Found = tuple[str, int, bool]  # what and where, how much, whether it is a command of Typer


def functions(path: Path, shown: Path) -> Iterator[tuple[str, int, int, bool]]:
    """(place and name, lines, parameters, is a command) of every function of a file."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        args = node.args
        names = [a.arg for a in (*args.posonlyargs, *args.args, *args.kwonlyargs)]
        count = len([name for name in names if name not in ("self", "cls")])
        count += bool(args.vararg) + bool(args.kwarg)
        where = f"{path.relative_to(shown)}:{node.lineno} {node.name}"
        command = any(_name(d).endswith((".command", ".callback")) for d in node.decorator_list)
        command |= f"{path.stem}.{node.name}" in _registered(path.with_name("app.py"))
        yield where, (node.end_lineno or node.lineno) - node.lineno + 1, count, command


@cache
def _registered(app: Path) -> set[str]:
    """What cli/app.py makes commands of without a decorator: MODULE.FUNCTION in its loop."""
    if app.parent.name != "cli" or not app.is_file():
        return set()
    loops = [n for n in ast.walk(ast.parse(app.read_bytes())) if isinstance(n, ast.For)]
    return {ast.unparse(name) for loop in loops for name in ast.walk(loop.iter)
            if isinstance(name, ast.Attribute)}  # fmt: skip


def _name(decorator: ast.expr) -> str:
    return ast.unparse(decorator.func if isinstance(decorator, ast.Call) else decorator)


def too_much(root: Path, folder: str) -> tuple[list[Found], list[Found]]:
    """The functions over 60 lines, and those over 8 parameters, most first."""
    every = [f for path in sorted((root / folder).rglob("*.py")) for f in functions(path, root)]
    long = [(name, lines, command) for name, lines, _, command in every if lines > LINES]
    wide = [(name, n, command) for name, _, n, command in every if n > PARAMETERS]
    return sorted(long, key=lambda f: -f[1]), sorted(wide, key=lambda f: -f[1])


def unit_edges(package: Package) -> dict[str, set[str]]:
    """{unit: the other units that it imports}."""
    edges: dict[str, set[str]] = {}
    for module in package.files:
        if unit := _unit(module):
            there = {_unit(name) for name in package.imports(module, typing=True)}
            edges.setdefault(unit, set()).update(there - {"", unit})
    return edges


def _unit(module: str) -> str:
    return ".".join(module.split(".")[1:2])


def size(root: Path, folder: str) -> tuple[int, int, str, str]:
    """Files, lines, the folder with the most modules, and the share of comments."""
    paths = sorted((root / folder).rglob("*.py"))
    lines, alone, said = 0, 0, 0
    for path in paths:
        text = path.read_text("utf-8")
        lines += text.count("\n")
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT and not MARKS.match(token.string):
                said += 1
                alone += token.line.lstrip().startswith("#")
    folders = Counter(path.parent for path in paths if path.name != "__init__.py")
    largest, number = folders.most_common(1)[0]
    share = f"{100 * said / lines:.1f} %, alone on their line {100 * alone / lines:.1f} %"
    return len(paths), lines, f"{number} in {largest.relative_to(root)}", share


def measures(root: Path) -> Iterator[tuple[str, str]]:
    """(what is measured, the number), in the order of docs/architecture.md."""
    package = Package(root / "src" / "uotft")
    edges = unit_edges(package)
    for folder in ("src/uotft", "tests"):
        files, lines, largest, comments = size(root, folder)
        yield f"{folder}: files", str(files)
        yield f"{folder}: lines", f"{lines:,}"
        yield f"{folder}: modules in the largest folder", largest
        yield f"{folder}: comments, of all lines", comments
        long, wide = too_much(root, folder)
        yield f"{folder}: functions over {LINES} lines", _counted(long)
        yield f"{folder}: functions over {PARAMETERS} parameters", _counted(wide)
    yield "units directly below src/uotft", str(len(edges))
    yield "import edges between units", str(sum(map(len, edges.values())))
    for name in ("strategy", "cost_scale", "seed"):
        yield f"modules that name `{name}`", str(len(passes(package, name)))
    yield "cycles among units", _shown(cycles(edges))
    yield "cycles among modules", _shown(cycles({m: package.imports(m) for m in package.files}))


def _counted(found: list[Found]) -> str:
    commands = sum(command for *_, command in found)
    return f"{len(found) - commands}" + (f"; commands of Typer: {commands}" if commands else "")


def _shown(groups: list[list[str]]) -> str:
    return "; ".join([str(len(groups)), *(" <-> ".join(group) for group in groups)])


def passes(package: Package, name: str) -> list[str]:
    """The modules with ``name`` as argument, keyword, attribute, field or key; top layer first."""
    found = [module for module, tree in package.trees.items() if name in set(_words(tree))]
    rank = {layer: i for i, layer in enumerate(LAYERS)}
    return sorted(found, key=lambda module: (rank.get(_unit(module), -1), module))


def _words(tree: ast.Module) -> Iterator[object]:
    for node in ast.walk(tree):
        match node:
            case ast.arg(arg=word) | ast.keyword(arg=word) | ast.Attribute(attr=word):
                yield word
            case ast.AnnAssign(target=ast.Name(id=word)) | ast.Subscript(slice=ast.Constant(word)):
                yield word
            case ast.Dict(keys=keys):
                yield from (key.value for key in keys if isinstance(key, ast.Constant))


def write_table(page: Path, before: Path, after: Path) -> None:
    """Put the measures of two trees where the page has its markers."""
    rows = zip(measures(before), measures(after), strict=True)
    lines = [f"| {what} | {old} | {new} |\n" for (what, old), (_, new) in rows]
    head, opened, rest = page.read_text("utf-8").partition(MARKERS[0])
    _, closed, tail = rest.partition(MARKERS[1])
    table = "\n\n| | before | after |\n|---|---|---|\n" + "".join(lines) + "\n"
    page.write_text(f"{head}{opened}{table}{closed}{tail}", "utf-8")


def main() -> int:
    """Print the measures, one path, or what is too long."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("root", nargs="?", type=Path, default=Path(__file__).parents[1])
    parser.add_argument("--check", action="store_true", help="exit code 1 for what is too long")
    parser.add_argument("--path", metavar="NAME", help="the modules that a setting passes through")
    parser.add_argument("--docs", metavar="BEFORE", type=Path, help="write the table of the docs")
    options = parser.parse_args()
    root = options.root.resolve()
    if options.docs:
        write_table(root / "docs" / "architecture.md", options.docs.resolve(), root)
        return 0
    if options.path:
        modules = passes(Package(root / "src" / "uotft"), options.path)
        print(f"{options.path}: {len(modules)} modules")
        print(*(f"  {module}" for module in modules), sep="\n")
        return 0
    long, wide = too_much(root, "src/uotft")
    bad = [f"{name}: {n} lines, {LINES} at most" for name, n, _ in long]
    bad += [f"{name}: {n} parameters, {PARAMETERS} at most" for name, n, c in wide if not c]
    if not options.check:
        for what, number in measures(root):
            print(f"{what:<44} {number}")
        bad += [f"{name}: {n} parameters (a command)" for name, n, c in wide if c]
    print(*bad, sep="\n", end="\n" if bad else "")
    return int(options.check and bool(bad))


if __name__ == "__main__":
    sys.exit(main())
