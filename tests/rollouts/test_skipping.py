"""Image-skip: a model that starts to draw continues in words, within one token budget."""

from dataclasses import replace

import torch

from vistill.rollouts.build import make_engine
from vistill.rollouts.engine import RolloutRequest, Sampling
from vistill.rollouts.hf import HFEngine
from vistill.rollouts.image_skips import ImageSkipEngine, extend_rollout
from vistill.rollouts.scripted import ScriptedEngine
from vistill.rollouts.settings import RolloutSettings
from vistill.types import Finish

SETTINGS = RolloutSettings(image_skips=1)
SAMPLING = Sampling(0, 3, 1.0, 1.0, 40)


class Script(ScriptedEngine):
    """Returns scripted responses by round and records the calls."""

    def __init__(self, vlm, rounds):
        def answer(key, sibling):
            return vlm.response_ids(rounds[len(self.calls) - 1][sibling])

        super().__init__(
            answer, vlm.stop_ids[0], lambda request, ids: tuple(-float(i) for i in ids)
        )
        self.calls = []

    def generate(self, requests, sampling):
        self.calls.append((requests, sampling))
        return super().generate(requests, sampling)


def request(vlm, prompts, siblings=(0, 1)):
    return RolloutRequest(prompts[0].id, vlm.encode(prompts[0]), siblings)


def test_a_turn_with_the_marker_is_reopened_and_both_rounds_form_one_completion(teacher, prompts):
    script = Script(teacher, [["I look.<image_start>", "So 7."], ["<image_end> It is 5."]])
    engine = ImageSkipEngine(script, teacher, SETTINGS)
    ((first, second),) = engine.generate([request(teacher, prompts)], SAMPLING)
    assert teacher.decode(first.ids) == "I look.<image_start><image_end> It is 5."
    assert first.ids.count(teacher.stop_ids[0]) == 1
    assert first.ids[-1] == teacher.stop_ids[0]
    assert first.finish is Finish.STOP
    assert teacher.decode(second.ids) == "So 7."


def test_the_second_round_sees_the_closed_turn_and_uses_other_noise(teacher, prompts):
    script = Script(teacher, [["<image_start>", "So 7."], ["5"]])
    ImageSkipEngine(script, teacher, SETTINGS).generate([request(teacher, prompts)], SAMPLING)
    ((continuation,), sampling) = script.calls[1]
    tail = teacher.tokenizer.decode(continuation.prompt.ids[len(teacher.encode(prompts[0]).ids) :])
    assert tail == "<image_start><|im_end|>\n<|im_start|>assistant\n"
    assert continuation.siblings == (0,)
    assert continuation.attempt != 0
    assert sampling.max_new_tokens < SAMPLING.max_new_tokens
    assert continuation.prompt.next_position == teacher.encode(prompts[0]).next_position + len(
        continuation.prompt.ids
    ) - len(teacher.encode(prompts[0]).ids)


def test_the_number_of_rounds_and_the_token_budget_are_limited(teacher, prompts):
    always = ["<image_start> and so on and so on and so on"] * 2
    script = Script(teacher, [always, always, always])
    ((first, _),) = ImageSkipEngine(script, teacher, replace(SETTINGS, image_skips=2)).generate(
        [request(teacher, prompts)], replace(SAMPLING, max_new_tokens=50)
    )
    assert len(script.calls) <= 3
    assert len(first.ids) <= 50


def test_a_third_round_sees_both_earlier_ones(teacher, prompts):
    script = Script(teacher, [["one<image_start>", "x"], ["two<image_start>"], ["three"]])
    engine = ImageSkipEngine(script, teacher, replace(SETTINGS, image_skips=2))
    ((first, _),) = engine.generate(
        [request(teacher, prompts)], replace(SAMPLING, max_new_tokens=90)
    )
    ((continuation,), _) = script.calls[2]
    tail = teacher.tokenizer.decode(continuation.prompt.ids[len(teacher.encode(prompts[0]).ids) :])
    turn = "<|im_end|>\n<|im_start|>assistant\n"
    assert tail == f"one<image_start>{turn}two<image_start>{turn}"
    assert teacher.decode(first.ids) == "one<image_start>two<image_start>three"


def test_image_skip_changes_nothing_for_an_ordinary_model(teacher, prompts):
    plain, skipping = HFEngine(teacher), make_engine(teacher, SETTINGS)
    assert isinstance(skipping.inner, ImageSkipEngine)
    assert not isinstance(
        make_engine(teacher, SETTINGS.without_image_skips()).inner, ImageSkipEngine
    )
    small = Sampling(0, 0, 1.0, 1.0, 6)
    assert plain.generate([request(teacher, prompts)], small) == skipping.generate(
        [request(teacher, prompts)], small
    )


def test_both_rounds_keep_the_log_probabilities_of_their_ids(teacher, prompts):
    script = Script(teacher, [["I look.<image_start>", "So 7."], ["<image_end> It is 5."]])
    groups = ImageSkipEngine(script, teacher, SETTINGS).generate(
        [request(teacher, prompts)], replace(SAMPLING, log_probs=True)
    )
    for rollout in groups[0]:
        assert rollout.log_probs == tuple(-float(i) for i in rollout.ids)


def test_an_extended_prompt_scores_like_prompt_and_response(teacher, prompts):
    from vistill.models.scoring import EncodedGroup, score

    ids = teacher.response_ids("So 7.")
    encoded = teacher.encode(prompts[0])
    with torch.no_grad():
        complete = score(
            teacher,
            [EncodedGroup(encoded, (ids,))],
            torch.tensor(ids),
            teacher.vocabulary_size,
            "both",
        )
        extended = score(
            teacher,
            [EncodedGroup(extend_rollout(encoded, ids[:2]), (ids[2:],))],
            torch.tensor(ids[2:]),
            teacher.vocabulary_size,
            "both",
        )
    assert torch.allclose(complete.sampled()[2:], extended.sampled(), atol=1e-5)
