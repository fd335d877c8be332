"""The rows of a run: locked at its first start, restored at every other, replaced if they go bad.

The order of the rows is a function of their number, so a row that cannot be used any more keeps its
place in the order. The next rows of the order fill its slots: a function of the step and of the
replaced rows, which a checkpoint carries.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from vistill.data.mixture import LABEL, fits, set_of
from vistill.errors import DataError, RolloutError, StorageError
from vistill.redaction import mask_secrets
from vistill.runs.folder import RunFolder
from vistill.runs.recipe_changes import in_new_folder
from vistill.runs.storage import read_json, write_json
from vistill.training.plan import Plan
from vistill.types import Prompt
from vistill.views import Partners
from vistill.views.partners import no_partner_error

if TYPE_CHECKING:
    from vistill.training.setup import RunSetup

FILE = "rows.json"


def restore_rows(setup: "RunSetup") -> None:
    """Use the rows of the run's first start, in their order; missing ones are replaced.

    Raises:
        DataError: D307, an evaluation row is missing, or more training rows than
            `data.max_bad_share`.
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
            "this run was started by a version that did not store its rows",
            where=str(folder.path),
            why="rows had other ids then, so noise and held-out rows would differ from now on",
            fix=f"start a new run:   {in_new_folder(folder.path)}",
        )
    locked = read_json(path, train=list, eval=list)
    if locked != now:
        restore_row_order(setup, folder, locked)


def restore_row_order(
    setup: "RunSetup", folder: RunFolder, locked: dict[str, list[list[str]]]
) -> None:
    """Use the rows of the first start, in their order (D307 where that is not possible)."""
    train = {(p.id, p.content): p for p in setup.train_prompts}
    everything = {**train, **{(p.id, p.content): p for p in setup.eval_prompts}}
    train_rows = [(row[0], row[1]) for row in locked["train"]]
    eval_rows = [(row[0], row[1]) for row in locked["eval"]]
    labels = {row[0]: row[2] or row[0] for row in (*locked["train"], *locked["eval"])}
    lost = [row for row in eval_rows if row not in everything]
    if lost:
        what = f"{len(lost)} of {len(eval_rows)} evaluation rows are missing"
        raise other_data_error(setup, folder, what, labels[lost[0][0]])
    # a training row that this start would hold out has no teacher responses now
    usable = train if setup.teacher_responses else everything
    missing = {
        row[0]: f"missing, or changed since the start ({labels[row[0]]})"
        for row in train_rows
        if row not in usable
    }
    if len(missing) > setup.max_bad_share * len(train_rows):
        what = f"{len(missing)} of {len(train_rows)} rows are missing or changed"
        raise other_data_error(setup, folder, what, labels[next(iter(missing))])
    sets = {row[0]: {LABEL: row[3]} for row in locked["train"] if len(row) > 3}
    rows = [usable.get(row, Prompt(row[0], (), labels=sets.get(row[0], {}))) for row in train_rows]
    new = len(everything) - len(rows) - len(eval_rows) + len(missing)
    if missing or new > 0:
        folder.event(
            f"{len(missing)} rows are missing or changed since the start, "
            f"{max(0, new)} are new and not used"
        )
    partners = find_partners(setup, without_replaced(rows, missing))
    setup.loaded_models = replace(setup.models, partners=partners)
    setup.train_prompts, setup.eval_prompts = rows, [everything[row] for row in eval_rows]
    setup.missing_rows = missing


def row_keys(prompts: Sequence[Prompt]) -> list[list[str]]:
    """For each row its id, the hash of its content, its place in the data, and its data set."""
    return [
        [p.id, p.content, p.labels.get("row", ""), *([set_of(p)] if set_of(p) else [])]
        for p in prompts
    ]


def other_data_error(setup: "RunSetup", folder: RunFolder, what: str, first: str) -> DataError:
    """D307 with the first row that is missing or changed."""
    return DataError(
        "D307",
        f"the data are not those this run was started with: {what}",
        why=f"first that is missing: row {first}",
        fix="put the data back and run the same command again, "
        f"or start a new run:   {in_new_folder(folder.path)}",
        note=f"up to {setup.max_bad_share:.1%} of the training rows may be missing "
        "(data.max_bad_share)",
    )


def rows_missing_at_start(plan: Plan) -> dict[str, tuple[str, str]]:
    """Rows of the first start that this start did not find, with code and reason."""
    return {name: ("D307", reason) for name, reason in plan.missing_rows.items()}


def find_partners(plan: "Plan | RunSetup", prompts: Sequence[Prompt]) -> Partners:
    """For each prompt the next one with other images or thoughts, where a view needs one.

    Raises:
        DataError: D309, all rows show the same. A single row without a partner is replaced in its
            step.
    """
    objective = plan.objective
    views = [*(p.view for p in objective.passes()), objective.requirements.writer_view]
    partners = Partners(prompts, views, plan.models.view.thought)
    if partners.views and prompts and partners.lacking():
        raise no_partner_error(prompts[0], partners.views[0])
    return partners


def without_replaced(prompts: Sequence[Prompt], replaced_rows: Collection[str]) -> list[Prompt]:
    """The rows that are not replaced."""
    return [p for p in prompts if p.id not in replaced_rows]


def bad_rows_in(
    error: DataError | RolloutError, prompts: Iterable[Prompt]
) -> dict[str, tuple[str, str]]:
    """Rows that cause an error, with code and reason: those it names, or with bad images."""
    bad = dict.fromkeys(error.rows, (error.code, error.what))
    for prompt in prompts:
        try:
            for image in (*prompt.images, *prompt.thoughts):
                image.load()
        except DataError as reason:
            bad[prompt.id] = (reason.code, f"{reason.what}; {reason.why}")
    return bad


def replace_rows(
    plan: Plan,
    folder: RunFolder,
    replaced_rows: dict[str, str],
    bad: Mapping[str, tuple[str, str]],
    step: int,
) -> None:
    """Add rows that are replaced from a step on to the state, and to the log of the run."""
    labels = {p.id: p.labels.get("row", p.id) for p in plan.train_prompts if p.id in bad}
    logged = {record["id"] for record in folder.read(folder.replaced)}
    for name, (code, reason) in bad.items():
        replaced_rows[name] = code
        if name in logged:
            continue
        label = labels.get(name, name)
        record = {
            "step": step,
            "id": name,
            "where": mask_secrets(label),
            "code": code,
            "reason": mask_secrets(reason),
        }
        folder.log(folder.replaced, record, exact=True)
        folder.event(f"step {step}: row {label} is set aside and replaced ({code}: {reason})")
        plan.progress({"event": f"row {label} is set aside and replaced ({code})"})


def within_bad_row_limit(plan: Plan, replaced_rows: Collection[str]) -> bool:
    """Whether the run may replace these rows, and has enough other ones for a step."""
    rows, bad, per_step = len(plan.train_prompts), len(replaced_rows), plan.train.prompts_per_step
    if plan.mixture is not None:
        prompts = plan.train_prompts
        usable = [
            sum(prompts[row].id not in replaced_rows for row in own) for own in plan.mixture.rows
        ]
        if not fits(plan.mixture, per_step, usable):
            return False
    return bad <= plan.max_bad_share * rows and rows - bad >= per_step
