"""What `auto` means for a run that an earlier version started: it keeps its numbers."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from vistill.rollouts.settings import RolloutSettings
from vistill.runs.recipe_changes import flatten
from vistill.training.settings import TrainSettings

#: What versions without these keys did. Their runs do so to the end.
EARLIER_MEANING = {
    "train.optimizer": "adamw",
    "train.head_precision": "fp32",
    "rollout.weights": "own",
}
Settings = TypeVar("Settings", TrainSettings, RolloutSettings)


def kept_settings(earlier: Mapping[str, Any]) -> dict[str, str]:
    """Keys whose `auto` means for a run what it meant to the version that started it.

    Args:
        earlier: the lock of the run's last start; empty before the first step.
    """
    if "recipe" not in earlier:
        return {}
    known = flatten(earlier["recipe"])
    missing = {key: value for key, value in EARLIER_MEANING.items() if key not in known}
    return missing | dict(earlier.get("kept", {}))


def with_kept(settings: Settings, group: str, kept: Mapping[str, str]) -> Settings:
    """The settings of a group with what `auto` means for this run."""
    own = {key.rpartition(".")[2]: v for key, v in kept.items() if key.startswith(f"{group}.")}
    changed = {name: value for name, value in own.items() if getattr(settings, name) == "auto"}
    return replace(settings, **changed) if changed else settings
