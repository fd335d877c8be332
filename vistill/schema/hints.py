"""What an unknown key was meant to be: another trainer's name, another group, a misspelling."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vistill.ranges import fits
from vistill.schema import is_group
from vistill.schema.other_trainers import NO_SUCH_KEY, OUR_KEYS


@dataclass(frozen=True)
class Hint:
    """What was probably meant: a key of ours, or why there is none."""

    key: str = ""
    note: str = ""
    fits: bool = True
    """Whether the value that was given fits the key."""

    def __bool__(self) -> bool:
        return bool(self.key or self.note)


def hint_for(full: str, value: Any, keys: Mapping[str, Mapping[str, Any]]) -> Hint:
    """What an unknown key was meant to be; empty where nothing is close.

    Args:
        full: the dotted name as it was written.
        value: its value. A key whose type does not fit it is never proposed for its spelling.
        keys: every key of a recipe (`keys_of`).
    """
    *path, last = full.lower().replace("-", "_").split(".")
    for name in (full.lower(), last):
        if name in NO_SUCH_KEY:
            return Hint(note=NO_SUCH_KEY[name])
        if OUR_KEYS.get(name) in keys:
            key = OUR_KEYS[name]
            return Hint(key, fits=fits(keys[key], value))
    group = ".".join(path)
    fitting = [key for key, info in keys.items() if fits_key(info, value)]
    same_name = [key for key in fitting if key.rpartition(".")[2] == last]
    neighbours = {key.rpartition(".")[2]: key for key in fitting if key.rpartition(".")[0] == group}
    near = difflib.get_close_matches(last, neighbours, n=1, cutoff=0.6)
    if same_name and not (near and len(same_name) > 1):
        others = f"; also {', '.join(same_name[1:4])}" if same_name[1:] else ""
        return Hint(same_name[0], note=f"{last} is {same_name[0]}{others}")
    if near:
        return Hint(neighbours[near[0]])
    return spelt_like(last, value, keys)


def fits_key(info: Mapping[str, Any], value: Any) -> bool:
    """Whether a value could stand at a key: groups hold groups, keys hold values of their type."""
    return isinstance(value, Mapping) if is_group(info) else fits(info, value)


def spelt_like(word: str, value: Any, keys: Mapping[str, Mapping[str, Any]]) -> Hint:
    """A name of another trainer, or of a key in another group, with almost this spelling."""
    last_names = {
        key.rpartition(".")[2]: key for key, info in keys.items() if fits_key(info, value)
    }
    foreign = {
        name: key for name, key in OUR_KEYS.items() if key in keys and fits(keys[key], value)
    }
    known = {**foreign, **last_names}
    near = difflib.get_close_matches(word, [*known, *NO_SUCH_KEY], n=1, cutoff=0.85)
    if not near:
        return Hint()
    return Hint(known[near[0]]) if near[0] in known else Hint(note=NO_SUCH_KEY[near[0]])
