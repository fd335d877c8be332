"""Training tiny models: the plan, its sizes, and that the same plan gives the same weights."""

from dataclasses import replace

import pytest
import torch

from vistill.models.tiny import TinySize, build_tiny
from vistill.studies import make_tiny_models
from vistill.studies.make_tiny_models import DiagramPool, tiny_tokenizer, train_vision
from vistill.studies.tiny_plans import STUDENT, changed_plan


def test_a_plan_takes_changed_fields_of_its_size():
    plan = changed_plan("student", {"size": {"layers": 5, "init": 0.02}, "seed": 7})
    assert plan.size == replace(STUDENT.size, layers=5, init=0.02)
    assert plan.seed == 7


def test_an_option_without_a_word_has_its_default():
    words = ["student", "FOLDER", "--bf16", "--rows", "8"]
    assert make_tiny_models.option(words, "--rows", "512") == "8"
    assert make_tiny_models.option(words, "--device", "cpu") == "cpu"


@pytest.mark.more
def test_the_same_plan_gives_the_same_weights():
    """The head of the vision phase had other initial weights in each process."""
    size = TinySize(hidden=32, layers=2, vision_hidden=32, vision_heads=2)
    plan = replace(STUDENT, size=size, vision_steps=2, vision_batch=4)
    tokenizer = tiny_tokenizer(plan)

    def weights():
        vlm = build_tiny(plan.size, tokenizer, plan.seed)
        pool = DiagramPool(vlm, plan)
        pool.items = pool.items[:8]
        train_vision(vlm, pool, plan, print)
        return torch.cat([p.detach().flatten() for p in vlm.model.parameters()])

    first = weights()
    torch.manual_seed(12345)  # as another process has
    assert torch.equal(first, weights())
