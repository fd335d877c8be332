"""Mixtures of data sets: their order is a function of (seed, step), their rows keep their names."""

import json
from collections import Counter
from fractions import Fraction

import pytest

from vistill.config import load_recipe
from vistill.data.data_sets import count_by_set, load_data
from vistill.data.mixture import Mixture, check_mixture, mixture_of, set_of
from vistill.data.set_settings import DataSet, SetColumns
from vistill.data.settings import DataSettings
from vistill.errors import ConfigError, DataError
from vistill.types import Prompt

WEIGHTS = [(1, 1), (3, 1), (1, 7, 2), ("0.1", "0.7", "0.2"), (1000, 1, 1, 5)]


def mixture(weights, sizes=None):
    sizes = sizes or [40] * len(weights)
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    rows = tuple(tuple(range(a, a + n)) for a, n in zip(starts, sizes, strict=True))
    return Mixture(
        tuple("abcdef"[: len(sizes)]), rows, tuple(Fraction(str(weight)) for weight in weights)
    )


@pytest.mark.parametrize("weights", WEIGHTS)
def test_counts_add_up_grow_by_one_and_follow_the_weights(weights):
    mixed = mixture(weights)
    before = mixed.counts(0)
    for position in range(1, 400):
        counts = mixed.counts(position)
        assert sum(counts) == position
        grown = [b - a for a, b in zip(before, counts, strict=True)]
        assert sorted(grown) == [0] * (len(weights) - 1) + [1]
        for count, share in zip(counts, mixed.shares().values(), strict=True):
            assert abs(count - position * share) < len(weights)
        before = counts


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("per_step", [1, 4, 7])
def test_a_step_never_has_more_rows_of_a_set_than_the_bound(weights, per_step):
    mixed = mixture(weights)
    most = mixed.most_per_step(per_step)
    for step in range(60):
        a, b = mixed.counts(step * per_step), mixed.counts((step + 1) * per_step)
        assert all(y - x <= m for x, y, m in zip(a, b, most, strict=True))


def test_steps_are_a_function_of_seed_and_step_and_every_epoch_has_every_row_once():
    mixed = mixture((2, 1), [30, 10])
    steps = [mixed.rows_of_step(step, 6, 5)[0] for step in range(20)]
    again = [mixed.rows_of_step(step, 6, 5)[0] for step in reversed(range(20))]
    assert steps == again[::-1]
    assert steps != [mixed.rows_of_step(step, 6, 6)[0] for step in range(20)]
    drawn = Counter(row for rows in steps for row in rows)  # 80 prompts of a, 40 of b
    assert sum(drawn[row] for row in range(30)) == 80
    assert {drawn[row] for row in range(30, 40)} == {4}
    assert len(mixed.rows_of_step(1_000_000, 6, 5)[0]) == 6


def test_a_set_alone_has_the_same_order_next_to_any_other_set():
    both, alone = mixture((1, 1), [12, 12]), mixture((1,), [12])
    rows = [row for step in range(6) for row in both.rows_of_step(step, 4, 3)[0] if row < 12]
    assert rows == [row for step in range(3) for row in alone.rows_of_step(step, 4, 3)[0]]


def test_no_row_occurs_twice_in_a_step_although_epochs_meet_in_it():
    mixed = mixture((1, 1), [5, 50])
    for step in range(200):
        rows, epochs = mixed.rows_of_step(step, 8, 0)
        assert len(set(rows)) == 8
        assert len(epochs) == 8


def test_a_replaced_row_is_replaced_by_a_row_of_its_set():
    mixed = mixture((1, 1), [20, 20])
    for step in range(30):
        plain, _ = mixed.rows_of_step(step, 8, 1)
        bad = plain[3]
        rows, _ = mixed.rows_of_step(step, 8, 1, lambda row, bad=bad: row == bad)
        assert bad not in rows
        assert [row < 20 for row in rows] == [row < 20 for row in plain]
        assert sum(a != b for a, b in zip(plain, rows, strict=True)) == 1


def test_a_set_that_is_too_small_is_refused_with_a_step_that_fits():
    mixed = mixture((3, 1), [4, 100])
    with pytest.raises(ConfigError, match="the data set a") as caught:
        check_mixture(mixed, 16)
    smaller = int(caught.value.fix.split("prompts_per_step=")[1].split()[0])
    check_mixture(mixed, smaller)
    with pytest.raises(ConfigError):
        check_mixture(mixed, smaller + 1)


# data


def write(folder, name, rows):
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def sets(tmp_path):
    rows = [{"question": f"{n} + {n}?", "answer": str(2 * n), "id": f"{n}"} for n in range(12)]
    other = [{"q": f"What is {n} - 1?", "a": str(n - 1), "id": f"{n}"} for n in range(8)]
    return {
        "sums": DataSet(train=write(tmp_path, "sums", rows), holdout=3, weight=2.0),
        "differences": DataSet(
            train=write(tmp_path, "differences", other),
            columns=SetColumns(prompt="q", answer="a"),
            template="Say it: {prompt}",
            checker="number",
        ),
    }


def settings(sets, **rest):
    from vistill.data.settings import Columns

    columns = Columns(images="", id="id")
    return DataSettings(sets=sets, columns=columns, text_only="plain", **rest)


def test_rows_carry_their_set_and_equal_ids_stay_apart(sets):
    train, held = load_data(settings(sets))
    assert count_by_set(train.prompts) == {"differences": 8, "sums": 9}
    assert count_by_set(held.prompts) == {"sums": 3}
    ids = [p.id for p in (*train.prompts, *held.prompts)]
    assert len(set(ids)) == 20
    assert {p.id for p in train.prompts if set_of(p) == "differences"} == {
        f"differences/{n}" for n in range(8)
    }


def test_each_set_has_its_own_columns_template_and_checker(sets):
    train, _ = load_data(settings(sets))
    own = [p for p in train.prompts if set_of(p) == "differences"]
    assert own[1].text == "Say it: What is 1 - 1?"
    assert own[1].answer == "0"
    assert {p.labels["checker"] for p in own} == {"number"}
    assert all("checker" not in p.labels for p in train.prompts if set_of(p) == "sums")


def test_the_order_of_the_names_changes_nothing(sets):
    one, other = load_data(settings(sets)), load_data(settings(dict(reversed(sets.items()))))
    assert [p.id for part in one for p in part.prompts] == [
        p.id for part in other for p in part.prompts
    ]


def test_the_weight_rows_is_the_number_of_rows(sets):
    train, _ = load_data(settings(sets))
    plain = {name: DataSet(train=one.train) for name, one in sets.items()}
    mixed = mixture_of(train.prompts, plain)
    assert mixed.shares() == {"differences": 8 / 17, "sums": 9 / 17}
    assert mixture_of(train.prompts, {}) is None


def test_a_mistake_names_the_key_of_its_set(sets, tmp_path):
    wrong = {**sets, "differences": DataSet(train=sets["differences"].train)}
    with pytest.raises(DataError) as caught:
        load_data(settings(wrong))
    assert caught.value.code == "D101"
    assert "data.sets.differences.columns.prompt=COLUMN" in caught.value.fix


RECIPE = """\
run: r
method: opd
student: {{model: 'vistill:student'}}
teacher: {{model: 'vistill:teacher'}}
data:
  text_only: plain
  sets:
    sums: {{train: {sums}, columns: {{images: ""}}}}
    more: {{train: {sums}, columns: {{images: ""}}, template: "And {{prompt}}"}}
"""
MISTAKES = {
    "data.sets.more.weight=0": "C002",
    "data.sets.more.weight=-2": "C002",
    "data.sets.more.wieght=2": "C001",
    "data.sets.more=4": "C002",
    "data.sets.more.train=": "C002",
    "data.train=other.jsonl": "C101",
    "data.sets.more.checker=numbr": "C105",
    "data.sets.more.columns.promt=q": "C001",
}


@pytest.mark.parametrize("word", MISTAKES)
def test_the_fix_of_a_wrong_setting_works_when_pasted(word, sets, tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text(RECIPE.format(sums=sets["sums"].train))
    assert set(load_recipe(file).data.sets) == {"sums", "more"}
    with pytest.raises(ConfigError) as caught:
        load_recipe(file, [word])
    assert caught.value.code == MISTAKES[word]
    fix = caught.value.fix.split("   ")[0].strip("'")
    kept = [] if "in place of" in caught.value.fix else [word]
    assert load_recipe(file, [*kept, fix]).data.sets


def test_a_recipe_that_loses_every_set_does_not_fall_back_to_drawn_diagrams(sets, tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text(RECIPE.format(sums=sets["sums"].train))
    gone = ["data.sets.sums=null", "data.sets.more=null"]
    with pytest.raises(ConfigError) as caught:
        load_recipe(file, gone)
    assert (caught.value.code, "data.sets=null" in caught.value.fix) == ("C101", True)
    assert load_recipe(file, [*gone, "data.train=diagrams"]).data.train == "diagrams"
    assert set(load_recipe(file, gone[:1]).data.sets) == {"more"}


def test_a_recipe_without_sets_keeps_its_fingerprint(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("run: r\nmethod: sft\nstudent: {model: m}\ndata: {train: d.jsonl}\n")
    recipe = load_recipe(file)
    assert recipe.fingerprint() == "32dc3a1da3b7dc9e"  # of the version before data.sets
    assert load_recipe(file, ["data.columns.teacher=subject"]).fingerprint() != recipe.fingerprint()


def test_a_prompt_without_a_set_has_no_name():
    assert set_of(Prompt("a", ("text",))) == ""
