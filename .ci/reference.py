"""docs/commands.md from the help texts, docs/parameters.md from the settings models, and the table
of docs/reliability.md from what `make faults` measured.

python .ci/reference.py     (make docs; tests/repository/test_reference.py compares)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer.cli
import typer.main
from pydantic import BaseModel

import fault_table
from uotft.cli.app import app
from uotft.core import registry, settings

DOCS = Path(__file__).parents[1] / "docs"
GENERATED = "<!-- Made by `make docs`; do not edit. -->\n\n"
#: Section of params.yaml (or of another file) -> its model.
SECTIONS: dict[str, type[BaseModel]] = {
    "subset": settings.Subset,
    "pretrain": settings.Pretrain,
    "embed": settings.Embed,
    "select": settings.Select,
    "cluster": settings.Cluster,
    "forecast": settings.Forecast,
    "train": settings.Train,
    "recipe": settings.Recipe,
    "augment": settings.Augment,
    "axis": settings.Axis,
}
WHERE = {
    "recipe": "Of `pretrain.recipe` and `train.recipe`.",
    "augment": "Of `pretrain.augment`, `train.augment` and `train.strong`.",
    "axis": "Of each line of a [search space](searching.md#a-space).",
}
KINDS = {
    "datasets": ("Data sets", "a section of `datasets:` whose `kind` is NAME"),
    "backbones": ("Backbones", "`backbone:` whose `name` is NAME"),
    "strategies": ("Strategies", "`selectors.NAME`"),
    "objectives": ("Objectives", "`objectives.NAME`"),
}


def commands() -> str:
    """All commands with their help, as Typer itself documents them."""
    command = typer.main.get_command(app)
    _whole_short_help(command)
    context = typer.Context(command, info_name="uotft")
    title = "Commands"
    made = typer.cli.get_docs_for_click(obj=command, ctx=context, name="uotft", title=title)
    intro = (
        "Every command reads `params.yaml` in the current folder or the nearest one above it.\n"
        "[Running](running.md) says what commands share: exit codes, interruptions, processes.\n"
    )
    return f"# Commands\n\n{GENERATED}{intro}{made.partition(chr(10))[2].rstrip()}\n"


def _whole_short_help(command: Any) -> None:
    """Keep the first sentences whole that lists of commands would cut at 45 letters."""
    for inner in getattr(command, "commands", {}).values():
        inner.short_help = (inner.help or "").partition("\n\n")[0]
        _whole_short_help(inner)


def parameters() -> str:
    """All settings with type, default and meaning, from pydantic's JSON schemas."""
    parts = [
        f"# Parameters\n\n{GENERATED}Every setting of `params.yaml`. An unknown setting, a wrong "
        "type or a value out of range\nstops a command at once and is named. A default of `–` "
        "means that the setting is needed.\n",
        "## The file\n\n" + _table(settings.Params),
    ]
    for name, model in SECTIONS.items():
        where = WHERE.get(name, f"Of `{name}:`.")
        parts.append(f"## {name}\n\n{_summary(model.__doc__)} {where}\n\n{_table(model)}")
    for kind, (title, where) in KINDS.items():
        parts.append(f"## {title}\n\nSettings of {where}.\n")
        for name in registry.names(kind):
            module = registry.load(kind, name, "reference")
            parts.append(f"### {kind}: {name}\n\n{_summary(module.__doc__)}\n\n"
                         f"{_table(module.Settings)}")  # fmt: skip
    return "\n".join(parts)


def reliability() -> str:
    """The page as it is, with the table of the faults made anew."""
    return fault_table.page((DOCS / "reliability.md").read_text(encoding="utf-8"))


def _summary(doc: str | None) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join((doc or "").strip().partition("\n\n")[0].split()).replace("|", r"\|")


def _table(model: type[BaseModel]) -> str:
    """A row a setting."""
    schema = model.model_json_schema(by_alias=True)
    properties = schema.get("properties", {})
    if not properties:
        return "No settings.\n"
    needed = schema.get("required", [])
    rows = ["| Setting | Type | Default | Meaning |", "|---|---|---|---|"]
    for name, field in properties.items():
        default = "–" if name in needed else _default(field, schema.get("$defs", {}))
        meaning = field.get("description", "").replace("|", r"\|")
        rows.append(f"| `{name}` | {_type(field)} | {default} | {meaning} |")
    return "\n".join(rows) + "\n"


def _default(field: dict[str, Any], sections: dict[str, Any]) -> str:
    """The default of a setting; of a section, what differs from the section's own defaults."""
    default = field.get("default")
    if "$ref" in field:
        own = sections[field["$ref"].rpartition("/")[2]]["properties"]
        default = {k: v for k, v in default.items() if v != own[k].get("default")}
        if not default:
            return "that of the section"
    return "not set" if default is None else f"`{json.dumps(default)}`"


def _type(field: dict[str, Any]) -> str:
    """The type of a setting with its limits, from its JSON schema."""
    if "anyOf" in field:
        return " or ".join(_type(one) for one in field["anyOf"] if one.get("type") != "null")
    if values := field.get("enum") or ([field["const"]] if "const" in field else []):
        return " or ".join(f"`{value}`" for value in values)
    if "$ref" in field:
        section = field["$ref"].rpartition("/")[2].lower()
        return f"[section](#{section})"
    names = {"integer": "whole number", "string": "text", "boolean": "true or false",
             "array": "list", "object": "section"}  # fmt: skip
    limits = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = ", ".join(f"{sign} {field[key]:,}" for key, sign in limits.items() if key in field)
    name = names.get(field.get("type", ""), field.get("type", "any"))
    if items := field.get("items"):
        name = f"list of {_type(items)}"
    return f"{name} {bounds}".strip()


if __name__ == "__main__":
    for page in (commands, parameters, reliability):
        (DOCS / f"{page.__name__}.md").write_text(page(), encoding="utf-8")
