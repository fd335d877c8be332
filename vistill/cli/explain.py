"""`vistill explain`: error codes and methods, from the catalogue and the packaged schema."""

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


def explain_method(name: str, schema: dict[str, Any]) -> str:
    """Objective, passes and knobs of a method."""
    lines = [f"{name}: {schema['description']}", "", f"responses from   {schema['x-writer']}"]
    lines += [f"passes           {', '.join(schema['x-passes'])}", ""]
    if not schema["properties"]:
        lines.append("no knobs of its own")
    for knob, info in schema["properties"].items():
        kind = " | ".join(info["enum"]) if "enum" in info else info.get("type", "")
        lines.append(f"{name}.{knob} = {info['default']}   ({kind})")
        lines.append(f"    {info['description']}")
    return "\n".join(lines)
