"""`vistill explain`: error codes and methods, from the catalogue and the packaged schema."""

import json
from typing import Any

from vistill.config import method_schemas
from vistill.errors import CATALOGUE, ConfigError, suggest


def explain_word(word: str) -> str:
    """The text of a code or a method."""
    if word.upper() in CATALOGUE:
        return f"{word.upper()}: {CATALOGUE[word.upper()]}"
    methods = method_schemas()
    word = word.replace("-", "_")
    if word in methods:
        return explain_method(word, methods[word])
    known = [*methods, *CATALOGUE]
    raise ConfigError(
        "C102",
        f'nothing is known about "{word}"',
        why=f"methods: {', '.join(methods)}; codes: {', '.join(CATALOGUE)}",
        fix=suggest(word, known) or "vistill explain va_opd",
    )


def kind_of(info: dict[str, Any]) -> str:
    """What a knob takes, in words."""
    if "anyOf" in info:
        return " or ".join(kind_of(part) for part in info["anyOf"])
    return " | ".join(info["enum"]) if "enum" in info else str(info.get("type", ""))


def explain_method(name: str, schema: dict[str, Any]) -> str:
    """Objective, passes and knobs of a method."""
    sees = [f"{p} (gradient)" if p in schema["x-gradient"] else p for p in schema["x-passes"]]
    lines = [f"{name}: {schema['x-page']}", "", f"responses from   {schema['x-writer']}"]
    lines += [f"passes           {', '.join(sees)}"]
    lines += [f"needs            {', '.join(schema['x-needs'])}", ""] if schema["x-needs"] else [""]
    if not schema["properties"]:
        lines.append("no knobs of its own")
    for knob, info in schema["properties"].items():
        lines.append(f"{name}.{knob} = {json.dumps(info['default'])}   ({kind_of(info)})")
        lines.append(f"    {info['description']}")
    return "\n".join(lines)
