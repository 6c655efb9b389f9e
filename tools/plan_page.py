"""Write docs/plan.md from the plan's own definitions: every field, its default and its meaning.

    python tools/plan_page.py            write the page
    python tools/plan_page.py --check    exit 1 when the page is not current

The meaning of a field is the comment behind it in edgemae/spec/plan_schema.py; of a table, the docstring of its class.
"""

from __future__ import annotations

import ast
import inspect
import io
import json
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from edgemae.spec import plan_schema
from edgemae.spec.plan_schema import Plan, Section
from edgemae.spec.presets import NAMES, preset

PAGE = Path(__file__).resolve().parent.parent / "docs" / "plan.md"
HEAD = """# The plan

<!-- Made by `python tools/plan_page.py` from edgemae/spec/plan_schema.py. Do not edit. -->

A plan is a TOML file with every number that decides a compile, apart from the target and the files themselves. It is
optional, and needs only what differs from the defaults: [`examples/plan.toml`](../examples/plan.toml) is one. Values
come from, the strongest first: flags and `--set table.field=value`, the file of `--plan`, the preset, the defaults.
`plan.toml` in the output folder of a compile holds all values as they were used. An unknown field is an error that
names the nearest one.
"""
PRESETS = """## Presets

`preset = "auto"` takes one of these by the student's parameters (tiny below 10 M, small below 40 M, base) and the
number of training images (thousands below 50,000, hundred-thousands below 1,000,000, millions). The log names it.
Fields that need labels go by the number of images that have them. An empty cell leaves the default.
"""


def comments(source: str) -> dict[int, str]:
    """Return the comment of each line of Python that has one, by its line number."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


def meanings() -> dict[str, dict[str, str]]:
    """Return the comment behind each field of each table, by the name of its class. A field without one is left out."""
    source = inspect.getsource(plan_schema)
    said = comments(source)
    return {
        table.name: {
            row.target.id: said[row.lineno]
            for row in table.body
            if isinstance(row, ast.AnnAssign) and isinstance(row.target, ast.Name) and row.lineno in said
        }
        for table in ast.parse(source).body
        if isinstance(table, ast.ClassDef)
    }


def toml(value: Any) -> str:
    """Return a default as TOML spells it."""
    if isinstance(value, float):
        return f"{value:g}" if value < 1e-3 and value else repr(value)
    return json.dumps(value)


def default(value: Any) -> str:
    """Return the cell of a default; TOML has no word for a field that is off."""
    return "left out" if value is None else f"`{toml(value)}`"


def tables(section: Section, path: str = "") -> Iterator[tuple[str, Section]]:
    """Yield (dotted path, table) of a table and of all tables in it; the path of the whole plan is empty."""
    yield path, section
    for name in section.__struct_fields__:
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from tables(value, f"{path}.{name}" if path else name)


def chapters() -> Iterator[str]:
    """Yield a chapter for each table. The second table of a class lists only the defaults in which it differs."""
    texts = meanings()
    first: dict[type[Section], tuple[str, Section]] = {}
    owner: dict[str, str] = {}  # what the field that holds a table says of it
    for path, section in tables(Plan()):
        kind, values = type(section), msgspec.structs.asdict(section)
        owner |= {f"{path}.{name}".lstrip("."): texts[kind.__name__].get(name, "") for name in values}
        title = f"## `[{path}]`" if path else "## Outside of any table"
        said = f"{owner[path][:1].upper()}{owner[path][1:]}.\n\n" if owner.get(path) else ""
        fields = {name: value for name, value in values.items() if not isinstance(value, Section)}
        if kind in first:
            yield f"{title}\n\n{said}{like(*first[kind], fields)}\n"
            continue
        first[kind] = (path, section)
        said_of = texts[kind.__name__]
        rows = [f"| `{name}` | {default(value)} | {cell(said_of[name])} |" for name, value in fields.items()]
        head = "| field | default | meaning |\n| --- | --- | --- |"
        yield "\n".join([title, "", f"{said}{inspect.cleandoc(kind.__doc__ or '')}", "", head, *rows, ""])


def like(path: str, section: Section, fields: dict[str, Any]) -> str:
    """Return a sentence on a table whose fields are those of an earlier one, with the defaults that differ."""
    changed = [f"`{name} = {toml(value)}`" for name, value in fields.items() if value != getattr(section, name)]
    defaults = f"other defaults: {', '.join(changed)}" if changed else "the same defaults"
    return f"The fields of `[{path}]`, with {defaults}."


def cell(text: str) -> str:
    """Return text that does not end a cell of a table."""
    return text.replace("|", "\\|")


def preset_table() -> str:
    """Return what each preset sets, a column a preset."""
    chosen = {name: preset(name) for name in NAMES}
    fields = list(dict.fromkeys(field for values in chosen.values() for field in values))
    head = "| field | " + " | ".join(NAMES) + " |\n| --- |" + " ---: |" * len(NAMES) + "\n"
    rows = (
        [f"`{field}`", *(toml(values[field]) if field in values else "" for values in chosen.values())]
        for field in fields
    )
    return head + "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def page() -> str:
    """Return docs/plan.md as it should be."""
    return "\n".join([HEAD, *chapters(), PRESETS, preset_table()])


def main(arguments: list[str]) -> int:
    if arguments == ["--check"]:
        current = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page()
        if not current:
            sys.stderr.write("docs/plan.md is not current: run `python tools/plan_page.py`\n")
        return 0 if current else 1
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
