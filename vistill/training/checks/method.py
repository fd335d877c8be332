"""Checks of the method: what it cannot do without, its gate, and the responses a teacher writes before step 1."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vistill.batch import EntryGate, Need
from vistill.data.keys import num_steps
from vistill.data.loading import check_rows_per_step
from vistill.errors import ConfigError, DataError, ModelError
from vistill.evaluation.privilege import measure_privilege
from vistill.rollouts.build import make_engine
from vistill.runs.storage import read_json, to_json
from vistill.training.checkpoint import weights_hash
from vistill.training.checks.check import TRAINING_PURPOSES, WRITING_PURPOSES, StartCheck
from vistill.training.memory_budget import choose_split
from vistill.training.response_source import ResponseSource, check_response
from vistill.training.row_lock import restore_rows
from vistill.training.run_lock import run_fingerprint
from vistill.training.teacher_responses import keep_correct_responses, write_teacher_responses
from vistill.types import Prompt, Reader, Writer
from vistill.views import has_thoughts

if TYPE_CHECKING:
    from vistill.training.setup import RunSetup


def check_requirements(setup: "RunSetup") -> str:
    """Refuse what the method cannot do without (C103, C101, D302 to D305); leave out rows without thoughts."""
    objective, prompts = setup.objective, setup.train_prompts
    needs, name = objective.needs(), type(objective).__name__
    if Need.SIBLINGS in needs and setup.rollout.per_prompt == 1:
        raise ConfigError(
            "C103",
            f"rollout.per_prompt = 1, but {name} compares siblings of one prompt",
            why="with one rollout every weight is 1 and every advantage 0",
            fix="rollout.per_prompt=4",
        )
    reads_teacher = (
        any(p.reader is Reader.TEACHER for p in objective.passes()) or objective.off_policy() > 0
    )
    if reads_teacher and not setup.has_teacher:
        raise ConfigError(
            "C101",
            f"{name} needs a teacher",
            fix="teacher.model=FOLDER_OR_HUB_ID   or   vistill.distill(student, teacher, ...) with a model",
        )
    if Need.IMAGE in needs and not any(p.images for p in prompts):
        raise DataError(
            "D305",
            f"{name} needs pictures, and no row has one",
            fix="method=opd   or   data.columns.images=COLUMN",
        )
    if Need.REWARD in needs or objective.keep_correct:
        check_answers(prompts, name)
    if objective.writer is Writer.DATA:
        for prompt in prompts:
            check_response(prompt)
    keep_rows_with_thoughts(setup, name)
    wanted = ", ".join(sorted(str(need) for need in needs)) or "nothing beyond its passes"
    return f"{name} needs {wanted}: there on {len(setup.train_prompts):,} rows"


def keep_rows_with_thoughts(setup: "RunSetup", name: str) -> None:
    """Leave out rows without visual thoughts where the method needs them (D304 where none is left)."""
    if Need.THOUGHTS not in setup.objective.needs():
        return
    source, prompts = setup.recipe.views.thought, setup.train_prompts
    kept = [p for p in prompts if has_thoughts(p, source)]
    if not kept:
        raise no_thoughts_error(name, source)
    if len(kept) < len(prompts):
        setup.folder.event(
            f"left out {len(prompts) - len(kept)} of {len(prompts)} rows without visual thoughts"
        )
    setup.train_prompts = kept


def check_answers(prompts: Sequence[Prompt], name: str) -> None:
    """D302 for the first row without a gold answer."""
    without = [p for p in prompts if p.answer is None]
    if without:
        raise DataError(
            "D302",
            f"{name} asks whether answers are right, and {len(without)} of {len(prompts)} rows have no gold answer",
            where=without[0].labels.get("row", without[0].id),
            why="the reward of such a row would be 0 whatever the student says",
            fix="data.columns.answer=COLUMN, or leave these rows out",
        )


def no_thoughts_error(name: str, source: str) -> DataError:
    """D304."""
    column = "thoughts" if source == "data" else "boxes"
    return DataError(
        "D304",
        f"{name} needs visual thoughts, and no row has any",
        why=f"views.thought={source} takes them from the column data.columns.{column}; without them the teacher would"
        "\ndiffer from the student by the wording of two sentences alone",
        fix=f"data.columns.{column}=COLUMN, or for procedural diagrams data.diagrams.options.thoughts=true",
        note="rows with boxes draw their own: data.columns.boxes=COLUMN views.thought=crop"
        if source == "data"
        else "",
    )


def check_gate(setup: "RunSetup") -> str:
    """V801 where the method's question to the untrained student has the wrong answer."""
    asks = setup.objective.entry_gate()
    if asks is None:
        return "none"
    facts = measure_gate(setup, asks)
    return f"greedy {facts['accuracy']:.1%} without thoughts, {facts['privileged_accuracy']:.1%} with them"


def measure_gate(setup: "RunSetup", asks: EntryGate) -> dict[str, Any]:
    """V801 where the thoughts change nothing, or do not make the untrained model more accurate."""
    folder = setup.folder
    file = folder.path / "gate.json"
    asked = [p for p in setup.train_prompts if p.answer is not None][: asks.rows]
    question = {
        "view": str(asks.view),
        "thought": setup.models.view.thought,
        "prompts": [p.id for p in asked],
    }
    question |= {"seed": setup.seed, "student_sha256": weights_hash(setup.models.student)}
    if not file.exists() or read_json(file).get("question") != question:
        if not asked:
            check_answers(setup.train_prompts, f"the gate of {type(setup.objective).__name__}")
        settings = replace(setup.evaluation, samples=1, seed=setup.seed)
        with make_engine(
            setup.models.student, setup.rollout.without_image_skips(), setup.poll
        ) as engine:
            found = measure_privilege(
                setup.models.student, asked, asks.view, settings, setup.models.view, engine
            )
        made = {**found.to_dict(), "passes": found.passes(), "question": question}
        folder.write("gate.json", to_json(made, exact=True))
    gate: dict[str, Any] = read_json(file, passes=bool, question=dict)
    if not gate["passes"]:
        raise ModelError(
            "V801",
            "the visual thoughts do not help this model, so there is nothing to distil",
            where=str(file),
            why=f"greedy accuracy {gate['accuracy']:.1%} without and {gate['privileged_accuracy']:.1%} with them, "
            f"generation gap {gate['generation_gap']:.4f} +- {gate['generation_gap_error']:.4f} nats a token,"
            f" {gate['rows']} rows",
            fix="a model trained to read visual thoughts: student.model=FOLDER_OR_HUB_ID",
            note="for a control on purpose: visual_opsd.gate=false",
        )
    return gate


def prepare_teacher_responses(setup: "RunSetup") -> str:
    """The teacher's responses written once, with only correct ones where the method asks for those (D306)."""
    if setup.objective.off_policy() == 0:
        return "none are needed"
    assert setup.models.teacher is not None, "the check `method` asks for a teacher"
    prompts, settings = setup.train_prompts, setup.rollout.without_image_skips()
    with setup.folder.locked(), make_engine(setup.models.teacher, settings, setup.poll) as engine:
        source = ResponseSource(engine, setup.objective, setup.rollout.per_prompt)
        written = write_teacher_responses(
            setup.models, setup.folder, source, prompts, setup.rollout, setup.seed
        )
    setup.written = written
    if setup.objective.keep_correct:
        kept = keep_correct_responses(setup.models, prompts, written, setup.reward)
        dropped = len(prompts) - len(kept)
        if dropped:
            setup.folder.event(
                f"left out {dropped} of {len(prompts)} rows: no correct response of the teacher"
            )
        setup.written = kept
        setup.train_prompts = [p for p in prompts if p.id in kept]
    return f"{sum(map(len, setup.written.values())):,} to {len(setup.written):,} prompts"


def restore_run_rows(setup: "RunSetup") -> str:
    """The rows of the run's first start, in their order (D307); the number of steps follows from them."""
    restore_rows(setup)
    rows, train = len(setup.train_prompts), setup.train
    check_rows_per_step(train.prompts_per_step, rows - len(setup.gone))
    setup.num_steps = train.steps or num_steps(rows, train.prompts_per_step, train.epochs)
    setup.fingerprint = run_fingerprint(
        setup.recipe, setup.models_hash, setup.folder.path / "rows.json"
    )
    missing = f", {len(setup.gone)} of them missing now and replaced" if setup.gone else ""
    steps = f"{setup.num_steps:,} steps of {train.prompts_per_step} prompts x {setup.rollout.per_prompt} rollouts"
    return f"{rows:,} rows{missing}: {steps}"


def check_memory(setup: "RunSetup") -> str:
    """C104 where one prompt with one response is more than the memory that may be used."""
    setup.split = choose_split(setup, setup.folder)
    if setup.split.micro_batch != "auto":
        return f"micro-batches of {setup.split.micro_batch} prompts, as the recipe says"
    return f"micro-batches of up to {setup.split.tokens:,} tokens, parts of {setup.split.part_tokens:,}"


METHOD_CHECK = StartCheck(
    "method", "the rows have what the method needs", check_requirements, TRAINING_PURPOSES
)
RUN_CHECKS: tuple[StartCheck, ...] = (
    StartCheck(
        "gate", "what the method asks of the untrained student holds", check_gate, WRITING_PURPOSES
    ),
    StartCheck(
        "teacher responses",
        "the teacher has written what is learnt from",
        prepare_teacher_responses,
        WRITING_PURPOSES,
    ),
    StartCheck(
        "rows",
        "rows and order are those of the run's first start",
        restore_run_rows,
        TRAINING_PURPOSES,
    ),
    StartCheck(
        "memory", "one prompt with one response fits into memory", check_memory, TRAINING_PURPOSES
    ),
)
