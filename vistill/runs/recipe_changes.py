"""Which settings may change between two starts of a run: three classes of keys, else C201."""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vistill.errors import ConfigError, quote_setting

#: Keys that change neither data nor update: they may change on resume.
FREE_KEYS = (
    "run",
    "profile",
    "save.",
    "eval.",
    "train.micro_batch",
    "train.memory",
    "train.kernels",
    "train.attention",
    "train.gradient_checkpointing",
    "train.offload_teacher",
    "train.workers",
    "train.overlap",
    "rollout.rows_per_call",
    "rollout.vllm.",
    "rollout.server.",
    "rollout.all_truncated",
    "data.max_bad_share",
    "data.on_bad_row",
    "data.images",
    "data.overlap",
    "data.evaluation_only",
    "data.benchmarks",
    "student.device",
    "teacher.device",
)
#: Keys of the schedule, and what writes or scores, the way out where a process or server is gone:
#: changing them on resume needs --accept.
SCHEDULE_KEYS = (
    "train.lr",
    "train.epochs",
    "train.steps",
    "train.schedule.",
    "rollout.engine",
    "train.teacher_scorer",
)


#: A key of a named teacher or data set has the class of the key of the only one.
PER_NAME = re.compile(r"^(?:(teacher)s|(data)\.sets)\.\w+(?=\.)")
#: Values that earlier versions wrote under another name.
RENAMED = {("reward.checker", "answers"): "auto"}

CLASS_MEANINGS = {
    "identity": "changes the data or the update",
    "schedule": "may change with --accept",
    "free": "harmless",
}


def key_class(key: str) -> str:
    """The class of a key: `free`, `schedule` or `identity`."""
    key = PER_NAME.sub(lambda match: match[1] or match[2], key)
    if any(key == free or (free.endswith(".") and key.startswith(free)) for free in FREE_KEYS):
        return "free"
    scheduled = any(key == s or (s.endswith(".") and key.startswith(s)) for s in SCHEDULE_KEYS)
    return "schedule" if scheduled else "identity"


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a tree to `{"train.lr": 1e-6, ...}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def unused_folder(run: str) -> str:
    """`RUN-2`, or the next number whose folder does not exist."""
    return next(
        f"{run}-{number}" for number in itertools.count(2) if not Path(f"{run}-{number}").exists()
    )


def in_new_folder(run: str | Path, key: str = "run") -> str:
    """The setting that starts a new run next to this one."""
    return quote_setting(key, unused_folder(str(run)))


def compare_recipes(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    accept: Sequence[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> list[str]:
    """Compare recipes on resume. Free keys may change, others raise C201 unless accepted.

    Args:
        old: recipe of the first start.
        new: recipe of this start.
        accept: schedule keys that may change.
        defaults: values of keys that an older version did not write.

    Returns:
        The changed keys, all accepted.
    """
    differing = differences(old, new, defaults)
    changed = list(differing)
    refused = [k for k in changed if key_class(k) == "identity" or k not in accept]
    if refused:
        lines = [f"{k}   {differing[k]}   ({CLASS_MEANINGS[key_class(k)]})" for k in refused[:5]]
        allowed = [k for k in refused if key_class(k) == "schedule"]
        if len(refused) > len(lines):
            lines.append(f"and {len(refused) - len(lines)} more")
        fix = f"new run: {in_new_folder(str(new.get('run')))}"
        if len(allowed) == len(refused):
            fix += f"   or accept the change: --accept {','.join(allowed)}"
        raise ConfigError(
            "C201",
            "this run was started with another recipe",
            where=str(new.get("run")),
            why="\n".join(lines),
            fix=fix,
        )
    return changed


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """Keys that differ between two recipes and are not free, each with `before -> after`."""

    def json_values(tree: Mapping[str, Any]) -> dict[str, Any]:
        values = json.loads(json.dumps(flatten(tree), default=str))
        return {k: RENAMED.get((k, v), v) if isinstance(v, str) else v for k, v in values.items()}

    before, after = ({**json_values(defaults or {}), **json_values(tree)} for tree in (old, new))
    return {
        key: f"{before.get(key)} -> {after.get(key)}"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key) and key_class(key) != "free"
    }


def changed_versions(lock: Mapping[str, Any]) -> list[str]:
    """`torch 2.11.0 -> 2.13.0` for each package whose version changed between starts of a run."""
    first, changed = lock.get("versions", {}), {}
    for start in lock.get("starts", []):
        for name, new in start.get("versions", {}).items():
            if first.get(name, new) != new:
                changed[f"{name} {first[name]} -> {new}"] = None
    return list(changed)
