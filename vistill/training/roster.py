"""The rows of a run: written down at its first start, kept at every other; rows that go bad later are replaced.

The order of the rows is a function of their number, so a row that can no longer be used keeps its place in it. Its
slots are filled by the next rows of the order: a function of the step and of what is gone, which a checkpoint carries.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from vistill.errors import DataError, RolloutError
from vistill.runs.folder import RunFolder
from vistill.runs.storage import write_json
from vistill.training.plan import Plan
from vistill.types import Prompt

FILE = "rows.json"


def enrolled(plan: Plan, folder: RunFolder) -> Plan:
    """The plan with the rows of the run's first start, in their order; missing ones are gone from the first step on.

    Raises:
        DataError: D307, more rows are missing than may be, or one of the evaluation.
    """
    now = {"train": listed(plan.train_prompts), "eval": listed(plan.eval_prompts)}
    path = folder.path / FILE
    if not path.exists() or not folder.has_started():
        write_json(path, now)
        return plan
    then = json.loads(path.read_text(encoding="utf-8"))
    if then == now:
        return plan
    if then["eval"] != now["eval"]:
        raise other_data(plan, folder, "the evaluation rows are others than at the start", then["eval"], now["eval"])
    there = {(p.id, p.content): p for p in plan.train_prompts}
    asked = [(name, content) for name, content in then["train"]]
    rows = [there.get(row, Prompt(row[0], ())) for row in asked]
    gone = {row[0]: "missing, or changed since the start" for row in asked if row not in there}
    if len(gone) > plan.max_bad_share * len(rows):
        raise other_data(
            plan, folder, f"{len(gone)} of {len(rows)} rows are missing or changed", then["train"], now["train"]
        )
    new = len(plan.train_prompts) - (len(rows) - len(gone))
    folder.event(f"{len(gone)} rows are missing or changed since the start, {new} are new and not used")
    return replace(plan, train_prompts=rows, gone=gone)


def listed(prompts: Sequence[Prompt]) -> list[list[str]]:
    """What a row is known by: its id and the hash of its content."""
    return [[p.id, p.content] for p in prompts]


def other_data(plan: Plan, folder: RunFolder, what: str, then: list[list[str]], now: list[list[str]]) -> DataError:
    """D307 with the first row that is not as it was."""
    here = {tuple(row) for row in now}
    first = next((name for name, content in then if (name, content) not in here), None)
    return DataError(
        "D307",
        f"the data are not those this run was started with: {what}",
        why=f"first that is missing: row {first}" if first else f"{len(then)} rows then, {len(now)} now",
        fix="put the data back and run the same command again, or start a new run: run={folder.path}-2",
        note=f"up to {plan.max_bad_share:.1%} of the training rows may go missing (data.max_bad_share)",
    )


def missing_now(plan: Plan) -> dict[str, tuple[str, str]]:
    """Rows that this start no longer found, as rows that went bad."""
    return {name: ("D307", reason) for name, reason in plan.gone.items()}


def partners_of(prompts: Sequence[Prompt]) -> dict[str, Prompt]:
    """For each prompt the next one: whose pictures or thoughts some views show."""
    following = [*prompts[1:], *prompts[:1]]
    return {prompt.id: other for prompt, other in zip(prompts, following, strict=True)}


def present(prompts: Sequence[Prompt], gone: Collection[str]) -> list[Prompt]:
    """The rows that are not gone."""
    return [p for p in prompts if p.id not in gone]


def to_blame(error: DataError | RolloutError, prompts: Iterable[Prompt]) -> dict[str, tuple[str, str]]:
    """Rows that an error comes from, with code and reason: those it names, or whose pictures can no longer be read."""
    found = dict.fromkeys(error.rows, (error.code, error.what))
    for prompt in prompts:
        try:
            for image in (*prompt.images, *prompt.thoughts):
                image.load()
        except DataError as reason:
            found[prompt.id] = (reason.code, f"{reason.what}; {reason.why}")
    return found


def set_aside(
    plan: Plan, folder: RunFolder, gone: dict[str, str], bad: Mapping[str, tuple[str, str]], step: int
) -> None:
    """Write down rows that are gone from a step on, in the run folder and in the state that a checkpoint carries."""
    where = {p.id: p.labels.get("row", p.id) for p in plan.train_prompts if p.id in bad}
    known = {record["id"] for record in folder.read(folder.replaced)}
    for name, (code, reason) in bad.items():
        gone[name] = code
        if name not in known:
            record = {"step": step, "id": name, "where": where.get(name, name), "code": code, "reason": reason}
            folder.log(folder.replaced, record)
            folder.event(f"step {step}: row {where.get(name, name)} is set aside and replaced ({code}: {reason})")
            plan.progress({"event": f"row {where.get(name, name)} is set aside and replaced ({code})"})


def bearable(plan: Plan, gone: Collection[str]) -> bool:
    """Whether so many rows may be gone, and enough are left for a step."""
    rows = len(plan.train_prompts)
    return len(gone) <= plan.max_bad_share * rows and rows - len(gone) >= plan.train.prompts_per_step
