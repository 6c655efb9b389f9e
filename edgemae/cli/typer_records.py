"""Records of options in Typer: a verb takes one record, and Typer sees its fields; what was given can be passed on."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

import typer

STAY = (
    "--remote",
    "--remote-python",
    "--html",
    "--keep",
    "--json",
    "--verbose",
)  # of the options that another machine gets


def unfold(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb the fields of its first parameter, a record of flags, as flags of its own behind the others."""
    first, *others = inspect.signature(verb).parameters.values()
    hints = get_type_hints(verb, include_extras=True)
    record = hints.pop(first.name)
    shared = get_type_hints(record, include_extras=True)

    @functools.wraps(verb)
    def unfolded(**given: Any) -> None:
        verb(record(**{name: given.pop(name) for name in shared}), **given)

    def keyword(name: str, default: Any) -> inspect.Parameter:
        kind = inspect.Parameter.KEYWORD_ONLY
        return inspect.Parameter(name, kind, default=default, annotation=(hints | shared)[name])

    own = [keyword(p.name, p.default) for p in others]
    rest = [keyword(name, p.default) for name, p in inspect.signature(record).parameters.items()]
    unfolded.__signature__ = inspect.Signature([*own, *rest])  # type: ignore[attr-defined]
    unfolded.__annotations__ = hints | shared
    return unfolded


def given(context: typer.Context) -> list[tuple[str, str]]:
    """Return the options of a verb's command line as they may be passed on to another machine; a flag's value is ""."""
    found = []
    for option in context.command.params:
        name, spelled = str(option.name), option.opts[0]
        source, value = context.get_parameter_source(name), context.params.get(name)
        if source is None or source.name != "COMMANDLINE" or spelled in STAY or not spelled.startswith("--"):
            continue
        if value is False:
            spelled = option.secondary_opts[0]  # --no-...
        values = value if isinstance(value, (list, tuple)) else [value]
        found += [(spelled, "" if isinstance(one, bool) else str(one)) for one in values]
    return found
