"""The rows of a run: written down at its first start, kept at every other; rows that go bad later are replaced.

The order of the rows is a function of their number, so a row that can no longer be used keeps its place in it. Its
slots are filled by the next rows of the order: a function of the step and of what is gone, which a checkpoint carries.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from vistill.errors import DataError, RolloutError, StorageError
from vistill.redaction import mask_secrets
from vistill.runs.folder import RunFolder
from vistill.runs.storage import read_json, write_json
from vistill.training.plan import Plan
from vistill.types import Prompt
from vistill.views import Partners
from vistill.views.partners import no_partner_error

if TYPE_CHECKING:
    from vistill.training.setup import RunSetup

FILE = "rows.json"


def restore_rows(setup: "RunSetup") -> None:
    """Take the rows of the run's first start, in their order; missing ones are gone from the first step on.

    Raises:
        DataError: D307, more rows are missing than may be, or one of the evaluation.
    """
    folder = setup.folder
    now = {"train": row_keys(setup.train_prompts), "eval": row_keys(setup.eval_prompts)}
    path = folder.path / FILE
    if not folder.has_started():
        write_json(path, now, exact=True)
        return
    if not path.exists():
        raise StorageError(
            "S604",
            "this run was started by a version that did not write down its rows",
            where=str(folder.path),
            why="rows had other ids then, so the noise and the rows held out would be others from here on",
            fix=f"start a new run: run={folder.path}-2",
        )
    then = read_json(path, train=list, eval=list)
    if then != now:
        restore_row_order(setup, folder, then)


def restore_row_order(
    setup: "RunSetup", folder: RunFolder, then: dict[str, list[list[str]]]
) -> None:
    """Take the rows of another start, in their order (D307 where that cannot be)."""
    train = {(p.id, p.content): p for p in setup.train_prompts}
    held = {(p.id, p.content): p for p in setup.eval_prompts}
    train_rows, held_rows = ([(row[0], row[1]) for row in then[part]] for part in ("train", "eval"))
    stood = {row[0]: row[2] or row[0] for part in ("train", "eval") for row in then[part]}
    everything = {**train, **held}
    lost = [row for row in held_rows if row not in everything]
    if lost:
        what = f"{len(lost)} of {len(held_rows)} evaluation rows are missing"
        raise other_data_error(setup, folder, what, stood[lost[0][0]])
    # a row that this start would hold out was trained on then; the teacher has written nothing for it now
    there = train if setup.written else everything
    gone = {
        row[0]: f"missing, or changed since the start ({stood[row[0]]})"
        for row in train_rows
        if row not in there
    }
    if len(gone) > setup.max_bad_share * len(train_rows):
        what = f"{len(gone)} of {len(train_rows)} rows are missing or changed"
        raise other_data_error(setup, folder, what, stood[next(iter(gone))])
    rows = [there.get(row, Prompt(row[0], ())) for row in train_rows]
    new = len(everything) - len(rows) - len(held_rows) + len(gone)
    if gone or new > 0:
        folder.event(
            f"{len(gone)} rows are missing or changed since the start, {max(0, new)} are new and not used"
        )
    setup.loaded_models = replace(
        setup.models, partners=partners_of(setup, without_replaced(rows, gone))
    )
    setup.train_prompts, setup.eval_prompts = rows, [everything[row] for row in held_rows]
    setup.missing_rows = gone


def row_keys(prompts: Sequence[Prompt]) -> list[list[str]]:
    """What a row is known by, its id and the hash of its content, and for people where it stood."""
    return [[p.id, p.content, p.labels.get("row", "")] for p in prompts]


def other_data_error(setup: "RunSetup", folder: RunFolder, what: str, first: str) -> DataError:
    """D307 with the first row that is not as it was."""
    return DataError(
        "D307",
        f"the data are not those this run was started with: {what}",
        why=f"first that is missing: row {first}",
        fix=f"put the data back and run the same command again, or start a new run: run={folder.path}-2",
        note=f"up to {setup.max_bad_share:.1%} of the training rows may go missing (data.max_bad_share)",
    )


def rows_missing_at_start(plan: Plan) -> dict[str, tuple[str, str]]:
    """Rows that this start no longer found, as rows that went bad."""
    return {name: ("D307", reason) for name, reason in plan.gone.items()}


def partners_of(plan: "Plan | RunSetup", prompts: Sequence[Prompt]) -> Partners:
    """For each prompt the next one that shows something else, where a view of the method borrows from another row.

    Raises:
        DataError: D309, all rows show the same. A single row without a partner is set aside when its turn comes.
    """
    objective = plan.objective
    views = [*(p.view for p in objective.passes()), objective.writer_view]
    partners = Partners(prompts, views, plan.models.view.thought)
    if partners.views and prompts and partners.lacking():
        raise no_partner_error(prompts[0], partners.views[0])
    return partners


def without_replaced(prompts: Sequence[Prompt], gone: Collection[str]) -> list[Prompt]:
    """The rows that are not gone."""
    return [p for p in prompts if p.id not in gone]


def bad_rows_in(
    error: DataError | RolloutError, prompts: Iterable[Prompt]
) -> dict[str, tuple[str, str]]:
    """Rows that an error comes from, with code and reason: those it names, or whose pictures can no longer be read."""
    found = dict.fromkeys(error.rows, (error.code, error.what))
    for prompt in prompts:
        try:
            for image in (*prompt.images, *prompt.thoughts):
                image.load()
        except DataError as reason:
            found[prompt.id] = (reason.code, f"{reason.what}; {reason.why}")
    return found


def replace_rows(
    plan: Plan,
    folder: RunFolder,
    gone: dict[str, str],
    bad: Mapping[str, tuple[str, str]],
    step: int,
) -> None:
    """Write down rows that are gone from a step on, in the run folder and in the state that a checkpoint carries."""
    where = {p.id: p.labels.get("row", p.id) for p in plan.train_prompts if p.id in bad}
    known = {record["id"] for record in folder.read(folder.replaced)}
    for name, (code, reason) in bad.items():
        gone[name] = code
        if name not in known:
            place = mask_secrets(where.get(name, name))
            record = {
                "step": step,
                "id": name,
                "where": place,
                "code": code,
                "reason": mask_secrets(reason),
            }
            folder.log(folder.replaced, record, exact=True)
            folder.event(
                f"step {step}: row {where.get(name, name)} is set aside and replaced ({code}: {reason})"
            )
            plan.progress(
                {"event": f"row {where.get(name, name)} is set aside and replaced ({code})"}
            )


def within_bad_row_limit(plan: Plan, gone: Collection[str]) -> bool:
    """Whether so many rows may be gone, and enough are left for a step."""
    rows = len(plan.train_prompts)
    return (
        len(gone) <= plan.max_bad_share * rows and rows - len(gone) >= plan.train.prompts_per_step
    )
