"""Errors whose cause cannot be planted here: they are made, and their fix is pasted."""

from pathlib import Path

from fix_cases import RECIPE_FILE, situation, start
from fix_cases_recipe import STAGES
from fix_cases_runs import RUN, start_trained

OTHER = {"FOLDER_OR_HUB_ID": "vistill:teacher", "NEW": "läufe/neu", "OTHER_FOLDER": "läufe/neu"}
SAME = {**OTHER, "FOLDER_OR_HUB_ID": "vistill:student"}


def made(place, function, rest="", verb="check", recipe=None):
    """A sound folder, and an error that a function gives there."""
    start(place, rest, verb, **({"recipe": recipe} if recipe else {}))
    place.raises = lambda place: function()


def reader_error(code, role="teacher"):
    """What the canary reports of a reader."""
    from types import SimpleNamespace

    from vistill.training.canary.reader import ReaderProbe
    from vistill.types import Reader

    reader = {"teacher": Reader.TEACHER, "student": Reader.STUDENT}[role]
    probe = SimpleNamespace(role=reader, vlm=SimpleNamespace(source="a model"))
    return ReaderProbe.error(probe, code, "what")


@situation("V803", **OTHER)
def a_teacher_ignores_the_image(place):
    made(place, lambda: reader_error("V803"))


@situation("V802", **SAME)
def a_student_ignores_the_image(place):
    made(place, lambda: reader_error("V802", "student"))


@situation("V815")
def a_student_has_dropout(place):
    made(place, lambda: reader_error("V815", "student"))


@situation("V812", **OTHER)
def a_head_has_rows_of_padding(place):
    from types import SimpleNamespace

    from vistill.training.canary.reader import check_heads

    head = SimpleNamespace(weight=[0] * 8)
    vlm = SimpleNamespace(vocabulary_size=7, head=lambda words: head, source="a model")
    models = SimpleNamespace(student=vlm, teacher=vlm, vocabulary=7)
    made(place, lambda: check_heads(models))


@situation("V801", **SAME)
def thoughts_do_not_help(place):
    from vistill.training.checks.method import gate_error

    names = ("accuracy", "privileged_accuracy", "generation_gap", "generation_gap_error", "rows")
    made(place, lambda: gate_error(dict.fromkeys(names, 0), "gate.json", ""))


@situation("M106", **OTHER)
def a_teacher_cannot_read_a_view(place):
    from vistill.training.checks.text_only import unreadable_view_error

    made(place, lambda: unreadable_view_error("teacher.text_only", "RuntimeError: no"))


@situation("M110")
def transformers_lacks_an_argument(place):
    from vistill.models.families.layers import check_signature

    made(place, lambda: check_signature(print, ["image"]))


@situation("C101")
def a_family_has_no_limit_of_image_tokens(place):
    from types import SimpleNamespace

    from vistill.models.families.base import Family

    family = SimpleNamespace(name="llava", image_tokens=lambda image: 576)
    rest = "data.max_image_tokens=64"
    made(place, lambda: Family.limit_image_tokens(family, 4), rest)


@situation("C101")
def models_are_on_two_devices(place):
    from vistill.training.checks.devices import check_same_device

    made(place, lambda: check_same_device("cpu", "cuda:1"))


@situation("C101", **OTHER, TEACHER="vistill:teacher")
def a_method_of_python_lacks_its_teacher(place):
    from types import SimpleNamespace

    import vistill
    from vistill.training.checks.method import check_requirements

    rollout = SimpleNamespace(per_prompt=4)
    setup = SimpleNamespace(
        objective=vistill.OPD(),
        train_prompts=[],
        rollout=rollout,
        has_teacher=False,
        train=vistill.TrainSettings(),
    )
    made(place, lambda: check_requirements(setup), "method=opd")


@situation("C103")
def a_method_of_python_has_one_rollout(place):
    from types import SimpleNamespace

    import vistill
    from vistill.training.checks.method import check_requirements

    rollout = SimpleNamespace(per_prompt=1)
    setup = SimpleNamespace(
        objective=vistill.METHODS["grpo"](),
        train_prompts=[],
        rollout=rollout,
        train=vistill.TrainSettings(),
    )
    made(place, lambda: check_requirements(setup), "method=grpo")


@situation("C102")
def a_recipe_of_python_has_a_method_of_its_own(place):
    from vistill.config import ModelSettings, Recipe
    from vistill.training.build import make_objective

    made(place, lambda: make_objective(Recipe("x", ModelSettings("m"), "fremd")))


@situation("R403", NEW="läufe/neu", LARGER="0.5", OTHER="0.7")
def a_response_stays_empty(place):
    from vistill.rollouts.checked_engine import empty_response_error

    made(place, lambda: empty_response_error("a response stayed empty", ["a"]), verb="train")


@situation("R404")
def an_engine_breaks_its_contract(place):
    from vistill.rollouts.checked_engine import contract_error

    made(place, lambda: contract_error("R404", "two groups for one request"))


@situation("R408")
def an_engine_has_old_weights(place):
    from types import SimpleNamespace

    from vistill.rollouts.checked_engine import check_version

    made(place, lambda: check_version(SimpleNamespace(version=1), 2))


@situation("N702", NEW="läufe/neu", SMALLER="1e-7")
def a_number_cannot_be_saved(place):
    from vistill.runs.storage import check_finite

    start_trained(place)
    place.raises = lambda place: check_finite({"a": float("nan")})


@situation("D208", OTHER_FOLDER="läufe/neu")
def an_image_changed_during_the_run(place):
    from vistill.data.images import image_changed_error

    start_trained(place)
    place.raises = lambda place: image_changed_error("row 1")


@situation("D306", **OTHER)
def no_response_of_the_teacher_is_correct(place):
    from vistill.training.teacher_responses import no_correct_response_error
    from vistill.types import Finish, Rollout

    rollouts = [Rollout((1, 2, 3), 0, Finish.LENGTH)]
    made(place, lambda: no_correct_response_error(rollouts, 1))


@situation("C202")
def the_weights_of_a_model_changed(place):
    from types import SimpleNamespace

    from vistill.runs.folder import RunFolder
    from vistill.training.run_lock import changed_weights_error

    start_trained(place)
    place.raises = lambda place: changed_weights_error(
        RunFolder(Path(RUN)), "student", SimpleNamespace(source="a model")
    )


@situation("C201")
def a_folder_is_of_an_old_distillation(place):
    from vistill.runs.folder import RunFolder
    from vistill.training.run_lock import old_distill_error

    start_trained(place)
    place.raises = lambda place: old_distill_error(RunFolder(Path(RUN)))


@situation("C201")
def a_plugin_changed_before_a_replay(place):
    from types import SimpleNamespace

    from vistill.training.checks.code import other_code

    code = {"methods.own": {"from": "file mein plugin.py"}}
    setup = SimpleNamespace(recipe=SimpleNamespace(run=RUN), purpose="replay")
    made(place, lambda: other_code(setup, ["methods.own"], code, code))


def no_entry(steps):
    from types import SimpleNamespace

    from vistill.runs.folder import RunFolder
    from vistill.training.journal import no_entry_error

    journal = SimpleNamespace(steps=lambda: steps, path=Path(RUN))
    return no_entry_error(journal, RunFolder(Path(RUN)), 7)


@situation("S607")
def the_journal_lacks_a_step(place):
    start_trained(place, line=f"vistill replay '{RUN}' --step 7")
    place.raises = lambda place: no_entry([1])


@situation("S607")
def the_journal_is_empty(place):
    start_trained(place)
    place.raises = lambda place: no_entry([])


def arms(name="zwei", **changes):
    from types import SimpleNamespace

    first = {"seed": 1, "data.train": "daten 1/zeilen ü.jsonl", "eval.limit": None}
    return [
        SimpleNamespace(name="eins", values=lambda: first, folder=Path(RUN)),
        SimpleNamespace(name=name, values=lambda: {**first, **changes}, folder=Path(RUN)),
    ]


@situation("C301")
def arms_are_not_matched(place):
    from vistill.studies.arms import check_matched

    changed = {"seed": 2, "data.train": "x", "eval.limit": 3}
    made(place, lambda: check_matched(arms(**changed)), recipe=STAGES)


@situation("C201")
def a_folder_has_another_comparison(place):
    from types import SimpleNamespace

    from vistill.studies.arms import check_started

    def check():
        lock = Path("verglichen/eins/run.lock.json")
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.write_text('{"recipe": {"train": {"steps": 6}}}')
        settings = SimpleNamespace(to_dict=lambda: {"train": {"steps": 64}})
        arm = SimpleNamespace(folder=lock.parent, settings=settings)
        check_started([arm], Path("verglichen"))

    made(place, check)


@situation("C301", NEW="läufe/neu")
def arms_have_other_questions(place):
    from vistill.studies.arms import check_questions

    made(place, lambda: check_questions(arms(), {"a": 1.0}, {"b": 1.0}), recipe=STAGES)


@situation("S605", NEW="läufe/neu")
def an_arm_has_no_evaluation(place):
    from vistill.studies.arms import last_evaluation

    made(place, lambda: last_evaluation(arms()[0]), recipe=STAGES)


@situation("A101")
def a_process_of_a_study_ended(place):
    from types import SimpleNamespace

    from vistill.studies.arms import vistill_command
    from vistill.studies.processes import ArmProcess

    start(place)
    command = vistill_command("check", RECIPE_FILE, "--fast")
    process = SimpleNamespace(
        arm=SimpleNamespace(command=command, name="eins"), error_file=Path("none.json"), code=-9,
        log="arm.log", last_lines=lambda: "",
    )  # fmt: skip
    place.raises = lambda place: ArmProcess.error(process)


@situation("S604", NEW="läufe/neu")
def a_checkpoint_is_of_another_model(place):
    from vistill.training.checkpoint import restore_optimizer

    start(place, verb="train")
    place.raises = lambda place: restore_optimizer(_model(), _optimizer(), [("opt.x.exp_avg", 0)])


def _model():
    import torch

    return torch.nn.Linear(2, 2)


def _optimizer():
    import torch

    return torch.optim.AdamW(_model().parameters())


@situation("E304")
def cuda_started_without_a_fixed_workspace(place):
    import os

    from vistill.runtime import CUBLAS
    from vistill.training.determinism import check_workspace

    def check():
        before = os.environ.pop(CUBLAS, None)
        try:
            check_workspace()
        finally:
            if before is not None:
                os.environ[CUBLAS] = before

    made(place, check)


@situation("E304", NEW="läufe/neu")
def an_operator_has_no_deterministic_kernel(place):
    from vistill.training.determinism import no_kernel_error

    def failing():
        raise no_kernel_error(RuntimeError("x_cuda does not have a deterministic implementation"))

    made(place, failing)


@situation("R416")
def a_step_cannot_be_captured(place):
    from vistill.models.static_step import capture_error

    error = RuntimeError("operation not permitted when stream is capturing")
    made(place, lambda: capture_error(error), "rollout.cuda_graph=true")
