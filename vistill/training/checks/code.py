"""Check of the code that does not come with vistill: is it what the run was started with?"""

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vistill.batch import Objective
from vistill.errors import ConfigError
from vistill.plugins import Origin, source_hash
from vistill.registry import code_of, families, methods
from vistill.rollouts.server_checks import checked_url, follow_error
from vistill.rollouts.vllm_checks import find_python
from vistill.runs.recipe_changes import in_new_folder
from vistill.training.checks.check import TRAINING_PURPOSES, StartCheck
from vistill.training.run_lock import read_lock

if TYPE_CHECKING:
    from vistill.training.setup import RunSetup

Code = dict[str, dict[str, str]]


def same_code(setup: "RunSetup") -> str:
    """C201 where the source of a plug-in changed since the run began and that is not accepted.

    E303 where the recipe names vLLM and its environment is missing. R419 where it names a server,
    which does not follow the student, and the teacher writes no response.
    """
    hold_code(setup, code_in_use(setup))
    check_server(setup)
    if setup.recipe.rollout.engine == "vllm":
        find_python()
    origins = "; ".join(f"{key} from {facts['from']}" for key, facts in setup.code.items())
    return origins or "no plug-in"


def check_server(setup: "RunSetup") -> None:
    """R419 where a server would write a trained student's responses; C101 without its address."""
    if setup.recipe.rollout.engine != "server":
        return
    checked_url(setup.recipe.rollout.server)
    if setup.objective.requirements.teacher_share == 0:
        raise follow_error(f"no response of {setup.recipe.method} is written by the teacher")


def same_families(setup: "RunSetup") -> None:
    """The same for the families of the models, once they are known."""
    models = setup.models
    vlms = (models.student, models.teacher, *models.teachers.values())
    used = [vlm.family.name for vlm in vlms if vlm is not None and vlm.family.name in families]
    names = list(dict.fromkeys(used))
    hold_code(setup, code_of({"families": names}))


def hold_code(setup: "RunSetup", now: Code) -> None:
    """Compare origins and hashes with those of the first start, and write them into the lock."""
    lock = read_lock(setup.folder)
    before: Code = lock.get("code", {}) if setup.folder.has_started() else {}
    changed = [key for key, facts in now.items() if is_other(before.get(key), facts)]
    refused = [key for key in changed if key not in setup.accept]
    if refused:
        raise other_code(setup, refused, before, now)
    for key in changed:
        setup.folder.event(f"accepted change of {key}: {before[key]['from']} -> {now[key]['from']}")
    if setup.purpose == "train" and lock and now:
        accepted = [*lock.get("accepted", []), *changed]
        code = {**lock.get("code", {}), **now}
        setup.folder.write_lock({**lock, "code": code, "accepted": accepted})
    setup.code = {**setup.code, **now}


def is_other(before: Mapping[str, str] | None, now: Mapping[str, str]) -> bool:
    """Whether a source is known to be another one."""
    return bool(before and before["sha256"] and now["sha256"] and before["sha256"] != now["sha256"])


def code_in_use(setup: "RunSetup") -> Code:
    """Origin and source hash of everything that the run uses and vistill does not bring."""
    recipe, kind = setup.recipe, type(setup.objective)
    names: dict[str, list[str]] = {
        "methods": [],
        "views": views_of(setup.objective),
        "engines": [recipe.rollout.engine],
        "thoughts": [recipe.views.thought],
        "checkers": [
            recipe.reward.checker,
            *(one.checker for one in recipe.data.sets.values() if one.checker),
        ],
        "rewards": [*recipe.reward.extra],
    }
    if methods.name_of(kind) == recipe.method or (
        ":" in recipe.method and recipe.method in methods
    ):
        return code_of({**names, "methods": [recipe.method]})
    own = Origin("Python", kind.__module__)
    return {
        f"methods.{recipe.method}": {"from": str(own), "sha256": source_hash(kind, own)},
        **code_of(names),
    }


def views_of(objective: Objective) -> list[str]:
    """The views under which a method reads and writes, each once."""
    wanted = objective.requirements
    gate = () if wanted.entry_gate is None else (wanted.entry_gate.view,)
    named = (*(p.view for p in objective.passes()), wanted.writer_view, *gate)
    return list(dict.fromkeys(map(str, named)))


def digest_of(code: Mapping[str, Mapping[str, str]]) -> str:
    """One hash of the plug-ins that a run uses; empty where it uses none."""
    hashes = {key: facts["sha256"] for key, facts in code.items()}
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest() if hashes else ""


def other_code(
    setup: "RunSetup", refused: list[str], before: Mapping[str, Any], now: Mapping[str, Any]
) -> ConfigError:
    """C201 for a plug-in whose source changed."""
    lines = [
        f"{key}: another source than at the first start   ({now[key]['from']})" for key in refused
    ]
    new = in_new_folder(setup.recipe.run)
    again = f"new run: {new}   or continue knowingly: --accept {','.join(refused)}"
    return ConfigError(
        "C201",
        "this run was started with another version of a plug-in",
        where=setup.recipe.run,
        why="\n".join(lines),
        fix=f"put {before[refused[0]]['from']} back as it was"
        if setup.purpose == "replay"
        else again,
    )


CODE_CHECK = StartCheck(
    "code", "plug-ins are those of the run's first start", same_code, TRAINING_PURPOSES
)
