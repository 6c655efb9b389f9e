"""README.md and docs/*.md taken apart: code blocks with their marks, commands, links, headings, inline code."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "docs").glob("*.md")))
GENERATED = re.compile(r"<!-- (?:table|summary): \S+ -->.*?<!-- end -->", re.DOTALL)
BLOCK = re.compile(r"(?:^<!-- (not run|parsed only): (.+?) -->\n)?^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One block of code. `mark` is "", "not run" or "parsed only"; the last two have a reason in the page."""

    page: Path
    language: str
    text: str
    mark: str

    @property
    def commands(self) -> list[list[str]]:
        """Return the words of each command of a shell block: continued lines joined, comments left out."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks(page: Path) -> list[Block]:
    """Return all blocks of code of a page, in order."""
    return [
        Block(page, language, text, mark or "") for mark, _, language, text in BLOCK.findall(page.read_text("utf-8"))
    ]


def prose(page: Path) -> str:
    """Return a page without code blocks and generated tables."""
    return BLOCK.sub("", GENERATED.sub("", page.read_text("utf-8")))


def inline_code(page: Path) -> list[str]:
    """Return what stands between single backticks."""
    return re.findall(r"`([^`\n]+)`", prose(page))


def links(page: Path) -> list[tuple[Path, str]]:
    """Return (file, anchor) of each relative link of a page."""
    found = re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)]*))?\)", prose(page))
    return [((page.parent / target).resolve() if target else page, anchor) for target, anchor in found]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def edgemae_arguments(words: list[str], verbs: set[str]) -> list[str] | None:
    """Return the arguments of edgemae in a command (also behind torchrun, docker or a path), or None without one."""
    for at, word in enumerate(words[:-1]):
        if Path(word).name == "edgemae" and words[at + 1] in verbs:
            return words[at + 1 :]
    return None
