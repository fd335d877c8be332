"""Rows become prompts: placeholders, several images, text-only rows, quarantine, error codes."""

import json
import random
import subprocess

import pytest
from PIL import Image

from vistill.data.keys import epoch_order, keyed_seed, num_steps, rows_of_step
from vistill.data.loading import LoadedData, check_overlap, hold_out, load_rows, load_train_and_eval
from vistill.data.placeholders import PLACEHOLDER
from vistill.data.rows import fill_template
from vistill.data.settings import Columns, DataSettings
from vistill.errors import DataError, VistillError
from vistill.types import Prompt


@pytest.fixture
def folder(tmp_path):
    for i in range(4):
        Image.new("RGB", (40 + i, 30), (10 * i, 0, 0)).save(tmp_path / f"{i}.png")
    return tmp_path


def write_rows(folder, rows):
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def load(path, **settings):
    return load_rows(path, DataSettings(train=path, **settings), None)


def load_error(path, **settings):
    with pytest.raises(VistillError) as error:
        load(path, **settings)
    return error.value


def row(question="What?", images=("0.png",), answer="1", **more):
    return {"question": question, "images": list(images), "answer": answer, **more}


def test_placeholders_with_and_without_numbers_place_images(folder):
    path = write_rows(
        folder,
        [
            row("a <image2> b <image1> c", ["0.png", "1.png"]),
            row("<image> then <image>", ["2.png", "3.png"]),
        ],
    )
    first, second = load(path).prompts
    assert [p if isinstance(p, str) else p.name for p in first.parts] == [
        "a ",
        "1.png",
        " b ",
        "0.png",
        " c",
    ]
    assert [p if isinstance(p, str) else p.name for p in second.parts] == [
        "2.png",
        " then ",
        "3.png",
    ]


def test_images_without_a_placeholder_come_first(folder):
    prompt = load(write_rows(folder, [row()])).prompts[0]
    assert not isinstance(prompt.parts[0], str)
    assert prompt.parts[1] == "What?"


def test_choices_are_rendered_by_the_template(folder):
    path = write_rows(folder, [row(choices=["3", "4"]), row(choices=["A", "B"])])
    data = load(path, columns=Columns(choices="choices"), template="{prompt}\n{choices}")
    assert data.prompts[0].text == "What?\n(A) 3\n(B) 4"
    assert data.prompts[1].text == "What?\nChoose from (A) (B)"


def test_a_row_without_choices_renders_none(folder):
    path = write_rows(folder, [row(choices=None), row(choices=[])])
    data = load(path, columns=Columns(choices="choices"), template="{prompt}\n{choices}")
    assert [p.text for p in data.prompts] == ["What?", "What?"]


def test_a_template_keeps_latex_braces():
    assert (
        fill_template("\\boxed{{{answer}}} \\frac{1}{2} {other}", answer="x{y}")
        == "\\boxed{x{y}} \\frac{1}{2} {other}"
    )


def test_a_response_template_makes_responses_for_sft(folder):
    data = load(write_rows(folder, [row()]), response_template="The answer is \\boxed{{{answer}}}.")
    assert data.prompts[0].response == "The answer is \\boxed{1}."


def test_a_prompt_keeps_the_system_message(folder):
    assert load(write_rows(folder, [row()]), system="Be brief.").prompts[0].system == "Be brief."


@pytest.mark.parametrize(("policy", "num_rows", "dropped"), [("plain", 2, 0), ("drop", 1, 1)])
def test_rows_without_an_image_follow_text_only(folder, policy, num_rows, dropped):
    data = load(write_rows(folder, [row(), row(images=[])]), text_only=policy)
    assert len(data.prompts) == num_rows
    assert data.dropped_text_only == dropped


def test_bad_rows_are_quarantined_with_place_and_reason(folder):
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:40])
    rows = [row() for _ in range(6)] + [row(images=["missing.png"]), row(images=["cut.png"])]
    data = load(write_rows(folder, rows), max_bad_share=0.3)
    assert len(data.prompts) == 6
    assert [(q.where.split("data.jsonl")[1].split()[0], q.code) for q in data.quarantined] == [
        (":7", "D201"),
        (":8", "D202"),
    ]


def test_a_jpeg_cut_in_half_is_detected_before_training(folder):
    Image.effect_noise((300, 300), 90).convert("RGB").save(folder / "big.jpg")
    data = (folder / "big.jpg").read_bytes()
    (folder / "big.jpg").write_bytes(data[: len(data) // 2])
    assert load_error(write_rows(folder, [row(images=["big.jpg"])])).code == "D202"


@pytest.mark.parametrize(
    ("rows", "settings", "code"),
    [
        ([row()], {"columns": Columns(prompt="promt")}, "D101"),
        ([row(images=["gone.png"])], {}, "D201"),
        ([row(images=["http://127.0.0.1/x.png"])], {}, "D205"),
        ([row(images=["file:///etc/passwd"])], {}, "D205"),
        ([row(images=["../secret.png"])], {}, "D206"),
        ([row(images=["/etc/hostname"])], {}, "D206"),
        ([row("see <image2>")], {}, "D103"),
        ([row(images=[])], {}, "D204"),
        ([], {}, "D102"),
        ([row(id="x"), row(id="x")], {"columns": Columns(id="id")}, "D102"),
    ],
)
def test_bad_input_gives_its_code_before_training(folder, rows, settings, code):
    error = load_error(write_rows(folder, rows), **settings)
    assert error.code == code
    assert error.exit_code == 3
    assert len(error.render().splitlines()) <= 12


def test_rows_without_an_image_are_counted_and_the_first_few_are_named(folder):
    several = [row(f"What is {n}?", images=[] if n % 3 == 0 else ["0.png"]) for n in range(1, 40)]
    error = load_error(write_rows(folder, several))
    assert error.what.startswith("13 of 39 rows of ")
    assert "rows 3, 6, 9, 12, 15 and 8 more;" in error.why
    assert error.where.endswith(":3")


def test_a_wrong_column_error_lists_the_columns_and_the_closest(folder):
    error = load_error(write_rows(folder, [row()]), columns=Columns(prompt="questoin"))
    assert "question" in error.render()
    assert error.fix == "data.columns.prompt=question"


def test_a_link_that_leaves_the_image_folder_is_refused(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "secret.png"
    Image.new("RGB", (4, 4)).save(outside)
    (folder / "link.png").symlink_to(outside)
    assert load_error(write_rows(folder, [row(images=["link.png"])])).code == "D206"


def test_an_image_bomb_is_refused_by_its_header(folder):
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    assert load_error(write_rows(folder, [row(images=["bomb.png"])])).code == "D202"


def test_an_error_names_a_line_that_is_not_json(folder):
    path = folder / "data.jsonl"
    path.write_text(json.dumps(row()) + "\n{oops\n")
    assert "data.jsonl:2" in load_error(str(path)).render()


def test_held_out_rows_are_disjoint_and_complete(folder):
    path = write_rows(folder, [row(f"{i}?") for i in range(20)])
    train, held_out = load_train_and_eval(DataSettings(train=path, holdout=5))
    assert (len(train.prompts), len(held_out.prompts)) == (15, 5)
    assert not {p.id for p in train.prompts} & {p.id for p in held_out.prompts}


def test_a_parquet_file_with_image_bytes_is_read_through_datasets(folder):
    datasets = pytest.importorskip("datasets", reason="the extra `data` is not installed")
    table = datasets.Dataset.from_list(
        [
            {
                "problem": "<image>How many?",
                "images": [{"bytes": (folder / "0.png").read_bytes(), "path": None}],
                "answer": "3",
            }
        ]
    )
    table = table.cast_column("images", datasets.Sequence(datasets.Image()))
    path = str(folder / "rows.parquet")
    table.to_parquet(path)
    data = load(path, columns=Columns(prompt="problem"))
    assert data.prompts[0].images[0].load().size == (40, 30)
    assert data.prompts[0].text == "How many?"


@pytest.mark.parametrize(
    ("name", "code"),
    [("0.png", None), ("/etc/hostname", "D206"), ("../x.png", "D206"), ("https://h/x.png", "D205")],
)
def test_an_image_path_in_a_parquet_file_follows_the_same_rules(folder, name, code):
    pyarrow = pytest.importorskip("pyarrow", reason="the extra `data` is not installed")
    from pyarrow import parquet

    rows = [{"question": "What?", "images": [{"bytes": None, "path": name}], "answer": "1"}]
    path = str(folder / "named.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    if code is None:
        assert load(path).prompts[0].images[0].load().size == (40, 30)
    else:
        assert load_error(path).code == code


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"choices": 5}, "D104"), ({"choices": "AB"}, "D104"), ({"choices": ["\ud83d"]}, "D104"),
        ({"choices": ["<|image_pad|>"]}, "D103"), ({"boxes": 7}, "D207"),
        ({"boxes": [[1, 2, 3, 4], 5]}, "D207"), ({"boxes": [90, 90, 99, 99]}, "D207"),
        ({"boxes": [0, 0, float("inf"), 9]}, "D207"), ({"boxes": [float("nan"), 0, 9, 9]}, "D207"),
        ({"answer": float("inf")}, "D104"),
        ({"images": {"bytes": 10**15}}, "D202"), ({"images": {"bytes": "x"}}, "D202"),
        ({"id": "\ud83d"}, "D104"), ({"answer": "\ud83d"}, "D104"),
        ({"images": ["loop.png"]}, "D206"),
    ],
)  # fmt: skip
def test_a_row_of_the_wrong_shape_is_quarantined_without_a_traceback(folder, more, code):
    (folder / "loop.png").symlink_to(folder / "loop.png")
    rows = [{**row(), "id": str(i), "choices": ["1"], "boxes": [1, 1, 9, 9]} for i in range(3)]
    path = write_rows(folder, [*rows, {**rows[0], "id": "x", **more}])
    columns = Columns(choices="choices", boxes="boxes", id="id")
    data = load(path, columns=columns, template="{prompt} {choices}", max_bad_share=0.5)
    assert [q.code for q in data.quarantined] == [code]
    assert len(data.prompts) == 3


def test_a_url_as_data_source_is_refused():
    assert load_error("https://host/rows.parquet").code == "D205"


def test_a_byte_order_mark_is_accepted(folder):
    path = write_rows(folder, [row()])
    (folder / "data.jsonl").write_bytes(b"\xef\xbb\xbf" + (folder / "data.jsonl").read_bytes())
    assert len(load(path).prompts) == 1


def test_a_malformed_hub_source_is_refused():
    assert load_error("hf:not a name").code == "D102"


@pytest.mark.more
def test_every_row_of_the_real_sets_is_read(shared_data):
    for name, expected in (
        ("geometry_mathv", 466),
        ("blink_jigsaw", 120),
        ("geometry3k_sample", 8),
        ("wemath", 314),
    ):
        path = str(shared_data / name / "data.jsonl")
        data = load(path, columns=Columns(choices="choices", id="id"))
        assert (len(data.prompts), data.quarantined) == (expected, [])
        assert not any(PLACEHOLDER.search(p.text) for p in data.prompts)
    jigsaw = load(str(shared_data / "blink_jigsaw" / "data.jsonl")).prompts
    assert all(len(p.images) == 3 for p in jigsaw)


def test_every_row_occurs_once_per_epoch_and_the_order_is_a_function():
    for n, per in ((10, 3), (12, 4), (7, 7), (5, 8)):
        stream = [i for s in range(n * 3) for i in rows_of_step(s, per, n, seed=1)]
        for epoch in range(3):
            assert sorted(stream[epoch * n : (epoch + 1) * n]) == list(range(n))
    order = [int(row) for row in epoch_order(seed=0, epoch=4000, num_rows=1000)]
    assert rows_of_step(1_000_000, 4, 1000, 0) == order[:4]
    # The order never changes: a run of an earlier version resumes in its own order.
    steps = [rows_of_step(step, 3, 7, seed=5) for step in range(3)]
    assert steps == [[5, 6, 0], [4, 2, 1], [3, 2, 1]]
    assert num_steps(466, 16, 5) == 145


def test_an_evaluation_row_that_repeats_a_training_question_is_refused_or_allowed(folder):
    path = write_rows(folder, [row(), row("Why?"), row("Why?", answer="2")])
    other = folder / "eval.jsonl"
    other.write_text(
        json.dumps(row("Why?", answer="3")) + "\n" + json.dumps(row("Why?", ["1.png"])) + "\n"
    )
    settings = DataSettings(train=path, eval=str(other))
    both = load_train_and_eval(settings)
    with pytest.raises(VistillError) as caught:
        check_overlap(*both, settings)
    assert caught.value.code == "D308"
    assert caught.value.what.startswith("1 of 2")
    assert "eval.jsonl:1" in caught.value.where
    check_overlap(*both, DataSettings(train=path, eval=str(other), overlap="allow"))


def test_equal_questions_are_held_out_together(folder):
    rows = [row(f"{i // 4}?", answer=str(i)) for i in range(24)]
    settings = DataSettings(train=write_rows(folder, rows), holdout=8)
    train, held_out = load_train_and_eval(settings)
    assert len(held_out.prompts) == 8
    check_overlap(train, held_out, settings)


def hold_out_groups(sizes, count):
    """Hold out `count` rows of a data set in which question g occurs `sizes[g]` times."""
    rows = [
        Prompt(f"{g}-{i}", (f"question {g}",), content=f"q{g}-{i}")
        for g, size in enumerate(sizes)
        for i in range(size)
    ]
    train, held_out = hold_out(LoadedData(rows, [], []), count)
    assert sorted(p.id for p in (*train.prompts, *held_out.prompts)) == sorted(p.id for p in rows)
    return train, held_out


def possible_sums(sizes):
    """All numbers of rows that complete groups have, except none and all."""
    reachable = {0}
    for size in sizes:
        reachable |= {n + size for n in reachable}
    return reachable - {0, sum(sizes)}


@pytest.mark.parametrize("seed", range(60))
def test_equal_questions_stay_together_and_the_number_held_out_is_the_nearest_possible(seed):
    rng = random.Random(seed)
    sizes = [rng.choice([1, 2, 2, 3, 5, 9]) for _ in range(rng.randint(2, 12))]
    for count in {1, sum(sizes) - 1, *(rng.randint(1, sum(sizes) - 1) for _ in range(4))}:
        train, held_out = hold_out_groups(sizes, count)
        check_overlap(train, held_out, DataSettings())
        nearest = min(abs(n - count) for n in possible_sums(sizes))
        assert abs(len(held_out.prompts) - count) == nearest
        assert (train, held_out) == hold_out_groups(sizes, count)


def test_three_of_eight_paired_rows():
    train, held_out = hold_out_groups([2, 2, 2, 2], 3)
    assert (len(train.prompts), len(held_out.prompts)) == (6, 2)
    check_overlap(train, held_out, DataSettings())


def test_no_row_can_be_held_out_if_all_ask_the_same():
    with pytest.raises(DataError) as caught:
        hold_out_groups([5], 2)
    assert caught.value.code == "D308"
    assert len(hold_out_groups([5], 0)[0].prompts) == 5


def test_many_rows_are_held_out_quickly_for_any_groups():
    train, held_out = hold_out_groups([2] * 20_000 + [7] * 301, 10_001)
    assert len(held_out.prompts) == 10_001
    assert len(train.prompts) == 40_000 + 2_107 - 10_001


def test_keys_whose_parts_join_to_the_same_text_have_different_seeds():
    seeds = [keyed_seed(*parts) for parts in (("a", "bc"), ("ab", "c"), ("abc",), "abc")]
    assert len(set(seeds)) == 4
    assert keyed_seed("order", 0, 0) == keyed_seed("order", "0", "0")


def test_a_replacement_is_never_a_row_that_the_step_has_already():
    """Three of five rows per step: a step across the end of an epoch reads the next epoch."""
    for step in range(60):
        filled = rows_of_step(step, 3, 5, 0, lambda row: row == 2)
        plain = rows_of_step(step, 3, 5, 0)
        assert 2 not in filled
        assert all(filled.count(filled[slot]) == 1 for slot, row in enumerate(plain) if row == 2), (
            step
        )


@pytest.mark.parametrize(
    ("settings", "code", "word"),
    [
        ({"template": "Solve the problem in the picture."}, "C002", "{prompt}"),
        ({"template": ""}, "C002", "{prompt}"),
        ({"min_pixels": 60_000_000}, "C002", "50000000"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings, code, word):
    with pytest.raises(VistillError) as caught:
        DataSettings(**settings)
    assert caught.value.code == code
    assert word in caught.value.why


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_a_file_of_a_pattern_that_is_not_utf8_is_named_with_a_fix_that_keeps_the_others(
    tmp_path, suffix
):
    texts = {"1": "What?", "2": "Wie groß?"}
    for number, question in texts.items():
        rows = {
            "jsonl": f'{{"question": "{question}", "answer": "3"}}\n',
            "csv": f"question,answer\n{question},3\n",
        }
        (tmp_path / f"part {number}.{suffix}").write_bytes(rows[suffix].encode("latin1"))
    source = str(tmp_path / f"part*.{suffix}")
    settings = DataSettings(train=source, text_only="plain", columns=Columns(images=""))
    with pytest.raises(DataError) as caught:
        load_rows(source, settings, None)
    line = {"jsonl": 1, "csv": 2}[suffix]
    assert caught.value.where == f"{tmp_path}/part 2.{suffix}:{line}"
    fix = caught.value.fix.partition("   or   ")[0].partition("   or leave")[0]
    subprocess.run(fix, shell=True, check=True, cwd=tmp_path)
    assert len(load_rows(source, settings, None).prompts) == 2
