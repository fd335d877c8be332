"""`vistill explain train.lr`: every key and group, by full name, last part or other name."""

import difflib
import json
import textwrap
from collections.abc import Mapping
from typing import Any

from vistill.config import all_keys
from vistill.ranges import describe, typed
from vistill.schema import ANY_NAME, NAMED_GROUPS, is_group, key_info, keys_of_names, walk
from vistill.schema.other_trainers import NO_SUCH_KEY, OUR_KEYS

WIDTH = 100
#: What a changed key does to a run that has started.
ON_RESUME = {
    "free": "may change at any start",
    "schedule": "may change with --accept {key}",
    "identity": "belongs to the run: another value needs a new run",
}

#: Examples of keys that take text.
EXAMPLES = {
    "run": "runs/mine",
    "student.model": "Qwen/Qwen3-VL-2B-Instruct",
    "teacher.model": "Qwen/Qwen3-VL-8B-Instruct",
    "student.revision": "main",
    "teacher.revision": "main",
    "student.device": "cpu",
    "teacher.device": "cuda:1",
    "method": "va_opd",
    "data.train": "data/train.jsonl",
    "data.eval": "data/val.jsonl",
    "data.images": "data/images",
    "data.template": "{prompt}\\n{choices}",
    "data.response_template": "The answer is {answer}.",
    "data.system": "Think step by step.",
    "data.columns.prompt": "problem",
    "data.columns.images": "image",
    "data.columns.answer": "solution",
    "reward.pattern": "<answer>.*</answer>",
    "rollout.image_marker": "<draw>",
    "rollout.reopen": "\\n<|im_start|>assistant\\n",
    "train.betas": "[0.9,0.999]",
}


def explain_key(word: str) -> str | None:
    """The text about a key or group; None where the word is neither."""
    name = word.replace("-", "_")
    keys = all_keys(name)
    same = [key for key in keys if key.rpartition(".")[2] == name]
    below = explain_free_name(name, keys)
    if below:
        return below
    if name in keys or len(same) == 1:
        key = name if name in keys else same[0]
        return about_group(key, keys) if is_group(keys[key]) else about_key(key, keys)
    if name in NO_SUCH_KEY:
        return wrapped(f"no key {name}: {NO_SUCH_KEY[name]}")
    if same:
        lines = [
            f"{len(same)} keys are called {name}:",
            *(line_about(key, keys[key]) for key in same),
        ]
        return "\n".join(lines)
    ours = OUR_KEYS.get(name)
    return f"{name} is called {ours} here.\n\n{about_key(ours, keys)}" if ours in keys else None


def explain_free_name(name: str, keys: Mapping[str, Mapping[str, Any]]) -> str:
    """The text about a group of free names, or a key below one; empty for other keys."""
    for group in NAMED_GROUPS:
        if group in (name, name.rpartition(".")[0]):
            return about_names(group, keys)
        info = key_info(keys, name) if name.startswith(f"{group}.") else {}
        if info and is_group(info):
            return about_group(name, {name: info, **dict(walk(f"{name}.", info["properties"]))})
        if info:
            return about_key(name, {name: info})
    return ""


def near_keys(word: str) -> list[str]:
    """Keys whose last part is spelt like a word."""
    last = {key.rpartition(".")[2]: key for key in all_keys()}
    known = {**last, **OUR_KEYS}
    return [
        known[name]
        for name in difflib.get_close_matches(word.rpartition(".")[2], known, n=2, cutoff=0.8)
    ]


def about_key(key: str, keys: Mapping[str, Mapping[str, Any]]) -> str:
    """Meaning, type and limits, default, papers' values, resume, example, keys of the same name."""
    info = keys[key]
    default = (
        json.dumps(info["default"], ensure_ascii=False)
        if "default" in info
        else "none: a recipe names it"
    )
    lines = [
        key,
        wrapped(info["description"], "    "),
        "",
        f"takes      {describe(info)}",
        f"default    {default}",
    ]
    papers = [f"{paper} {json.dumps(value)}" for paper, value in info.get("x-papers", {}).items()]
    if papers:
        lines.append(f"papers     {', '.join(papers)}")
    resume = ON_RESUME[info.get("x-resume", "identity")].format(key=key)
    lines += [f"on resume  {resume}", f"example    vistill train recipe.yaml {example(key, info)}"]
    last = key.rpartition(".")[2]
    others = [other for other in keys if other.rpartition(".")[2] == last and other != key]
    if others:
        see = textwrap.wrap(", ".join(others[:4]), 88, break_on_hyphens=False)
        lines += [f"{'' if i else 'see also':<11}{row}" for i, row in enumerate(see)]
    return "\n".join(lines)


def about_group(group: str, keys: Mapping[str, Mapping[str, Any]]) -> str:
    """A line per key below a group."""
    info = keys[group]
    lines = [f"{group}: {info['description']}", ""]
    below = [key for key in keys if key.startswith(f"{group}.") and not is_group(keys[key])]
    lines += [line_about(key, keys[key]) for key in below]
    return "\n".join(
        [*lines, "", f"vistill explain {below[0]}   says more"] if below else lines
    ).rstrip()


def about_names(group: str, keys: Mapping[str, Mapping[str, Any]]) -> str:
    """A group of free names, and a line per key below each."""
    below = keys_of_names({group: keys[group]})
    lines = [f"{group}: {keys[group]['description']}", ""]
    lines += [line_about(key, info) for key, info in below.items() if not is_group(info)]
    first = next(iter(below)).replace(f".{ANY_NAME}.", ".mine.")
    return "\n".join([*lines, "", f"vistill explain {first}   says more"])


def line_about(key: str, info: Mapping[str, Any]) -> str:
    """A key, its default and the first sentence about it."""
    if is_group(info):
        return f"{key:<28} {info['description']}"[:WIDTH]
    head = (
        f"{key} = {json.dumps(info['default'], ensure_ascii=False)}" if "default" in info else key
    )
    sentence = info["description"].split(". ")[0].rstrip(".")
    left = f"{head:<40} "
    return left + textwrap.shorten(sentence, max(WIDTH - len(left), 40), placeholder=" ...")


def example(key: str, info: Mapping[str, Any]) -> str:
    """A setting of the key as it is typed on the command line."""
    name = key.rpartition(".")[2]
    value = name if key.startswith("data.columns.") else typed(proposed(info))
    text = f"{key}={EXAMPLES.get(key) or value}"
    plain = all(character.isalnum() or character in "._=-/:" for character in text)
    return text if plain else f"'{text}'"


def proposed(info: Mapping[str, Any]) -> Any:
    """A value that is not the default, as an example."""
    parts = info.get("anyOf", [info])
    default = info.get("default")
    for part in parts:
        for value in candidates(part, default):
            if value != default:
                return value
    return "VALUE" if default is None else default


def candidates(part: Mapping[str, Any], default: Any) -> list[Any]:
    """Values of a type that show how it is written."""
    if "enum" in part:
        return part["enum"]
    if part.get("type") == "boolean":
        return [not default]
    if part.get("type") == "array":
        return [part["items"]["enum"][:1]] if "enum" in part["items"] else [default]
    if part.get("type") in ("integer", "number"):
        halved = default / 2 if isinstance(default, float) and default else None
        doubled = 2 * default if isinstance(default, int) and default else None
        return [value for value in (halved, doubled, 1) if value is not None]
    return []


def wrapped(text: str, indent: str = "") -> str:
    """A text in lines."""
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
