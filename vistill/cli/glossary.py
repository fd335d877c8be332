"""The terms of docs/glossary.md, for `vistill explain`."""

import re
import textwrap
from functools import cache
from pathlib import Path

from vistill.errors import closest

WIDTH = 100
PACKAGE = Path(__file__).parent.parent
#: In a working copy, and in an installation.
FILES = (PACKAGE.parent / "docs" / "glossary.md", PACKAGE / "glossary.md")


@cache
def terms() -> dict[str, str]:
    """Meaning by term; `family (adapter)` is a term, and so are both of its words."""
    file = next((file for file in FILES if file.is_file()), None)
    text = file.read_text(encoding="utf-8") if file else ""
    rows = re.findall(r"^\| (?!term \||-)(.+?) \| (.+) \|$", text, re.MULTILINE)
    by_term: dict[str, str] = {}
    for term, meaning in rows:
        plain = term.replace("`", "")
        names = [plain, *re.split(r" \(|, ", plain.rstrip(")"))]
        for name in names:
            by_term.setdefault(name, f"{plain}: {meaning}")
    return by_term


def explain_term(word: str) -> str:
    """`term: meaning` of a term of the glossary, in any case; empty for any other word."""
    lower = {name.lower(): name for name in terms()}
    name = word.lower().strip()
    same = next(
        (n for n in (name, name.replace("_", " "), name.removesuffix("s")) if n in lower), ""
    )
    return textwrap.fill(terms()[lower[same]], WIDTH) if same else ""


def near_terms(word: str) -> list[str]:
    """Terms that are spelt like a word."""
    return closest(word.lower(), [name for name in terms() if name == name.lower()], cutoff=0.75)
