"""All that is written goes through ``store.write``: a temporary name, flushed to disk, renamed.

The syntax tree of src/ is read for other ways to write; those that there are have a reason here.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "uotft"
WRITERS = {
    "write_text", "write_bytes", "savefig", "save", "savez", "savez_compressed", "savetxt",
    "tofile", "to_csv", "to_parquet", "open_memmap", "memmap", "dump", "save_file",
    "copy", "copy2", "copyfile", "copyfileobj", "copytree", "move", "rename", "replace", "mkdtemp",
    "mkstemp", "NamedTemporaryFile", "truncate", "ftruncate", "pwrite",
}  # fmt: skip
OURS = {"storage", ""}  # storage.write_bytes, and its own use of it
TEXT = {"str", "name", "text", "line"}
REASONS = {
    "core/storage.py:write": "this is it",
    "core/storage.py:_rename": "this is it",
    "core/storage.py:write_arrays": "into the file of storage.write",
    "core/storage.py:taken": "a file without a name, mapped to be read",
    "pipeline/shard_banks.py:_save": "into the file of storage.write",
    "selection/features.py:keep": "into the file of storage.write",
    "selection/features.py:join": "a folder gets its name when all files in it are whole",
    "pipeline/data_export.py:_write_shards": "a folder gets its name when all in it is whole",
    "pipeline/data_export.py:_members": "a picture in memory",
    "analysis/figures.py:_png": "a picture in memory",
    "training/state.py:write": "safetensors in memory, for storage.write_bytes",
    "training/loop.py:checkpoint": "the keeper's, which is state.write",
    "selection/banks.py:_packed": "safetensors in memory, for storage.write_bytes",
    "runs/estimate.py:_decoding": "a picture in memory",
    "tracking/store.py:_make": "the database gets its name when MLflow has made it",
    "tracking/outbox.py:_numbered": "a folder gets its name when all in it is whole",
    "models/export.py:to_torch": "into memory",
    "data/shards.py:write": "into the file of storage.write",
    "models/model_io.py:write": "safetensors in memory, for storage.write_bytes",
    "data/pixel_cache.py:__init__": "a cache; a state that is written later tells what is there",
    "data/pixel_cache.py:_keep": "a cache; a state that is written later tells what is there",
    "data/pixel_cache.py:_create": "a folder gets its name when all files in it are there",
    "pipeline/freshness.py:claim": "a folder is set aside",
    "core/removal.py:remove": "a folder loses its name before its files go",
    "core/locks.py:exclusive": "a lock names its owner",
    "core/locks.py:_sign": "a lock names its owner",
    "runs/study.py:_make": "Optuna's database, made in a folder of its own",
    "data/archives.py:unpack": "unpacked again from the archive, which is checked",
    "data/archives.py:_extract": "unpacked again from the archive, which is checked",
    "data/class_downloads.py:_by_class": "downloads.fetch has checked it",
    "data/downloads.py:fetch": "a .part gets its name when its checksum is right",
    "pipeline/fetch.py:_take": "a copy of a checked file, renamed",
    "core/jsonl.py:append": "lines, of which only whole ones are read",
    "tracking/outbox.py:_keep": "a link; the line that names it is written after it",
    "tracking/outbox.py:_link": "a link, or a copy where there are none",
}  # fmt: skip


def writes(path: Path) -> Iterator[tuple[str, str]]:
    """(file:function, call) of all calls that may write."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    name = path.relative_to(SOURCE).as_posix()

    def walk(node: ast.AST, inside: str) -> Iterator[tuple[str, str]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Call) and is_write(child):
                yield f"{name}:{inside}", ast.unparse(child)
            at = child.name if isinstance(child, ast.FunctionDef) else inside
            yield from walk(child, at)

    yield from walk(tree, "")


def is_write(call: ast.Call) -> bool:
    """Whether a call may write to a file, by its name and, of ``open``, its mode."""
    called = call.func
    name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
    if name == "open":
        words = [*call.args, *(word.value for word in call.keywords if word.arg == "mode")]
        modes = [w.value for w in words if isinstance(w, ast.Constant) and isinstance(w.value, str)]
        return any(set("wax+") & set(mode) for mode in modes if len(mode) < 4)
    if name in ("copy", "replace", "rename", "truncate"):
        if not isinstance(called, ast.Attribute):
            return False
        many = 2 if name == "replace" else 0  # of text; of a path, one argument
        owner = ast.unparse(called.value)
        return owner in ("os", "shutil") or (
            name in ("rename", "replace") and len(call.args) != many
        )
    if name == "write_bytes" and isinstance(called, ast.Attribute):
        return ast.unparse(called.value) != "storage"
    return (
        name in WRITERS and isinstance(called, ast.Attribute | ast.Name) and name != "write_bytes"
    )


def test_all_that_is_written_is_written_whole() -> None:
    found = [found for path in sorted(SOURCE.rglob("*.py")) for found in writes(path)]
    strange = [f"{where}: {call}" for where, call in found if where not in REASONS]
    assert not strange, "write with storage.write, or give a reason here"
    assert not {*REASONS} - {where for where, _ in found}, "reasons that nothing needs"


@pytest.mark.parametrize(
    "line",
    [
        "open(path, 'w')",
        "path.open('ab')",
        "open(path, mode='x')",
        "path.write_text('')",
        "path.write_bytes(b'')",
        "np.save(path, a)",
        "figure.savefig(path)",
        "frame.to_csv(path)",
        "shutil.copyfile(a, b)",
        "os.replace(a, b)",
        "a.rename(b)",
        "json.dump(a, file)",
        "tempfile.mkdtemp()",
    ],
)
def test_a_write_is_seen(line: str) -> None:
    [statement] = ast.parse(line).body
    assert is_write(statement.value)


@pytest.mark.parametrize(
    "line", ["open(path)", "path.open('rb')", "storage.write_bytes(p, b)", "'a'.replace('b', 'c')"]
)
def test_reading_is_none(line: str) -> None:
    [statement] = ast.parse(line).body
    assert not is_write(statement.value)
