"""Tables of README.md, generated from the files in tools/results: none of their numbers is typed by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any


def put(readme: Path, results: Path, table: Callable[[Any], str]) -> None:
    """Put the table of a results file, and the command that made it, between the marks that bear the file's name."""
    result = json.loads(results.read_bytes())
    text = f"\n{table(result)}\n\nMade by `{result['command']}`.\n"
    pattern = rf"(<!-- table: {re.escape(results.stem)} -->\n).*?(<!-- end -->)"
    readme.write_text(re.sub(pattern, lambda m: m[1] + text + "\n" + m[2], readme.read_text(), flags=re.S))
