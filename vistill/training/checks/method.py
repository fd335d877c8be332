"""Checks of the method: its requirements, its gate, and the teacher's responses before step 1."""

from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vistill.batch import EntryGate, Need, Objective
from vistill.data.keys import num_steps
from vistill.data.loading import check_rows_per_step
from vistill.data.mixture import check_mixture, describe_mixture, mixture_of
from vistill.errors import ConfigError, ModelError
from vistill.evaluation.privilege import measure_privilege
from vistill.rollouts.build import make_engine
from vistill.runs.storage import read_json, to_json
from vistill.training.checkpoint import weights_hash
from vistill.training.checks.check import TRAINING_PURPOSES, WRITING_PURPOSES, StartCheck
from vistill.training.checks.code import digest_of
from vistill.training.checks.rows import RowNeeds, check_answers, needs_in_words, usable_rows
from vistill.training.memory_budget import choose_split
from vistill.training.optim import require_optimizer
from vistill.training.recipe import TeacherSettings
from vistill.training.response_source import ResponseSource
from vistill.training.row_lock import restore_rows
from vistill.training.run_lock import run_fingerprint
from vistill.training.settings import rewards_of_sets
from vistill.training.teacher_responses import (
    TeacherWriter,
    keep_correct_responses,
    write_teacher_responses,
)
from vistill.training.teacher_scores import SAMPLED_TOKEN, TeacherScores, check_scorer
from vistill.training.teachers import naming_teacher
from vistill.types import Reader

if TYPE_CHECKING:
    from vistill.training.setup import RunSetup

#: Settings of `eval` that decide what a gate measures.
GATE_SETTINGS = ("temperature", "top_p", "max_new_tokens", "answer", "checker", "noise")


def check_requirements(setup: "RunSetup") -> str:
    """Check the method's requirements (C103, C101, D302 to D305); drop rows without thoughts.

    E301 for an optimizer whose package is missing.
    """
    require_optimizer(setup.train.optimizer)
    objective = setup.objective
    wanted, name = objective.requirements, type(objective).__name__
    needs = wanted.needs
    if Need.SIBLINGS in needs and setup.rollout.per_prompt == 1:
        raise ConfigError(
            "C103",
            f"rollout.per_prompt = 1, but {name} compares siblings of one prompt",
            why="with one rollout every weight is 1 and every advantage 0",
            fix="rollout.per_prompt=4",
        )
    reads_teacher = (
        any(p.reader is Reader.TEACHER for p in objective.passes()) or wanted.teacher_share > 0
    )
    if reads_teacher and not setup.has_teacher:
        raise ConfigError(
            "C101",
            f"{name} needs a teacher",
            fix="teacher.model=FOLDER_OR_HUB_ID   or   vistill.distill(student, TEACHER, ...)",
        )
    if setup.train.teacher_scorer == SAMPLED_TOKEN:
        check_scorer(name, objective.passes(), setup.rollout, len(setup.recipe.teachers))
    keep_usable_rows(setup)
    needed = needs_in_words(row_needs(objective))
    return f"{needed}: satisfied by {len(setup.train_prompts):,} rows"


def keep_usable_rows(setup: "RunSetup") -> None:
    """Drop rows without visual thoughts if the method needs them (D302 to D305)."""
    prompts, drawn = setup.train_prompts, bool(setup.train_data.diagrams)
    needs = row_needs(setup.objective)
    kept = usable_rows(needs, prompts, setup.recipe.views.thought, drawn)
    if len(kept) < len(prompts):
        dropped = len(prompts) - len(kept)
        setup.folder.event(f"dropped {dropped} of {len(prompts)} rows without visual thoughts")
        setup.train_prompts = kept


def row_needs(objective: Objective) -> RowNeeds:
    """What a method with its knobs needs of the training rows."""
    wanted = objective.requirements
    needs = [str(need) for need in wanted.needs]
    return RowNeeds(type(objective).__name__, needs, wanted.answers, str(wanted.writer))


def check_gate(setup: "RunSetup") -> str:
    """V801 if the untrained student does not pass the method's gate."""
    gate = setup.objective.requirements.entry_gate
    if gate is None:
        return "none"
    measured = measure_gate(setup, gate)
    without, with_thoughts = measured["accuracy"], measured["privileged_accuracy"]
    return f"greedy accuracy {without:.1%} without thoughts, {with_thoughts:.1%} with them"


def measure_gate(setup: "RunSetup", gate: EntryGate) -> dict[str, Any]:
    """V801 if the thoughts change nothing, or do not make the untrained model more accurate.

    Measures before step 1. A later start with the same question reads `gate.json`, and so does
    every start after step 1, when the run has passed the gate.
    """
    file = setup.folder.path / "gate.json"
    prompts = [p for p in setup.train_prompts if p.answer is not None][: gate.rows]
    question = {
        "view": str(gate.view),
        "thought": setup.models.view.thought,
        "prompts": [p.id for p in prompts],
    }
    question |= {"seed": setup.seed, "student_sha256": weights_hash(setup.models.student)}
    question |= {key: getattr(setup.evaluation, key) for key in GATE_SETTINGS}
    is_measured = file.exists() and (
        setup.folder.has_started() or read_json(file).get("question") == question
    )
    if not is_measured:
        if not prompts:
            check_answers(setup.train_prompts, f"the gate of {type(setup.objective).__name__}")
        settings = replace(setup.evaluation, samples=1, seed=setup.seed)
        with make_engine(
            setup.models.student, setup.rollout.without_image_skips(), setup.poll
        ) as engine:
            privilege = measure_privilege(
                setup.models.student, prompts, gate.view, settings, setup.models.view, engine
            )
        record = {**privilege.to_dict(), "passes": privilege.passes(), "question": question}
        setup.folder.write("gate.json", to_json(record, exact=True))
    measured: dict[str, Any] = read_json(file, passes=bool, question=dict)
    if not measured["passes"]:
        raise gate_error(measured, str(file), gate.switch)
    return measured


def gate_error(measured: dict[str, Any], file: str, switch: str) -> ModelError:
    """V801; `switch` is the setting that leaves the gate out, if there is one."""
    without, with_thoughts = measured["accuracy"], measured["privileged_accuracy"]
    gap, error = measured["generation_gap"], measured["generation_gap_error"]
    return ModelError(
        "V801",
        "the visual thoughts do not help this model, so there is nothing to distil",
        where=file,
        why=f"greedy accuracy {without:.1%} without and {with_thoughts:.1%} with them,"
        f" generation gap {gap:.4f} +- {error:.4f} nats per token, {measured['rows']} rows",
        fix="a model trained to read visual thoughts: student.model=FOLDER_OR_HUB_ID",
        note=f"to run without the gate, as a control: {switch}" if switch else "",
    )


def prepare_teacher_responses(setup: "RunSetup") -> str:
    """Let the teacher write its responses once; drop wrong ones if the method says so (D306)."""
    if setup.objective.requirements.teacher_share == 0:
        return "none needed"
    assert setup.models.has_teacher, "the check `method` requires a teacher"
    prompts, settings = setup.train_prompts, setup.rollout.without_image_skips()
    with ExitStack() as stack:
        stack.enter_context(setup.folder.locked())
        writers = []
        for name, models in setup.models.by_teacher():
            teacher = models.reader(Reader.TEACHER)
            engine = stack.enter_context(make_engine(teacher, settings, setup.poll))
            source = ResponseSource(engine, setup.objective, setup.rollout.per_prompt)
            own = [p for p in prompts if setup.models.teacher_of(p) is teacher]
            writers.append(TeacherWriter(models, source, own, settings_of(setup, name), name))
        written = write_teacher_responses(setup.folder, writers, setup.recipe.rollout, setup.seed)
    setup.teacher_responses = written
    if setup.objective.requirements.keep_correct:
        by_set = rewards_of_sets(setup.reward, setup.recipe.data.sets)
        with naming_teacher(only_role(setup)):
            correct = keep_correct_responses(setup.models, prompts, written, setup.reward, by_set)
        dropped = len(prompts) - len(correct)
        if dropped:
            setup.folder.event(
                f"dropped {dropped} of {len(prompts)} rows: the teacher has no correct response"
            )
        setup.teacher_responses = correct
        setup.train_prompts = [p for p in prompts if p.id in correct]
    count = sum(map(len, setup.teacher_responses.values()))
    return f"{count:,} for {len(setup.teacher_responses):,} prompts"


def only_role(setup: "RunSetup") -> str:
    """The role of the only teacher model: `teachers.NAME` if a recipe names it so."""
    roles = set(setup.teacher_roles.values())
    return roles.pop() if len(roles) == 1 else "teacher"


def settings_of(setup: "RunSetup", name: str) -> TeacherSettings:
    """The settings of one of several teachers by name, or of the only one."""
    name = name or only_role(setup).partition(".")[2]
    return setup.recipe.teachers[name] if name else setup.recipe.teacher


def restore_run_rows(setup: "RunSetup") -> str:
    """Restore rows and order of the first start (D307); they give the number of steps."""
    restore_rows(setup)
    rows, train = len(setup.train_prompts), setup.train
    check_rows_per_step(train.prompts_per_step, rows - len(setup.missing_rows))
    setup.mixture = mixture_of(setup.train_prompts, setup.recipe.data.sets)
    if setup.mixture is not None:
        prompts = setup.train_prompts
        check_mixture(
            setup.mixture,
            train.prompts_per_step,
            lambda row: prompts[row].id in setup.missing_rows,
        )
    setup.num_steps = train.steps or num_steps(rows, train.prompts_per_step, train.epochs)
    rows_file = setup.folder.path / "rows.json"
    setup.fingerprint = run_fingerprint(
        setup.recipe, setup.models_hash, rows_file, digest_of(setup.code)
    )
    missing, per_prompt = len(setup.missing_rows), setup.rollout.per_prompt
    replaced = f", {missing} of them missing now and replaced" if missing else ""
    steps = f"{setup.num_steps:,} steps of {train.prompts_per_step} prompts x {per_prompt} rollouts"
    sets = ""
    if setup.mixture is not None:
        described = describe_mixture(setup.mixture, setup.num_steps, train.prompts_per_step)
        sets = "\n" + described.replace("; ", "\n")
    return f"{rows:,} rows{replaced}: {steps}{sets}"


def check_teacher_server(setup: "RunSetup") -> str:
    """R412, R417 or R418 unless the server that scores as the teacher serves it."""
    if setup.train.teacher_scorer != SAMPLED_TOKEN:
        return "none"
    assert setup.models.teacher is not None, "the check `method` requires a teacher"
    return TeacherScores(setup.models.teacher, setup.rollout, setup.poll).prove()


def check_memory(setup: "RunSetup") -> str:
    """C104 if one prompt with one response exceeds the memory budget."""
    setup.split = choose_split(setup, setup.folder)
    split = setup.split
    if split.micro_batch != "auto":
        return f"micro-batches of {split.micro_batch} prompts, as the recipe says"
    return f"micro-batches of up to {split.tokens:,} tokens, read {split.part_tokens:,} at a time"


METHOD_CHECK = StartCheck(
    "method", "the rows meet the method's requirements", check_requirements, TRAINING_PURPOSES
)
RUN_CHECKS: tuple[StartCheck, ...] = (
    StartCheck(
        "gate",
        "the untrained student passes the method's gate",
        check_gate,
        WRITING_PURPOSES,
        phase="measuring the gate",
    ),
    StartCheck(
        "teacher responses",
        "the teacher has written the responses to learn from",
        prepare_teacher_responses,
        WRITING_PURPOSES,
        phase="teacher responses",
    ),
    StartCheck(
        "rows",
        "rows and their order are those of the first start",
        restore_run_rows,
        TRAINING_PURPOSES,
    ),
    StartCheck(
        "teacher's server",
        "a server that scores as the teacher serves it",
        check_teacher_server,
        ("train", "check"),
    ),
    StartCheck(
        "memory",
        "one prompt with one response fits into memory",
        check_memory,
        TRAINING_PURPOSES,
        phase="measuring memory",
    ),
)
