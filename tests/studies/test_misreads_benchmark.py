"""`benchmarks/misreads.py` finds stated labels, and splits the loss of `opd`."""

import sys

import pytest
import torch
from conftest import REPO

import vistill
from vistill.data.diagrams import diagram_prompts
from vistill.objectives import OPD, GroundedOPD
from vistill.training.models_of_run import Models
from vistill.types import Finish, Rollout, RolloutGroup

sys.path.insert(0, str(REPO / "benchmarks"))

import misreads


def wrong_solution(prompt):
    """The solution of a diagram with its first drawn label stated one too high, or 1 for 9."""
    name = misreads.NAMES[prompt.labels["kind"]][int(prompt.labels["drawn"].split()[0])]
    value = int(prompt.labels["values"].split()[int(prompt.labels["drawn"].split()[0])])
    return name, prompt.response.replace(f"{name}={value}", f"{name}={value % 9 + 1}")


def test_every_stated_label_is_found_at_the_token_of_its_value():
    student = vistill.load("vistill:student", device="cpu")
    for prompt in diagram_prompts("val", 8, 0):
        name, text = wrong_solution(prompt)
        ids = student.response_ids(text)
        stated = misreads.stated_labels(student, prompt, ids)
        assert len(stated) in (n := len(prompt.labels["drawn"].split()), 2 * n)
        assert {s.name for s in stated if s.wrong} == {name}
        assert [student.tokens([ids[s.token]])[0].strip() for s in stated] == [
            s.value for s in stated
        ]
        assert not any(
            s.wrong
            for s in misreads.stated_labels(student, prompt, student.response_ids(prompt.response))
        )


@pytest.mark.more
def test_the_two_parts_of_the_loss_add_up_to_opd():
    student, teacher = (
        vistill.load(f"vistill:{name}", device="cpu") for name in ("student", "teacher")
    )
    teacher.freeze()
    groups = [
        RolloutGroup(
            prompt,
            tuple(
                Rollout(student.response_ids(text), k, Finish.STOP)
                for k, text in enumerate((prompt.response, wrong_solution(prompt)[1]))
            ),
        )
        for prompt in diagram_prompts("val", 2, 0)
    ]
    models = Models(student, teacher, student.vocabulary_size)
    before, after, whole = (
        misreads.gradient(models, m, groups)
        for m in (GroundedOPD(), misreads.AfterMisread(), OPD())
    )
    assert float(after.norm()) > 0.01 * float(whole.norm())
    assert torch.allclose(before + after, whole, rtol=0, atol=1e-6 * float(whole.norm()))
