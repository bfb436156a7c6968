"""`make graph`: write into dvc.yaml the code that each stage depends on.

A stage depends on all code that decides its result: every module that its own,
src/uotft/pipeline/STAGE.py, imports at the top or in a function, and what those import, and so on.
NO_RESULT says what is left out, and why. The variants of a registry (data sets, backbones, …) are
loaded by name, so a stage depends on the one that params.yaml names, ${…}, and on what any variant
of the kind imports. tests/repository/test_stage_code.py fails when dvc.yaml says something else.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import TypeGuard

import yaml

from import_graph import Package, walk

ROOT = Path(__file__).parents[1]

#: What decides no result: a change there runs nothing again. Modules, or whole packages.
NO_RESULT = {
    "core.context": "whom the work tells, and who may stop it",
    "core.disk": "says how much a command needs, before it starts",
    "core.environment": "switches reports home off, and says where DVC keeps its indexes",
    "core.errors": "messages",
    "core.locks": "who may write; not what is written",
    "core.messages": "messages",
    "core.progress": "the progress bar",
    "core.text": "pieces of messages",
    "core.user_settings": "from which mirror files come; their checksums say which they are",
    "training.checkpoints": "where an interrupted training goes on; it ends with the same bits",
    "tracking": "tells MLflow what was done, afterwards",
}
#: {kind of variant: (its package, its file in a stage's deps)}; "": the whole package, for a stage
#: that runs several
VARIANTS = {
    "datasets": ("data.datasets", "${item.kind}"),
    "backbones": ("models.backbones", "${backbone.name}"),
    "strategies": ("selection.strategies", ""),
    "objectives": ("training.objectives", "${train.objective}"),
}
#: Kinds that few stages run, although others import what loads them: later ones read the file that
#: the variant has made, and pretrain trains by `plain`, whatever train.objective says.
RUN_IN = {"datasets": {"prepare"}, "strategies": {"select"}, "objectives": {"train", "compare"}}
#: Variants that run another one of their kind, which params.yaml names in a place that only they
#: have. A backbone that is new runs its own cells only: as an architecture it is not watched.
NAMED_WITHIN = {
    "models.backbones.state_dict": [
        "efficientnet_lite0",
        "resnet18",
        "resnet50",
        "small_resnet",
        "timm",
    ],
}
#: Variants of a kind that run beside the one in params.yaml: `plain` where no class is kept, and
#: both in the controls that every project knows.
BESIDE = {"objectives": ["frozen", "plain"]}


class Code:
    """The code of every stage of a tree's dvc.yaml."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.package = Package(root / "src" / "uotft")
        self.no_result = {m for m in self.package.files if _within(m, NO_RESULT)}

    @cached_property
    def pipeline(self) -> dict[str, list[str]]:
        """{stage: its deps}, as dvc.yaml has them."""
        stages = yaml.safe_load((self.root / "dvc.yaml").read_text("utf-8"))["stages"]
        return {name: stage.get("do", stage)["deps"] for name, stage in stages.items()}

    @cache  # noqa: B019  it lives as long as the command
    def kinds(self, stage: str) -> frozenset[str]:
        """The kinds of variants that a stage runs."""
        modules = self._closure(f"pipeline.{stage}")
        found = {kind for module in modules for kind in self._loaded(module)}
        return frozenset(kind for kind in found if stage in RUN_IN.get(kind, {stage}))

    @cache  # noqa: B019
    def files(self, stage: str) -> frozenset[str]:
        """The files that decide the result of a stage, without the variants loaded by name."""
        modules = self._closure(f"pipeline.{stage}")
        for kind in self.kinds(stage):
            modules |= {f"{VARIANTS[kind][0]}.{name}" for name in BESIDE.get(kind, ())}
            for variant in self._variants(kind):
                modules |= self._closure(variant) - {variant}
                modules |= {
                    f"{variant.rpartition('.')[0]}.{name}" for name in NAMED_WITHIN.get(variant, ())
                }
        every = [self._full(module) for module in modules]
        read = {file for module in every for file in self._templates(module)}
        return frozenset(read | {self.path(module) for module in every if self._has_code(module)})

    def deps(self, stage: str) -> list[str]:
        """The code among the deps of a stage, as dvc.yaml should have it: sorted, short."""
        files = self.files(stage)
        named = {self._pattern(kind) for kind in self.kinds(stage)}
        for folder in named:
            files -= self._below(folder)
        for folder in self._whole_folders():
            if (inside := self._below(folder)) <= files:
                files = files - inside | {folder}
        return sorted(files | named)

    def problems(self, stage: str) -> Iterator[str]:
        """What is wrong with the deps of a stage: a file that is missing, or one too many."""
        there = {dep for dep in self.pipeline[stage] if dep.startswith("src/")}
        files, patterns = self.files(stage), {self._pattern(kind) for kind in self.kinds(stage)}
        covered = {file for dep in there for file in (dep, *self._below(dep))}
        for file in sorted((files | patterns) - covered):
            yield f"stage {stage}: {file} decides its result and is not among its deps"
        files |= {file for folder in patterns for file in self._below(folder)}
        for dep in sorted(there - files - patterns):
            if not self._below(dep):
                yield f"stage {stage}: {dep} is among its deps and never imported"
            for file in sorted(self._below(dep) - files):
                yield f"stage {stage}: {file}, below its dep {dep}, is never imported"

    def path(self, module: str) -> str:
        """A module's file, from the root."""
        return self.package.files[module].relative_to(self.root).as_posix()

    def _closure(self, name: str) -> set[str]:
        found = self.package.closure(self._full(name), self.no_result)
        return {module.removeprefix(f"{self.package.name}.") for module in found}

    def _full(self, name: str) -> str:
        return name if name == self.package.name else f"{self.package.name}.{name}"

    def _variants(self, kind: str) -> list[str]:
        inside = f"{self._full(VARIANTS[kind][0])}."
        short = (m.removeprefix(f"{self.package.name}.") for m in self.package.files
                 if m.startswith(inside))  # fmt: skip
        return sorted(short)

    def _pattern(self, kind: str) -> str:
        package, name = VARIANTS[kind]
        folder = f"src/{self.package.name}/{package.replace('.', '/')}"
        return f"{folder}/{name}.py" if name else folder

    def _has_code(self, module: str) -> bool:
        """Whether there is more in a file than a docstring."""
        body = self.package.trees[module].body
        return any(not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
                   for node in body)  # fmt: skip

    def _templates(self, module: str) -> set[str]:
        """The files from which a module makes pages: `PackageLoader(PACKAGE)`, by Jinja2."""
        packages = [
            ast.literal_eval(call.args[0])
            for call in _calls(self.package.trees[module])
            if ast.unparse(call.func).endswith("PackageLoader")
        ]
        folders = [self.package.files[package].parent / "templates" for package in packages]
        every = (path for folder in folders for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(self.root).as_posix() for path in every}

    def _whole_folders(self) -> list[str]:
        """Packages without a registry or a package in them, with several modules."""
        registries = {self._full(package) for package, _ in VARIANTS.values()}
        around = {parent for module in self.package.files for parent in self.package.parents(module)
                  if self.package.is_package(module)}  # fmt: skip
        packages = {m for m in self.package.files if self.package.is_package(m)}
        folders = [
            self.path(m).removesuffix("/__init__.py") for m in packages - registries - around
        ]
        return sorted(folder for folder in folders if len(self._below(folder)) > 1)

    def _below(self, folder: str) -> set[str]:
        """The files with code below a folder."""
        return {path for module in self.package.files
                if (path := self.path(module)).startswith(f"{folder}/")
                and self._has_code(module)}  # fmt: skip

    @cached_property
    def _loaders(self) -> dict[str, str]:
        """{MODULE.FUNCTION of core that returns a variant's module: the kind}."""
        found: dict[str, str] = {}
        for module, tree in self.package.trees.items():
            if f"{self.package.name}.core." not in module:
                continue
            prefix = module.rpartition(".")[2]
            functions = [node for node in ast.walk(tree) if _returns_a_module(node)]
            for function in (*functions, *functions):  # one may call another that stands below
                for call in _calls(function):
                    if kind := _kind(call) or found.get(f"{prefix}.{ast.unparse(call.func)}"):
                        found[f"{prefix}.{function.name}"] = kind
        return found

    def _loaded(self, module: str) -> set[str]:
        """The kinds of variants that a module loads itself, or through core."""
        if module.startswith("core."):
            return set()
        tree = self.package.trees[self._full(module)]
        names = {
            alias.asname or alias.name: f"{(node.module or '').rpartition('.')[2]}.{alias.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        calls = [(_kind(call), ast.unparse(call.func)) for call in _calls(tree)]
        found = {kind or self._loaders.get(names.get(name, name), "") for kind, name in calls}
        return found & set(VARIANTS)


def _returns_a_module(node: ast.AST) -> TypeGuard[ast.FunctionDef]:
    returns = node.returns if isinstance(node, ast.FunctionDef) else None
    return returns is not None and "ModuleType" in ast.unparse(returns)


def _calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in walk(tree) if isinstance(node, ast.Call))


def _kind(call: ast.Call) -> str:
    """The kind that `registry.load(kind, …)` names."""
    if ast.unparse(call.func) == "registry.load" and isinstance(call.args[0], ast.Constant):
        return str(call.args[0].value)
    return ""


def _within(module: str, names: dict[str, str]) -> bool:
    short = module.partition(".")[2]
    return any(short == name or short.startswith(f"{name}.") for name in names)


def written(text: str, code: dict[str, list[str]]) -> str:
    """dvc.yaml with this code as the last entries of each stage's deps; all else as it was."""
    made: list[str] = []
    stage, indent = "", ""

    def end() -> None:
        nonlocal indent
        if indent:
            made.extend(f"{indent}  - {dep}\n" for dep in code[stage])
        indent = ""

    for line in text.splitlines(keepends=True):
        if found := re.match(r"  (\w+):$", line):
            stage = found[1]
        if indent and not line.startswith(f"{indent}  "):
            end()
        if indent and line.strip().startswith("- src/"):
            continue
        made.append(line)
        if line.strip() == "deps:" and stage in code:
            indent = line[: line.index("deps:")]
    end()
    return "".join(made)


def main() -> None:
    """Write dvc.yaml anew."""
    code, path = Code(ROOT), ROOT / "dvc.yaml"
    before = path.read_text("utf-8")
    after = written(before, {stage: code.deps(stage) for stage in code.pipeline})
    path.write_text(after, "utf-8")
    print(f"{path.name}: {'changed' if after != before else 'as it should be'}")


if __name__ == "__main__":
    main()
