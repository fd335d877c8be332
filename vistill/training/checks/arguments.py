"""Checks of what is passed to the functions of `vistill` in Python (C001, C002)."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path

from vistill.batch import Objective
from vistill.errors import ConfigError, closest
from vistill.models.loading import VLM
from vistill.registry import methods
from vistill.types import Prompt


def check_options(options: Mapping[str, object], known: Sequence[str]) -> None:
    """C001 for a keyword that `distill` does not have: it would be ignored silently."""
    for name in options:
        if name not in known:
            meant = "evaluation" if name == "eval" else next(iter(closest(name, known)), None)
            raise ConfigError(
                "C001",
                f'vistill.distill has no option "{name}"',
                why=f"known here: {', '.join(known)}",
                fix=f"vistill.distill(..., {meant}=...)   in place of {name}="
                if meant
                else f"leave {name} out",
            )


def check_model(model: object, name: str) -> None:
    """C002 for a model that is not loaded, such as its name."""
    if isinstance(model, VLM):
        return
    is_name = isinstance(model, (str, Path))
    raise ConfigError(
        "C002",
        f"{name} is a {type(model).__name__}, not a loaded model",
        why=f"{str(model)!r:.80}" if is_name else "it takes what vistill.load returns",
        fix=f"vistill.load({str(model)!r})" if is_name else "vistill.load(FOLDER_OR_HUB_ID)",
    )


def check_method_argument(objective: object) -> None:
    """C002 for a method's name, or its class, in place of a method."""
    name = str(objective) if isinstance(objective, str) else ""
    if inspect.isclass(objective) and issubclass(objective, Objective):
        name = methods.name_of(objective) or ""
        fix = constructor_of(name) if name else f"{objective.__name__}()"
    elif name:
        near = name if name in methods.builtin else next(iter(closest(name, methods.builtin)), "")
        fix = constructor_of(near or "opd")
    else:
        return
    what = f'"{name:.80}" is the name of a method' if name else "this is the class of a method"
    why = "vistill.distill takes a method with its knobs"
    raise ConfigError("C002", f"{what}, not a method", why=why, fix=fix)


def constructor_of(name: str) -> str:
    """`vistill.OPD()`: the expression that makes a method with its defaults."""
    import vistill

    kind = methods.entry(name).target.rpartition(":")[2]
    return f"vistill.{kind}()" if kind in vistill.__all__ else f'vistill.METHODS["{name}"]()'


def check_responses(prompts: Sequence[Prompt], responses: Sequence[str]) -> None:
    """C002 unless there is one response, a text, for each prompt."""
    if not isinstance(responses, str) and len(responses) == len(prompts):
        return
    given = "one text" if isinstance(responses, str) else f"{len(responses)} responses"
    raise ConfigError(
        "C002",
        f"{given} for {len(prompts)} prompts",
        why="each prompt is read with one response of its own",
        fix="vistill.visual_advantage(model, prompts, [RESPONSE, ...])   one for each prompt",
    )
