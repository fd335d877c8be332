"""The image of another row in training, gate and canary is never the row's own image."""

from dataclasses import replace

import numpy as np
import pytest
from doubles import watched_images
from plans import prepare_run
from test_canary import PROMPTS, make_plan, step_context
from tiers import few

from vistill.data.diagrams import DiagramSettings, diagram_prompts
from vistill.errors import DataError
from vistill.evaluation.privilege import measure_privilege
from vistill.evaluation.settings import EvalSettings
from vistill.objectives import METHODS
from vistill.rollouts.build import make_engine
from vistill.rollouts.settings import RolloutSettings
from vistill.runs.folder import RunFolder
from vistill.training.canary.reader import weak_reader_warnings
from vistill.training.canary.run import canary_rows, partners_with_other_images, run_canary
from vistill.training.loop import run
from vistill.training.settings import TrainSettings
from vistill.types import View
from vistill.views import ViewContext

WITH_THOUGHTS = diagram_prompts("train", 6, 0, DiagramSettings(thoughts=True))
MISMATCHED = METHODS["visual_opsd"](gate=False, thoughts="mismatched")


def pixels(images):
    return [image_bytes(image.load()) for image in images]


def image_bytes(image):
    return np.asarray(image.convert("RGB")).tobytes()


def with_one_image(prompts, count):
    """The first rows have the same image, like versions of one problem."""
    return [replace(p, parts=prompts[0].parts) if i < count else p for i, p in enumerate(prompts)]


def with_one_thought(prompts, count):
    """The first rows have the same thoughts."""
    return [
        replace(p, thoughts=prompts[0].thoughts) if i < count else p for i, p in enumerate(prompts)
    ]


@pytest.mark.parametrize("same", few([2, 4, 6], 1))
def test_the_canary_swaps_images_also_where_its_rows_share_one(student, teacher, same):
    prompts = with_one_image(PROMPTS, same)
    others = partners_with_other_images(prompts[:4], prompts)
    for prompt in prompts[:4]:
        assert pixels(others[prompt.id].images) != pixels(prompt.images)
    facts = run_canary(step_context(student, teacher), prompts)
    assert facts["canary/student_image_effect"] > 0
    assert not weak_reader_warnings(facts)


def test_the_rows_of_the_canary_include_the_partner():
    prompts = with_one_image(PROMPTS, 4)
    assert [p.id for p in canary_rows(prompts)][4:] == [PROMPTS[4].id] * 4


def test_where_its_rows_differ_the_partner_is_the_next_row():
    others = partners_with_other_images(PROMPTS[:4], PROMPTS)
    assert [others[p.id].id for p in PROMPTS[:4]] == [PROMPTS[i].id for i in (1, 2, 3, 0)]


def thought_pairs(encoded, rows):
    """Pairs (thoughts of the row, thoughts in the view) of every row encoded with thoughts.

    Checks at the start encode prompts without images, and images of their own, two a prompt.
    """
    of_row = {image_bytes(p.images[0].load()): pixels(p.thoughts) for p in rows}
    return [
        (of_row[image_bytes(images[0])], [image_bytes(image) for image in images[1:]])
        for _, images in encoded
        if len(images) > 1 and image_bytes(images[0]) in of_row
    ]


def plan_of(student, teacher, prompts, **changes):
    return make_plan(student, teacher, objective=MISMATCHED, train_prompts=prompts, **changes)


@pytest.mark.more
@pytest.mark.usefixtures("without_canary")
def test_a_teacher_with_mismatched_thoughts_never_reads_those_of_the_row(
    student, teacher, tmp_path
):
    encoded, rows = [], with_one_thought(WITH_THOUGHTS, 4)
    folder = RunFolder(tmp_path / "r")
    plan = plan_of(watched_images(student, encoded), teacher, rows, num_steps=3)
    run(prepare_run(plan, folder), folder)
    pairs = thought_pairs(encoded, rows)
    assert len(pairs) >= 6
    assert all(of_row != shown for of_row, shown in pairs)
    assert not folder.read(folder.replaced)


def test_rows_that_all_have_the_same_thoughts_are_refused_before_the_first_step(
    student, teacher, tmp_path
):
    with pytest.raises(DataError) as caught:
        prepare_run(
            plan_of(student, teacher, with_one_thought(WITH_THOUGHTS, 6)), RunFolder(tmp_path / "r")
        )
    assert caught.value.code == "D309"
    assert "visual_opsd.thoughts=noise" in caught.value.fix


@pytest.mark.usefixtures("without_canary")
def test_a_single_row_without_a_partner_is_replaced_in_its_step(student, teacher, tmp_path):
    """The row has the thoughts of all others: every partner shows a thought of the row."""
    rows = with_one_thought(WITH_THOUGHTS[:3], 2)
    everything = replace(WITH_THOUGHTS[4], thoughts=(*rows[0].thoughts, *rows[2].thoughts))
    train = TrainSettings(prompts_per_step=2, lr=1e-3, steps=4)
    folder = RunFolder(tmp_path / "r")
    plan = plan_of(
        student, teacher, [*rows, everything], train=train, num_steps=4, max_bad_share=0.3
    )
    run(prepare_run(plan, folder), folder)
    (record,) = folder.read(folder.replaced)
    assert (record["id"], record["code"]) == (everything.id, "D309")


def test_the_gate_uses_thoughts_of_other_rows_too(student):
    seen = []
    settings = EvalSettings(max_new_tokens=3)
    rows = with_one_thought(WITH_THOUGHTS, 4)
    engine = make_engine(student, RolloutSettings())
    watched = watched_images(student, seen)
    measure_privilege(watched, rows, View.PRIVILEGED_MISMATCHED, settings, ViewContext(), engine)
    pairs = thought_pairs(seen, rows)
    assert len(pairs) == 12
    assert all(of_row != shown for of_row, shown in pairs)


def test_a_method_without_such_a_view_has_no_partners(student, teacher, tmp_path):
    plan = prepare_run(
        make_plan(student, teacher, rollout=RolloutSettings(max_new_tokens=4)),
        RunFolder(tmp_path / "r"),
    )
    assert len(plan.models.partners) == 0
