"""Fixes in Python for errors that reach a caller of `vistill` in Python.

Errors give their fix as it is typed on a command line: `train.lr=1e-5`. A function of `vistill` has
arguments in the place of settings: `train=vistill.TrainSettings(lr=1e-5)`.
"""

import functools
import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

from vistill.errors import VistillError
from vistill.strict_yaml import parts_of

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
Settings = TypeVar("Settings")
#: Whether settings are those of a recipe.
READS_RECIPE: ContextVar[bool] = ContextVar("reads_recipe", default=False)
#: Groups of a recipe: the argument that has their settings, and its class.
GROUPS = {
    "train": ("train", "TrainSettings"),
    "rollout": ("rollout", "RolloutSettings"),
    "save": ("save", "SaveSettings"),
    "eval": ("evaluation", "EvalSettings"),
    "reward": ("reward", "RewardSettings"),
    "views": ("views", "ViewSettings"),
    "data": ("data", "DataSettings"),
}
#: Classes of the groups within a group.
INNER = {
    "train.schedule": "ScheduleSettings",
    "rollout.vllm": "VLLMSettings",
    "rollout.server": "ServerSettings",
}
#: Keys of a model that are arguments of `vistill.load`.
OF_LOAD = ("model", "revision", "device", "max_image_tokens")
#: Keys that act on rows when they are read.
ROW_KEYS = ("columns", "images", "train", "limit", "min_pixels", "max_pixels", "template", "system")
#: A word of a shell.
WORD = re.compile(r"(?:'[^']*'|\"[^\"]*\"|\\.|[^\s'\"\\])+")
SETTING = re.compile(r"([a-z_]\w*(?:\.\w+)*)=(.*)", re.DOTALL)
#: Options of the command line: the argument of each.
OPTIONS = {"--accept": "accept", "--plugin": "plugins", "--dtype": "dtype", "--to": "to",
           "--push": "push"}  # fmt: skip
#: Names that stand for a value of the user.
CAPITALS = re.compile(r"[A-Z_.]{2,}")


def argument(key: str, value: Any) -> str:
    """The argument of a function in place of a setting: `train=vistill.TrainSettings(...)`.

    Args:
        key: a dotted key of a recipe.
        value: its value.
    """
    return merged_arguments({key: value})


def merged_arguments(settings: Mapping[str, Any]) -> str:
    """The arguments that have the place of several settings; those of a group are one."""
    arguments: dict[str, list[str]] = {}
    for key, value in settings.items():
        name, inner = argument_of(key, value)
        arguments.setdefault(name, []).append(inner)
    return ", ".join(name.replace("{}", ", ".join(inner)) for name, inner in arguments.items())


def has_argument(key: str) -> bool:
    """Whether a setting has a place in Python: a part of a recipe has none."""
    group, *rest = parts_of(key)
    if group in ("student", "teacher") and rest:
        return rest[0] in OF_LOAD or (rest[0] == "lora" and len(rest) > 1)
    if group == "teachers":
        return rest[-1:] == ["model"]
    return [group, *rest[:1]] != ["data", "sets"]


def argument_of(key: str, value: Any) -> tuple[str, str]:  # noqa: PLR0911  one per kind of key
    """An argument with `{}` for its inner part, and the inner part of a setting."""
    group, *rest = parts_of(key)
    text = written(value)
    if key == "run":
        return "out={}", text
    if key == "method":
        return "objective={}", method_expression(str(value))
    if group == "teachers":
        return "teacher={}", f"{{{rest[0]!r}: vistill.load({text})}}"
    if rest[:1] == ["lora"] and len(rest) > 1:
        return f"{group}=vistill.load({{}})", f"..., lora=vistill.LoraSettings({rest[-1]}={text})"
    if group in ("student", "teacher") and rest:
        others = {"model": text}.get(rest[0], f"..., {rest[0]}={text}")
        return f"{group}=vistill.load({{}})", others
    if group == "data" and rest and rest[0] in ROW_KEYS:
        name = {"images": "image_folder"}.get(rest[0], rest[-1])
        inner = text if rest[0] == "train" else f"..., {name}={text}"
        return "prompts=vistill.load_prompts({})", inner
    if group in GROUPS and rest:
        name, kind = GROUPS[group]
        if key.startswith("reward.extra."):
            return f"{name}=vistill.{kind}({{}})", f"extra={{{rest[-1]!r}: {text}}}"
        inner_kind = INNER.get(f"{group}.{rest[0]}") if len(rest) > 1 else None
        setting = f"{rest[-1]}={text}"
        inner = f"{rest[0]}=vistill.{inner_kind}({setting})" if inner_kind else setting
        return f"{name}=vistill.{kind}({{}})", inner
    if rest:
        return "objective={}", method_expression(group, f"{rest[-1]}={text}")
    return f"{key}={{}}", text


def method_expression(name: str, knob: str = "") -> str:
    """The expression that makes a method: `vistill.OPD()`."""
    import vistill
    from vistill.registry import methods

    if name not in methods:
        return f"{name}({knob})"
    kind = methods.entry(name).target.rpartition(":")[2]
    if kind in vistill.__all__:
        return f"vistill.{kind}({knob})"
    return f'vistill.METHODS["{name}"]({knob})'


def written(value: Any) -> str:
    """A value as Python writes it. A word in capitals stays: it stands for a value of the user."""
    is_placeholder = isinstance(value, str) and CAPITALS.fullmatch(value)
    return str(value) if is_placeholder else repr(value)


def read(text: str) -> Any:
    """The value of a setting on the command line."""
    try:
        return json.loads(text)
    except ValueError:
        items = re.fullmatch(r"\[([\w,. ]*)\]", text)
        return [item.strip() for item in items[1].split(",") if item] if items else text


def fix_in_python(fix: str, function: str, known: tuple[str, ...]) -> str:
    """A fix for the command line as one for a function of `vistill`.

    Args:
        fix: as an error states it.
        function: its name, such as `distill`.
        known: its arguments. Settings that are none of them stay as they are.
    """
    alternatives = re.split(r"( {3}or\b)", fix)
    return "".join(
        part if part.strip() == "or" else alternative_in_python(part, function, known)
        for part in alternatives
    )


def alternative_in_python(part: str, function: str, known: tuple[str, ...]) -> str:
    """One alternative of a fix. A command, and what is Python already, stay as they are."""
    if re.search(r"(?<!\S)vistill[ .]", part):
        return part
    other_run = re.fullmatch(r"(\S.*?) {3}in place of .*", part)
    if other_run and function.startswith("Run("):
        return f"vistill.Run({shlex.split(other_run[1])[0]!r}).export(...)"
    settings, others, span = read_words(part)
    if not all(map(has_argument, settings)):
        return part
    call = call_of(function, settings, others, known)
    if not call:
        return part
    before, after = part[: span[0]].rstrip(), part[span[1] :].strip(" ,;")
    after = re.sub(r"^in place of .*", "", after)
    pieces = [before, call, after]
    lead = part[: len(part) - len(part.lstrip())] if not before else ""
    return lead + "   ".join(filter(None, pieces))


def call_of(
    function: str, settings: Mapping[str, Any], others: Mapping[str, Any], known: tuple[str, ...]
) -> str:
    """The call with some settings and options; empty where the function takes none of them."""
    if function == "load_prompts":
        return rows_call(settings)
    text = merged_arguments(settings) if settings else ""
    if function == "load":
        model = re.fullmatch(r"(?:student|teacher)=(vistill\.load\(.*\))", text)
        return model[1] if model else ""
    if function == "generate":
        text = re.sub(r"^student=", "model=", text)
    options = [f"{name}={written(value)}" for name, value in others.items()]
    text = ", ".join(filter(None, [text, *options]))
    is_known = {*re.findall(r"(?:^|, )(\w+)=", text)} & {*known}
    return f"vistill.{function}(..., {text})" if is_known else ""


def rows_call(settings: Mapping[str, Any]) -> str:
    """The call of `vistill.load_prompts` with settings of `data`; empty for other settings."""
    if not settings or not all(key.startswith("data.") for key in settings):
        return ""
    names = {key.removeprefix("data."): value for key, value in settings.items()}
    source = written(names.pop("train")) if "train" in names else "..."
    arguments = [
        f"{'image_folder' if name == 'images' else name.rpartition('.')[2]}={written(value)}"
        for name, value in names.items()
    ]
    return f"vistill.load_prompts({', '.join([source, *arguments])})"


def read_words(part: str) -> tuple[dict[str, Any], dict[str, Any], tuple[int, int]]:
    """The settings and the options of a text, and from where to where they stand."""
    settings: dict[str, Any] = {}
    others: dict[str, Any] = {}
    places: list[int] = []
    option = ""
    for match in WORD.finditer(part):
        word = match.group().rstrip(",;")
        (plain,) = shlex.split(word) or [""]
        setting = SETTING.fullmatch(plain)
        if option:
            lists = {"accept": plain.split(","), "plugins": [plain]}
            others[option] = lists.get(option, plain)
        elif setting:
            settings[setting[1]] = read(setting[2])
        if option or setting or word in OPTIONS:
            places += [match.start(), match.start() + len(word)]
        option = "" if option else OPTIONS.get(word, "")
    return settings, others, (min(places, default=0), max(places, default=0))


@contextmanager
def fixes_in_python(function: str, known: tuple[str, ...]) -> Iterator[None]:
    """Word the fixes of errors that leave the block for a function of `vistill`."""
    try:
        yield
    except VistillError as error:
        error.what = re.sub(r"^--(?=[a-z])", "", error.what)
        error.fix = fix_in_python(error.fix, function, known)
        error.note = fix_in_python(error.note, function, known)
        error.args = (error.render(),)
        raise


@contextmanager
def reading_recipe() -> Iterator[None]:
    """Keep the fixes of settings classes as they are typed on a command line."""
    token = READS_RECIPE.set(True)
    try:
        yield
    finally:
        READS_RECIPE.reset(token)


def with_python_fixes(kind: type[Settings]) -> type[Settings]:
    """Decorate a settings class: the fix of a wrong value is in Python, except for a recipe."""
    plain = kind.__init__

    @functools.wraps(plain)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        try:
            plain(self, *args, **kwargs)
        except VistillError as error:
            if not READS_RECIPE.get():
                error.fix = constructor_fix(kind.__name__, error.fix)
                error.args = (error.render(),)
            raise

    kind.__init__ = __init__
    return kind


def constructor_fix(name: str, fix: str) -> str:
    """The fix of a settings class as its constructor, for each alternative."""
    classes = {kind: group for group, (_, kind) in GROUPS.items()}
    group = {**classes, **{kind: key for key, kind in INNER.items()}}[name]
    alternatives = []
    for part in fix.split("   or   "):
        settings, _, _ = read_words(part.split("   in place of ")[0])
        fields = {key.removeprefix(f"{group}."): value for key, value in settings.items()}
        if not fields or (group == "data" and any("." in key for key in fields)):
            alternatives.append(part)
        elif group == "data":  # its fields are those of `vistill.load_prompts`, too
            given = ", ".join(f"{key}={written(value)}" for key, value in fields.items())
            alternatives.append(f"vistill.{name}({given})")
        else:
            full = {f"{group}.{key}": value for key, value in fields.items()}
            alternatives.append(merged_arguments(full).partition("=")[2])
    return "   or   ".join(alternatives)


def in_python(
    function: str, *known: str
) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Decorate a function of `vistill`: the fixes of its errors are in Python.

    Args:
        function: as a caller names it, behind `vistill.`.
        known: its arguments that a setting can stand for.
    """

    def decorate(wrapped: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        @functools.wraps(wrapped)
        def wrapper(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
            with fixes_in_python(function, known):
                return wrapped(*args, **kwargs)

        return wrapper

    return decorate
