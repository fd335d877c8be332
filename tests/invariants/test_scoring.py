"""Scoring: the off-by-one, the flat response axis, padding, siblings and views."""

import pytest
import torch

from vistill.data.diagrams import diagram_prompts
from vistill.functional.rows import log_prob_from_hidden
from vistill.models.scoring import EncodedGroup, prediction_rows, response_states, score
from vistill.types import Prompt, View
from vistill.views import apply_view


@pytest.fixture(scope="module")
def encoded(teacher, prompts):
    return [teacher.encode(p) for p in prompts[:3]]


@pytest.fixture(scope="module")
def responses(teacher, prompts):
    return [
        tuple(teacher.response_ids(text))
        for text in ("a=1, b=2.", "The answer is \\boxed{7}.", prompts[0].response)
    ]


def states(vlm, groups):
    with torch.no_grad():
        return response_states(vlm, groups)


def test_rows_of_a_response_start_at_the_last_prompt_token():
    assert list(prediction_rows(10, 3)) == [9, 10, 11]


def test_log_probabilities_equal_those_of_the_models_own_forward(teacher, encoded, responses):
    prompt, response = encoded[0], responses[1]
    inputs = teacher.family.generation_inputs([prompt], teacher.pad_id)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([response])], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == teacher.family.image_id).int()
    with torch.no_grad():
        logits = teacher.model(**inputs).logits[0]
    at = len(prompt.ids)
    expected = [float(torch.log_softmax(logits[at + t - 1], -1)[i]) for t, i in enumerate(response)]
    ids = torch.tensor(response)
    with torch.no_grad():
        scored = score(
            teacher, [EncodedGroup(prompt, (response,))], ids, teacher.vocabulary_size, "log_prob"
        )
    assert scored.log_prob.tolist() == pytest.approx(expected, abs=2e-5)


def test_siblings_scored_together_equal_each_scored_alone(teacher, encoded, responses):
    together = states(teacher, [EncodedGroup(encoded[0], tuple(responses))])
    alone = torch.cat([states(teacher, [EncodedGroup(encoded[0], (r,))]) for r in responses])
    assert torch.allclose(together, alone, atol=1e-5)


def test_groups_of_different_length_do_not_affect_one_another(teacher, encoded, responses):
    groups = [EncodedGroup(e, (r,)) for e, r in zip(encoded, responses, strict=True)]
    together = states(teacher, groups)
    alone = torch.cat([states(teacher, [g]) for g in groups])
    assert torch.allclose(together, alone, atol=1e-5)


def test_prompts_with_and_without_images_share_a_batch(teacher, prompts, responses):
    text_only = teacher.encode(apply_view(prompts[0], View.TEXT_ONLY))
    with_image = teacher.encode(prompts[1])
    groups = [
        EncodedGroup(text_only, (responses[0],)),
        EncodedGroup(with_image, (responses[1], responses[2])),
    ]
    together = states(teacher, groups)
    alone = torch.cat([states(teacher, [g]) for g in groups])
    assert torch.allclose(together, alone, atol=1e-5)


def test_positions_equal_the_models_own(teacher, prompts):
    encoded = [teacher.encode(p) for p in prompts[:2]]
    for e in encoded:
        ids = torch.tensor([e.ids])
        expected, _ = teacher.model.model.get_rope_index(
            ids, (ids == teacher.family.image_id).int(), e.pixels["image_grid_thw"]
        )
        assert torch.equal(expected[:, 0], e.positions)
        assert e.next_position == int(expected.max()) + 1


def test_the_image_changes_the_log_probabilities_and_views_keep_the_image_grid(
    teacher, prompts, responses
):
    from vistill.views import ViewContext

    def log_probs(prompt):
        group = EncodedGroup(teacher.encode(prompt), (responses[2],))
        return score(
            teacher, [group], torch.tensor(responses[2]), teacher.vocabulary_size, "log_prob"
        ).log_prob

    with torch.no_grad():
        full = log_probs(prompts[0])
        for view in (View.PIXELATED, View.SWAPPED, View.TEXT_ONLY, View.NOISE, View.MASKED):
            other = apply_view(prompts[0], view, ViewContext(partner=prompts[1]))
            assert float((log_probs(other) - full).abs().max()) > 1e-4, view
            tokens = teacher.encode(other).num_image_tokens
            assert tokens == (0 if view is View.TEXT_ONLY else 16)


def test_scoring_never_reads_rows_beyond_the_response(teacher, encoded, responses):
    """Row t predicts token t from the tokens before it, so the last token changes no row."""
    changed = (*responses[0][:-1], responses[0][-1] - 1)
    a = states(teacher, [EncodedGroup(encoded[0], (responses[0],))])
    b = states(teacher, [EncodedGroup(encoded[0], (changed,))])
    assert torch.equal(a, b)


def test_the_head_is_cut_to_the_vocabulary(teacher):
    assert teacher.head(100).weight.shape[0] == 100


def test_a_prompt_can_have_several_images(teacher):
    a, b = diagram_prompts("train", 2, 5)
    prompt = Prompt("two", (a.images[0], "first, second ", b.images[0], "which?"))
    encoded = teacher.encode(prompt)
    assert encoded.num_image_tokens == 32
    ids = torch.tensor([encoded.ids])
    expected, _ = teacher.model.model.get_rope_index(
        ids, (ids == teacher.family.image_id).int(), encoded.pixels["image_grid_thw"]
    )
    assert torch.equal(expected[:, 0], encoded.positions)
    log_prob = log_prob_from_hidden(
        states(teacher, [EncodedGroup(encoded, ((20, 21),))]),
        teacher.head(50),
        torch.tensor([20, 21]),
    )
    assert torch.isfinite(log_prob).all()
