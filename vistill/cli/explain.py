"""`vistill explain`: error codes, methods and keys.

The texts come from the catalogue, `codes/*.md` and the schema.
"""

import json
import re
import textwrap
from functools import cache
from pathlib import Path
from typing import Any

from vistill.cli.explain_keys import explain_key, near_keys
from vistill.cli.glossary import explain_term, near_terms
from vistill.config import method_schemas
from vistill.errors import CATALOGUE, ConfigError, closest, quote_command

CODES = Path(__file__).parent / "codes"
WIDTH = 100


def explain_word(word: str) -> str:
    """The text of a code, method, term or key, or a list: `codes`, `methods`, a prefix of codes."""
    methods, code = method_schemas(), word.upper()
    if code in CATALOGUE:
        return explain_code(code)
    name = word.replace("-", "_")
    if name in methods:
        return explain_method(name, methods[name])
    if name == "methods":
        return "\n".join(
            f"{m:<14} {schema['x-page'].splitlines()[0]}" for m, schema in methods.usable().items()
        )
    parts = [text for text in (explain_term(word), explain_key(word)) if text]
    if parts:
        return "\n\n".join(parts)
    listed = [c for c in CATALOGUE if word == "codes" or c.startswith(code)]
    if listed:
        return "\n".join(f"{c}  {CATALOGUE[c]}" for c in sorted(listed))
    raise unknown_word_error(word, list(methods))


def unknown_word_error(word: str, methods: list[str]) -> ConfigError:
    """C102 with a few words that were perhaps meant."""
    near = (
        closest(word.lower().replace("-", "_"), methods)
        + near_terms(word)
        + near_keys(word.lower())
        + closest(word.upper(), CATALOGUE)
    )
    near += [
        code for code, text in CATALOGUE.items() if len(word) > 3 and word.lower() in text.lower()
    ]
    shown = list(dict.fromkeys(near))[:3]
    return ConfigError(
        "C102",
        f'nothing is known about "{word:.60}"',
        why="it is no method, no key of a recipe, no term of the glossary and no error code",
        fix="\n".join(
            quote_command("vistill", "explain", name) for name in (*shown, "methods", "codes")
        ),
    )


@cache
def long_forms() -> dict[str, list[tuple[str, str]]]:
    """The parts (how, why, fix, see) of every code, as the files under `codes/` have them."""
    forms: dict[str, list[tuple[str, str]]] = {}
    for file in sorted(CODES.glob("*.md")):
        title, *sections = re.split(r"^## ", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
        for section in sections:
            code, *lines = section.strip().splitlines()
            parts = [line.split(": ", 1) for line in lines if line]
            forms[code] = [("", title.strip("# \n")), *((label, text) for label, text in parts)]
    return forms


def explain_code(code: str) -> str:
    """The long form of an error: meaning, cause, reason, fix and further reading."""
    lines, last = [f"{code}: {CATALOGUE[code]}"], ""
    for label, text in long_forms().get(code, []):
        whole = re.sub(
            r"`[^`]*`", lambda m: m.group(0).replace(" ", "\u00a0"), text
        )  # commands stay on one line
        head = f"{'' if label == last else label:<5} "
        wrapped = textwrap.wrap(
            whole,
            WIDTH,
            initial_indent=head if label else "",
            subsequent_indent=" " * len(head),
            break_long_words=False,
            break_on_hyphens=False,
        )
        lines += [line.replace("\u00a0", " ") for line in wrapped] + ([] if label else [""])
        last = label
    return "\n".join(lines)


def type_in_words(info: dict[str, Any]) -> str:
    """What a knob takes, in words."""
    if "anyOf" in info:
        return " or ".join(type_in_words(part) for part in info["anyOf"])
    return " | ".join(info["enum"]) if "enum" in info else str(info.get("type", ""))


def explain_method(name: str, schema: dict[str, Any]) -> str:
    """Objective, passes and knobs of a method."""
    sees = [f"{p} (gradient)" if p in schema["x-gradient"] else p for p in schema["x-passes"]]
    origin = [f"comes from       {schema['x-origin']}"] if "x-origin" in schema else []
    lines = [f"{name}: {schema['x-page']}", "", *origin, f"responses from   {schema['x-writer']}"]
    lines += [f"passes           {', '.join(sees)}"]
    lines += [f"needs            {', '.join(schema['x-needs'])}", ""] if schema["x-needs"] else [""]
    if not schema["properties"]:
        lines.append("no knobs of its own")
    for knob, info in schema["properties"].items():
        lines.append(f"{name}.{knob} = {json.dumps(info['default'])}   ({type_in_words(info)})")
        lines.append(f"    {info['description']}")
    return "\n".join(lines)
