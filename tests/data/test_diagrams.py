"""Procedural diagrams: properties D1 to D9 of the specification."""

import re
from dataclasses import replace

import numpy as np
import pytest

from vistill.data.diagrams import (
    Diagram,
    DiagramSettings,
    biased_value,
    diagram_prompts,
    diagram_split,
    diagrams,
)
from vistill.data.drawing import render_glyph
from vistill.data.wording import stated_values
from vistill.errors import ConfigError
from vistill.views import pixelate

ALL = DiagramSettings(versions=("text_dominant", "text_lite", "vision_dominant", "vision_only"))


def test_d1_few_tokens_of_a_solution_depend_on_the_image(tokenizer):
    shares = []
    for item in diagrams("train", 200, 0):
        num_tokens = len(tokenizer(item.solution())["input_ids"]) + 1
        shares.append(sum(item.visible) / num_tokens)
    assert 0.02 < np.mean(shares) < 0.10


def test_d2_all_glyphs_of_a_size_have_the_same_ink():
    inks = [float(render_glyph(str(d), 14).sum()) for d in range(1, 10)]
    assert max(inks) - min(inks) < 1e-3 * max(inks)


def test_d2_pixelation_hides_which_digit_is_drawn_and_d3_keeps_the_colour():
    """On pixelated images a nearest-centroid classifier fails on digits and succeeds on colours."""
    items = diagrams("train", 1500, 3, DiagramSettings(versions=("vision_dominant",)))
    items = [i for i in items if i.kind == "segment"]
    pixels = np.stack(
        [np.asarray(pixelate(i.draw_image()).resize((6, 6)), float).ravel() for i in items]
    )
    half = len(items) // 2

    def accuracy(labels):
        labels = np.array(labels)
        kinds = sorted(set(labels))
        centres = np.stack([pixels[:half][labels[:half] == k].mean(0) for k in kinds])
        guess = np.argmin(((pixels[half:, None] - centres[None]) ** 2).sum(-1), 1)
        return float(np.mean(np.array(kinds)[guess] == labels[half:]))

    uniform = [i for i in items if i.values[0] != biased_value(i.kind, i.colour, False)]
    assert len(uniform) > 50
    assert accuracy([i.colour for i in items]) > 0.9
    assert accuracy([i.values[0] for i in items]) < 0.45


def test_d4_a_shortcut_predicts_values_more_often_than_chance():
    items = diagrams("train", 600, 1)
    hits = [v == biased_value(i.kind, i.colour, False) for i in items for v in i.values]
    assert 0.3 < np.mean(hits) < 0.6


def test_d5_solutions_of_one_item_differ_in_how_often_they_name_values():
    item = diagrams("train", 1, 0)[0]
    counts = {len(re.findall(r"=\d", item.solution(variant))) for variant in range(12)}
    assert len(counts) > 1


@pytest.mark.parametrize("two_digits", [False, True])
def test_d6_and_d9_the_solution_ends_in_the_exact_answer_and_states_the_values(two_digits):
    for item in diagrams("train", 200, 2, replace(ALL, two_digits=two_digits)):
        text = item.solution()
        assert text.endswith(f"\\boxed{{{item.answer}}}.")
        assert stated_values(item.kind, text) == tuple(map(str, item.values))
        for left, op, right, result in re.findall(r"(\d+)([-+*])(\d+)=(\d+)", text):
            assert {
                "+": int(left) + int(right),
                "-": int(left) - int(right),
                "*": int(left) * int(right),
            }[op] == int(result)


def test_a_sum_of_two_labels_states_none_of_them():
    text = "The labels say w=3. First w+h=3+4=7. Then 2*7=14. The answer is \\boxed{14}."
    assert stated_values("rectangle", text) == ("3", "")


def test_d7_versions_range_from_all_values_in_the_text_to_none():
    for item in diagrams("train", 300, 4, ALL):
        given = re.findall(r"=(\d+)", item.question())
        expected = {
            "text_dominant": len(item.values),
            "text_lite": 1,
            "vision_dominant": 0,
            "vision_only": 0,
        }[item.version]
        assert len(given) == expected
        assert sum(item.visible) == len(item.values) - (item.version == "text_lite")


def test_d8_a_visual_thought_can_be_drawn():
    prompt = diagram_prompts("train", 1, 0, DiagramSettings(thoughts=True))[0]
    assert prompt.thoughts[0].load().size == (64, 64)


def test_d9_splits_share_no_number_combination():
    seen = {s: {(i.kind, i.values) for i in diagrams(s, 800, 0)} for s in ("train", "val", "test")}
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["val"]
    assert not seen["val"] & seen["test"]
    # The split of a number combination never changes: a resumed run draws the same rows.
    splits = [diagram_split("bars", (1, 2, n)) for n in range(8)]
    assert splits == ["test", "train", "train", "val", "train", "train", "train", "train"]


def test_the_same_seed_draws_the_same_images_and_items_do_not_depend_on_the_count():
    a, b = diagrams("train", 5, 9), diagrams("train", 50, 9)[:5]
    assert [i.draw_image().tobytes() for i in a] == [i.draw_image().tobytes() for i in b]
    assert [i.question() + i.solution() for i in a] == [i.question() + i.solution() for i in b]


def test_a_counterfactual_diagram_differs_in_one_label_only():
    item = Diagram("segment", "red", (3, 4, 5), "vision_dominant", None, 11)
    other = item.with_value(1, 8)
    before, after = (np.asarray(x.draw_image(), int) for x in (item, other))
    changed = np.argwhere(np.abs(before - after).sum(-1) > 0)
    assert item.question() == other.question()
    assert len(changed) > 5
    assert np.ptp(changed, axis=0).max() < 16


def test_each_label_has_its_own_cell():
    for item in diagrams("train", 60, 6):
        cells = item.label_cells()
        assert len({c for c, _ in cells}) == len(cells) == sum(item.visible)


def test_an_unknown_split_is_refused():
    with pytest.raises(ConfigError):
        diagrams("eval", 3, 0)
