"""Everything a recipe can name, by kind, and the plug-ins that add to it.

A plug-in file registers with a decorator, `@methods.register("mine")`; an installed package names
entry points of the groups `vistill.methods`, `vistill.views` and so on. To add something to vistill
itself: a file, and a line here. `vistill list` prints the registries. Nothing here imports torch.
"""

import itertools
import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vistill import plugins
from vistill.errors import ConfigError
from vistill.lookup import Registry, Shipped
from vistill.plugins import Origin

__all__ = ["KINDS", "Registry", "Shipped", "code_of", "load_plugins"]

methods = Registry(
    "methods",
    "method",
    {
        "sft": "vistill.objectives.sft:SFT",
        "kd": "vistill.objectives.kd:KD",
        "opd": "vistill.objectives.opd:OPD",
        "va_opd": "vistill.objectives.va_opd:VAOPD",
        "grounded_opd": "vistill.objectives.grounded_opd:GroundedOPD",
        "vgs": "vistill.objectives.vgs:VGS",
        "vgs_language": "vistill.objectives.vgs_language:VGSLanguage",
        "visual_opsd": "vistill.objectives.visual_opsd:VisualOPSD",
        "grpo": "vistill.objectives.grpo:GRPO",
        "papo": "vistill.objectives.papo:PAPO",
        "grpo_opd": "vistill.objectives.hybrid:GRPOWithOPD",
        "grpo_vgs": "vistill.objectives.hybrid:GRPOWithVGS",
        "grpo_va_opd": "vistill.objectives.hybrid:GRPOWithVAOPD",
        "gkd": "vistill.objectives.gkd:GKD",
        "distillm": "vistill.objectives.distillm:DistiLLM",
        "s2vopd": "vistill.objectives.s2vopd:S2VOPD",
        "vcsd": "vistill.objectives.vcsd:VCSD",
        "eopd": "vistill.objectives.eopd:EOPD",
        "iw_opd": "vistill.objectives.iw_opd:IWOPD",
        "vppo": "vistill.objectives.vppo:VPPO",
    },
    base="vistill.batch:Objective",
)
views = Registry(
    "views",
    "view",
    {
        name: f"vistill.views.builtin:{name}"
        for name in (
            "full",
            "pixelated",
            "text_only",
            "swapped",
            "masked",
            "black",
            "noise",
            "degraded",
            "privileged",
            "privileged_noise",
            "privileged_blank",
            "privileged_mismatched",
            "privileged_prompts",
        )
    },
    arguments=("prompt", "context"),
)
families = Registry(
    "families",
    "family",
    {
        "qwen3_vl": "vistill.models.families.qwen3_vl:Qwen3VLFamily",
        "generic": "vistill.models.families.generic:GenericFamily",
    },
    base="vistill.models.families.base:Family",
)
engines = Registry(
    "engines",
    "engine",
    {
        "shared": "vistill.rollouts.build:shared_engine",
        "hf": "vistill.rollouts.build:hf_engine",
        "vllm": "vistill.rollouts.build:vllm_engine",
        "server": "vistill.rollouts.build:server_engine",
    },
    arguments=("vlm", "settings", "poll"),
)
tasks = Registry(
    "tasks",
    "task",
    {"answers": "vistill.evaluation.runner:evaluate"},
    arguments=("models", "prompts", "settings", "poll", "diagrams", "engine"),
)
checkers = Registry(
    "checkers",
    "checker",
    {
        **{
            name: f"vistill.answers.checkers.{name}:check"
            for name in (
                "auto",
                "choice",
                "number",
                "math",
                "yes_no",
                "text",
                "exact",
                "contains",
                "vqa",
                "anls",
                "relaxed",
                "maze",
                "maze_strict",
            )
        },
        "answers": "vistill.answers.checkers.auto:check",
    },
    arguments=("response", "answer", "choices", "take", "math"),
)
rewards = Registry(
    "rewards",
    "reward",
    {
        "accuracy": "vistill.training.rewards:accuracy",
        "format": "vistill.training.rewards:format_match",
    },
    arguments=("response", "prompt", "settings", "math"),
)
thoughts = Registry(
    "thoughts",
    "thought source",
    {
        "data": "vistill.views.thoughts:DataThoughts",
        "crop": "vistill.views.thoughts:Crops",
        "box": "vistill.views.thoughts:Boxes",
    },
    base="vistill.views.thoughts:ThoughtSource",
)
studies = Registry(
    "studies",
    "study",
    {
        "demo": "vistill.studies.demo:run_demo",
        "methods": "vistill.studies.methods:run_methods",
        "stages": "vistill.studies.stages:run_stages",
    },
)
#: Every registry by its kind.
KINDS: dict[str, Registry] = {
    registry.kind: registry
    for registry in (methods, views, families, engines, tasks, checkers, rewards, thoughts, studies)
}

#: The note of an error whose fix executes a plug-in.
PLUGIN_NOTE = "a plug-in is executed: give only one that you know"


def load_plugins(files: Sequence[str | Path]) -> None:
    """Execute plug-in files, so that recipes can name what they register.

    A file is executed again only if it changed.

    Raises:
        ConfigError: C106, a file cannot be read or executed, or registers an object of the wrong
            kind.
    """
    for given in map(str, files):
        known = plugins.FILES.get(Path(given).resolve())
        if (
            known is not None
            and known.path.is_file()
            and plugins.digest(known.path) == known.sha256
        ):
            continue
        if known is not None:
            forget_file(known)
        try:
            plugins.execute_file(given)
        except ConfigError:
            for registry in KINDS.values():
                registry.forget(Origin("file", given))
            raise


def forget_file(file: plugins.PluginFile) -> None:
    """Drop a plug-in file and what it registered."""
    for registry in KINDS.values():
        registry.forget(file.origin)
    plugins.FILES.pop(file.path, None)
    sys.modules.pop(file.module.__name__, None)


def forget_plugins() -> None:
    """Drop every plug-in file and everything that was registered in this process."""
    for file in list(plugins.FILES.values()):
        forget_file(file)
    for registry in KINDS.values():
        registry.forget_all()


def plugin_words() -> list[str]:
    """`--plugin mine.py` for each file of this process, for commands that are started or shown."""
    return [word for file in plugins.FILES.values() for word in ("--plugin", file.given)]


def explain_command(word: str) -> str:
    """The command that explains a method or a key, with the plug-in files that define it."""
    own = [] if word.partition(".")[0] in methods.builtin else plugin_words()
    return shlex.join(["vistill", "explain", word, *own])


def code_of(kinds: Mapping[str, Sequence[str]]) -> dict[str, dict[str, str]]:
    """By `kind.name`: origin and source hash of the names of plug-ins; for `run.lock.json`."""
    code = {}
    for kind, names in kinds.items():
        registry = KINDS[kind]
        for name in dict.fromkeys(map(str, names)):
            if name not in registry.builtin:
                facts = {
                    "from": str(registry.entry(name).origin),
                    "sha256": registry.source_hash(name),
                }
                code[f"{kind}.{name}"] = facts
    return code


def file_of_command(lock: Mapping[str, Any]) -> tuple[str, str, str]:
    """The only plug-in file of the run's first command: tasks are not listed under `code`."""
    try:
        words = shlex.split(str(lock["command"]).replace("--plugin=", "--plugin "))
    except ValueError:  # an earlier version wrote quotes of the user without quoting them
        words = str(lock["command"]).split()
    files = [after for word, after in itertools.pairwise(words) if word == "--plugin"]
    return ("file", "", files[0]) if len(files) == 1 else ("", "", "")


def way_back(run: str, key: str) -> str:
    """The line to paste that gives back what a run used and this process does not know, or "".

    Args:
        run: the run folder.
        key: `kind.name`, as `run.lock.json` has it under `code`.
    """
    try:
        lock = json.loads((Path(run) / "run.lock.json").read_text(encoding="utf-8"))
        facts = lock["code"].get(key)
        kind, _, name = str(facts["from"]).partition(" ") if facts else file_of_command(lock)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""
    if kind == "package":
        package, _, version = name.partition(" ")
        pinned = f"{package}=={version}" if version else package
        return f"pip install {pinned}" if re.fullmatch(r"[\w.=+-]+", pinned) else ""
    if kind != "file" or name in plugin_words():
        return ""
    if "vistill" in sys.argv[0]:
        return shlex.join(["vistill", *sys.argv[1:], "--plugin", name])
    return f"plugins=[{json.dumps(name)}]"
