"""Rows as they are in the wild: files, image columns, placeholders, and other trainers' formats."""

import base64
import gzip
import json
import shlex
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from vistill.data.loading import load_rows, load_train_and_eval
from vistill.data.settings import Columns, DataSettings
from vistill.data.sources import read_source
from vistill.errors import DataError, VistillError

ROWS = [{"question": f"What is {n}?", "images": [f"{n}.png"], "answer": str(n)} for n in range(3)]


@pytest.fixture
def folder(tmp_path):
    for i in range(3):
        Image.new("RGB", (40 + i, 30), (10 * i, 0, 0)).save(tmp_path / f"{i}.png")
    return tmp_path


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def load(path, **settings):
    return load_rows(str(path), DataSettings(train=str(path), **settings), None)


def load_error(path, **settings):
    with pytest.raises(VistillError) as caught:
        load(path, **settings)
    assert len(caught.value.render().splitlines()) <= 12
    return caught.value


def load_one(folder, row, **settings):
    path = folder / "one.jsonl"
    path.write_text(json.dumps(row) + "\n")
    return load(path, **settings).prompts[0]


def shown(prompt):
    """The parts of a prompt, images by their width."""
    return [p if isinstance(p, str) else p.load().size[0] - 40 for p in prompt.parts]


# ---- files ----

TABLE = 'question,images,answer\n"What is\n0?",0.png,0\nWhat is 1?,"[""1.png""]",1\n'
FILES = {
    "rows.jsonl": lines(ROWS).encode(),
    "rows.JSONL": lines(ROWS).encode(),
    "array.json": json.dumps(ROWS).encode(),
    "array.jsonl": json.dumps(ROWS, indent=2).encode(),
    "wrapped.json": json.dumps({"version": 1, "data": ROWS}).encode(),
    "pretty.jsonl": "\n".join(json.dumps(row, indent=2) for row in ROWS).encode(),
    "bom.json": b"\xef\xbb\xbf" + json.dumps(ROWS).encode(),
    "rows.jsonl.gz": gzip.compress(lines(ROWS).encode(), mtime=0),
    "named_otherwise": gzip.compress(json.dumps(ROWS).encode(), mtime=0),
    "utf16.jsonl": lines(ROWS).encode("utf-16"),
    "utf16.json": json.dumps(ROWS, indent=1).encode("utf-16"),
    "rows[1]*.jsonl": lines(ROWS).encode(),
}
TABLES = {
    "rows.csv": TABLE.encode(),
    "rows.CSV": b"\xef\xbb\xbf" + TABLE.replace("\n", "\r\n").encode(),
    "rows.tsv": b"question\timages\tanswer\nWhat is 0?\t0.png\t0\nWhat is 1?\t1.png\t1\n",
    "semicolons.csv": b"question;images;answer\nWhat is 0?;0.png;0\nWhat is 1?;1.png;1\n",
    "rows.csv.gz": gzip.compress(TABLE.encode(), mtime=0),
}


@pytest.mark.parametrize("name", FILES)
def test_json_is_read_as_lines_array_or_pretty_printed_whatever_its_name(folder, name):
    (folder / name).write_bytes(FILES[name])
    prompts = load(folder / name).prompts
    assert [p.answer for p in prompts] == ["0", "1", "2"]
    assert [shown(p)[0] for p in prompts] == [0, 1, 2]
    assert len({p.id for p in prompts}) == 3


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_read_by_their_header(folder, name):
    (folder / name).write_bytes(TABLES[name])
    prompts = load(folder / name).prompts
    assert [p.answer for p in prompts] == ["0", "1"]
    assert [shown(p)[0] for p in prompts] == [0, 1]


def test_an_empty_cell_of_a_table_is_no_value(folder):
    (folder / "rows.csv").write_text("question,images,answer\nA?,0.png,\nB?,1.png,7\n")
    assert [p.answer for p in load(folder / "rows.csv").prompts] == [None, "7"]


@pytest.mark.parametrize("name", ["a[1].parquet", "star*.parquet", "rows.PARQUET", "rows"])
def test_a_parquet_file_is_read_by_its_content_and_its_name_is_no_pattern(folder, name):
    pyarrow = pytest.importorskip("pyarrow", reason="the extra `data` is not installed")
    from pyarrow import parquet

    data = [(folder / f"{n}.png").read_bytes() for n in range(2)]
    rows = [{"question": f"What {n}?", "images": data[n], "answer": 0.1} for n in range(2)]
    table = pyarrow.Table.from_pylist(rows)
    table = table.set_column(2, "answer", table["answer"].cast(pyarrow.float32()))
    parquet.write_table(table, folder / name)
    other = pyarrow.Table.from_pylist([{"question": "Other?", "images": data[0], "answer": 9.0}])
    parquet.write_table(other, folder / "a1.parquet")
    parquet.write_table(other, folder / "star-2.parquet")
    prompts = load(folder / name).prompts
    assert [shown(p)[0] for p in prompts] == [0, 1]
    assert [p.answer for p in prompts] == ["0.1", "0.1"]


def test_odd_types_of_a_parquet_file_are_read(folder):
    pyarrow = pytest.importorskip("pyarrow", reason="the extra `data` is not installed")
    from pyarrow import parquet

    data = (folder / "1.png").read_bytes()
    text, pair = pyarrow.string(), [("ground_truth", "7")]
    columns = {
        "question": pyarrow.array(["What?"]).cast(pyarrow.large_string()),
        "images": pyarrow.array([list(data)], pyarrow.list_(pyarrow.uint8())),
        "answer": pyarrow.array([pair], pyarrow.map_(text, text)),
        "options": pyarrow.array([["6", "7", None]], pyarrow.list_(text)),
    }
    parquet.write_table(pyarrow.table(columns), folder / "odd.parquet")
    (prompt,) = load(folder / "odd.parquet", columns=Columns(choices="options")).prompts
    assert (prompt.answer, prompt.choices, shown(prompt)[0]) == ("7", ("6", "7"), 1)


def test_a_pattern_reads_all_files_where_no_file_has_that_name(folder):
    for n in range(2):
        (folder / f"part-{n}.jsonl").write_text(lines(ROWS[n : n + 1]))
    assert [p.answer for p in load(folder / "part-*.jsonl").prompts] == ["0", "1"]


def test_a_pattern_over_folders_reads_the_files_of_each(folder):
    for name in ("maze", "chart"):
        (folder / name / "data").mkdir(parents=True)
        (folder / name / "data" / "train-0.jsonl").write_text(
            lines([{"question": f"{name}?", "images": ["0.png"], "answer": name}])
        )
    (folder / "maze" / "data" / "test-0.jsonl").write_text(lines(ROWS))
    prompts = load(folder / "*" / "data" / "train-*.jsonl", images=str(folder)).prompts
    assert [p.answer for p in prompts] == ["chart", "maze"]


def test_the_thoughts_of_all_rounds_are_read_in_the_order_of_their_numbers(folder):
    rounds = {f"thought_{n}": f"{n % 3}.png" for n in (10, 2, 1)}
    few = {"thought_1": None, "thought_2": "0.png", "thought_10": None}
    rows = [{**ROWS[0], **rounds}, {**ROWS[1], **few}, {**ROWS[2], "thought_1": ["1.png", "2.png"]}]
    (folder / "rows.jsonl").write_text(lines(rows))
    prompts = load(folder / "rows.jsonl", columns=Columns(thoughts="thought_*")).prompts
    widths = [[image.load().width for image in prompt.thoughts] for prompt in prompts]
    assert widths == [[41, 42, 41], [40], [41, 42]]
    error = load_error(folder / "rows.jsonl", columns=Columns(thoughts="thoughts_*"))
    assert (error.code, "thoughts_*" in error.what) == ("D101", True)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("rows.zst", b"\x28\xb5\x2f\xfd" + bytes(9), "zstd -d"),
        ("rows.jsonl.bz2", b"BZh9" + bytes(9), "bunzip2"),
        ("rows.xlsx", b"PK\x03\x04" + bytes(9), "python -m zipfile -e"),
        ("rows.pkl", b"\x80\x04" + bytes(9), "JSON Lines or Parquet"),
        ("rows.jsonl", bytes(range(256)) * 3 + bytes(99), "JSON Lines or Parquet"),
        ("rows.jsonl", lines(ROWS).encode("utf-16-le"), "iconv -f UTF-16LE"),
        ("rows.jsonl.gz", gzip.compress(lines(ROWS).encode(), mtime=0)[:-9], "gunzip -t"),
        ("rows.csv", b"question,answer,answer\na,b,c\n", "rename"),
        ("rows.csv", b'question,answer\n"a,b\n', "sed -n"),
    ],
)
def test_a_file_that_is_not_read_is_named_with_the_command_that_helps(folder, name, data, words):
    (folder / name).write_bytes(data)
    error = load_error(folder / name)
    assert error.code == "D102"
    assert words in error.fix


@pytest.mark.parametrize("name", ["rows.jsonl", "my räws 1.jsonl"])
@pytest.mark.parametrize("encoding", ["cp1252", "utf-16-le"])
def test_the_command_that_converts_an_encoding_works_when_pasted(folder, name, encoding):
    rows = [{**ROWS[0], "question": "Was zeigt das Bild – größer?"}]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / name).write_bytes(text.encode(encoding))
    error = load_error(folder / name)
    command, _, setting = error.fix.partition("   and then   ")
    subprocess.run(["bash", "-c", command], check=True, cwd=folder)
    (word,) = shlex.split(setting)
    assert load(word.removeprefix("data.train=")).prompts[0].text == rows[0]["question"]


def test_a_fix_for_the_evaluation_rows_names_their_setting(folder):
    (folder / "rows.jsonl").write_text(lines(ROWS))
    (folder / "held rows.jsonl").write_text(lines(ROWS))
    settings = DataSettings(train=str(folder / "rows.jsonl"), eval=str(folder / "hold rows.jsonl"))
    with pytest.raises(DataError) as caught:
        load_train_and_eval(settings)
    (word,) = shlex.split(caught.value.fix)
    assert word == f"data.eval={folder / 'held rows.jsonl'}"


def test_a_folder_as_source_names_a_file_in_it(folder):
    (folder / "train rows.jsonl").write_text(lines(ROWS))
    error = load_error(folder)
    (word,) = shlex.split(error.fix)
    assert len(load(word.removeprefix("data.train=")).prompts) == 3
    assert "data.train=" in load_error(folder / "tran rows.jsonl").fix


@pytest.mark.parametrize(
    "text", ["[\n" + json.dumps(ROWS[0]) + ",\n", "{\n  'question': 'x'\n}\n", "[\n{},]\n"]
)
def test_a_damaged_document_is_named_with_the_place(folder, text):
    (folder / "rows.json").write_text(text)
    error = load_error(folder / "rows.json")
    assert (error.code, "damaged" in error.what, "line" in error.why) == ("D102", True, True)


def test_an_item_of_an_array_that_is_no_row_is_a_bad_row(folder):
    (folder / "rows.json").write_text(json.dumps([*ROWS, None]))
    data = load(folder / "rows.json", max_bad_share=0.5)
    assert [(q.code, q.where.rpartition(":")[2]) for q in data.quarantined] == [("D102", "4")]


def test_names_in_the_header_of_a_table_may_have_blanks(folder):
    (folder / "rows.csv").write_text("question, images, answer\nWhat?,0.png,7\n")
    assert load(folder / "rows.csv").prompts[0].answer == "7"


def test_pictures_of_one_colour_are_counted(folder):
    Image.effect_noise((32, 32), 90).save(folder / "2.png")
    (folder / "rows.jsonl").write_text(lines(ROWS))
    assert any("2 pictures have one colour" in note for note in load(folder / "rows.jsonl").notes)


@pytest.mark.parametrize("key", ["videos", "audios", "objects", "tools"])
def test_a_conversation_with_parts_that_are_not_read_is_refused(folder, key):
    row = {"messages": [USER], "images": ["0.png"], "answer": "7", key: ["x"]}
    assert load_error_of(folder, row).code == "D105"
    assert load_one(folder, {**row, key: []}).answer == "7"


def test_a_bad_line_stays_a_bad_line_of_json_lines(folder):
    (folder / "rows.jsonl").write_text('["not", "a", "row"]\n' + lines(ROWS) + "{oops\n")
    rows = list(read_source(str(folder / "rows.jsonl")))
    assert [line for line, row in rows if isinstance(row, DataError)] == [1, 5]
    assert all("sed -n" in row.fix for _, row in rows if isinstance(row, DataError))


# ---- images of a row ----


@pytest.mark.parametrize(
    "value",
    [
        [None],
        None,
        [],
        "",
        [""],
        {"bytes": None},
        {"bytes": None, "path": None},
        [{"path": ""}],
        {},
    ],
)
def test_empty_places_are_no_image(folder, value):
    row = {"question": "What?", "images": value, "answer": "1"}
    assert load_one(folder, row, text_only="plain").images == ()
    (folder / "one.jsonl").write_text(lines([row, {**row, "images": "0.png"}]))
    error = load_error(folder / "one.jsonl")
    assert (error.code, error.what.split()[:3]) == ("D204", ["1", "of", "2"])


def test_an_empty_place_between_images_keeps_the_numbers_of_the_others(folder):
    row = {"question": "<image 3> then <image 1>", "images": ["0.png", None, "2.png"], "answer": ""}
    assert shown(load_one(folder, row)) == [2, " then ", 0]
    row["question"] = "<image> then <image>"
    assert shown(load_one(folder, row)) == [0, " then ", 2]
    row["question"] = "<image 2>"
    assert load_error_of(folder, row).code == "D103"


def load_error_of(folder, row, **settings):
    (folder / "one.jsonl").write_text(lines([row]))
    return load_error(folder / "one.jsonl", **settings)


@pytest.mark.parametrize("text", ["['0.png', '1.png']", '["0.png", "1.png"]'])
def test_a_list_of_images_written_as_text_is_a_list(folder, text):
    row = {"question": "<image><image>", "images": text, "answer": "1"}
    assert shown(load_one(folder, row)) == [0, 1]


@pytest.mark.parametrize(
    "value", [{"url": "0.png"}, {"image": {"path": "0.png"}}, {"image_url": {"url": "0.png"}}]
)
def test_an_image_in_a_mapping_is_read(folder, value):
    assert shown(load_one(folder, {"question": "Q", "images": [value], "answer": "1"}))[0] == 0


def test_absolute_paths_inside_the_image_folder_are_read_also_through_a_link(folder):
    row = {"question": "Q", "images": [str(folder / "1.png")], "answer": "1"}
    assert shown(load_one(folder, row))[0] == 1
    link = folder.parent / f"{folder.name}-link"
    link.symlink_to(folder)
    row["images"] = [str(link / "2.png")]
    assert shown(load_one(folder, row))[0] == 2


def test_the_fix_for_a_path_outside_the_image_folder_works_when_pasted(folder):
    data = folder / "rows é 1"
    data.mkdir()
    (folder / "pictures").mkdir()
    (folder / "0.png").rename(folder / "pictures" / "0.png")
    for name in ("../pictures/0.png", str(folder / "pictures" / "0.png")):
        (data / "rows.jsonl").write_text(lines([{**ROWS[0], "images": [name]}]))
        error = load_error(data / "rows.jsonl")
        assert error.code == "D206"
        (word,) = shlex.split(error.fix)
        prompt = load(data / "rows.jsonl", images=word.removeprefix("data.images=")).prompts[0]
        assert shown(prompt)[0] == 0


def test_backslashes_are_slashes_and_a_windows_path_is_named(folder):
    (folder / "sub").mkdir()
    (folder / "1.png").rename(folder / "sub" / "1.png")
    assert shown(load_one(folder, {**ROWS[0], "images": ["sub\\1.png"]}))[0] == 1
    for name in ("C:\\data\\1.png", "\\\\server\\share\\1.png"):
        error = load_error_of(folder, {**ROWS[0], "images": [name]})
        assert (error.code, "Windows" in error.why) == ("D206", True)


# ---- placeholders ----


@pytest.mark.parametrize(
    ("question", "images", "expected"),
    [
        ("Why does <IMG> need alt?", 1, [0, "Why does <IMG> need alt?"]),
        ("Is <img> or <img/> right?", 1, [0, "Is <img> or <img/> right?"]),
        ("<img_2> <img1>", 2, [1, " ", 0]),
        ("See <IMAGE-1>, solve <TEST-IMAGE>", 2, ["See ", 0, ", solve ", 1]),
        ("no placeholder", 3, [0, 1, 2, "no placeholder"]),
        ("<image 1> or <image 1>", 1, [0, " or ", 0]),
    ],
)
def test_images_stand_at_their_placeholders_and_html_is_text(folder, question, images, expected):
    names = [f"{n}.png" for n in range(images)]
    row = {"question": question, "images": names, "answer": "1"}
    assert shown(load_one(folder, row)) == expected


@pytest.mark.parametrize("question", ["<image> What?", "Is it <image 2>?", "<image>\n<image> a"])
def test_an_image_without_a_placeholder_next_to_others_is_refused(folder, question):
    row = {"question": question, "images": ["0.png", "1.png", "2.png"], "answer": "1"}
    error = load_error_of(folder, row)
    assert error.code == "D103"
    assert "its order is unknown" in error.why


# ---- other trainers ----

USER = {"role": "user", "content": "<image>How many?"}
REPLY = {"role": "assistant", "content": "There are 7."}
SYSTEM = {"role": "system", "content": "Be brief."}


def part(kind, value):
    return {"type": kind, kind: value}


def data_uri(folder):
    return "data:image/png;base64," + base64.b64encode((folder / "0.png").read_bytes()).decode()


def openai_row(folder):
    content = [part("text", "Look: "), part("image_url", {"url": data_uri(folder)}),
               part("text", " How many?")]  # fmt: skip
    return {"messages": [SYSTEM, {"role": "user", "content": content}], "answer": "7"}


FORMATS = {
    "OpenAI": (openai_row, "messages", ["Look: ", 0, " How many?"], "7", None),
    "HF parts": (
        lambda folder: {
            "messages": [
                {"role": "user", "content": [part("image", "0.png"), part("text", "How many?")]},
                {"role": "assistant", "content": [part("text", "There are 7.")]},
            ],
            "answer": 7,
        },
        "messages", [0, "How many?"], "7", "There are 7.",
    ),
    "TRL": (
        lambda folder: {
            "prompt": [{"role": "user", "content": [{"type": "image"}, part("text", "How many?")]}],
            "images": ["0.png"],
            "solution": "<answer>7</answer>",
        },
        "", [0, "How many?"], "7", None,
    ),
    "sharegpt": (
        lambda folder: {
            "conversations": [
                {"from": "human", "value": "<image>How many?"},
                {"from": "gpt", "value": "There are 7."},
            ],
            "images": ["0.png"],
            "system": "Be brief.",
        },
        "sharegpt", [0, "How many?"], None, "There are 7.",
    ),
    "LLaVA": (
        lambda folder: {
            "id": "x",
            "image": "0.png",
            "conversations": [
                {"from": "human", "value": "<image>\nHow many?"},
                {"from": "gpt", "value": "There are 7."},
            ],
        },
        "sharegpt", [0, "\nHow many?"], None, "There are 7.",
    ),
    "verl": (
        lambda folder: {
            "data_source": "g", "prompt": [USER], "images": [{"bytes": None, "path": "0.png"}],
            "reward_model": {"style": "rule", "ground_truth": "7"}, "extra_info": {"answer": "7"},
        },
        "verl", [0, "How many?"], "7", None,
    ),
    "ms-swift": (
        lambda folder: {"messages": [SYSTEM, USER], "images": ["0.png"], "solution": "7"},
        "ms-swift", [0, "How many?"], "7", None,
    ),
    "ms-swift with a reply": (
        lambda folder: {"messages": [USER, REPLY], "images": [{"path": "0.png"}], "solution": 7},
        "ms-swift", [0, "How many?"], "7", "There are 7.",
    ),
    "as JSON text": (
        lambda folder: {"messages": json.dumps([USER]), "images": "0.png", "answer": "7"},
        "messages", [0, "How many?"], "7", None,
    ),
    "Alpaca": (
        lambda folder: {
            "instruction": "How many?", "input": "Count well.", "output": "There are 7.",
            "images": ["0.png"],
        },
        "Alpaca", [0, "How many?\nCount well."], None, "There are 7.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_the_rows_of_other_trainers_are_detected_announced_and_mapped(folder, name):
    make, announced, parts, answer, response = FORMATS[name]
    row = make(folder)
    (folder / "one.jsonl").write_text(lines([row]))
    data = load(folder / "one.jsonl")
    prompt = data.prompts[0]
    assert shown(prompt) == parts
    assert (prompt.answer, prompt.response) == (answer, response)
    has_system = "system" in row or "Be brief." in str(row.get("messages"))
    assert prompt.system == ("Be brief." if has_system else None)
    assert announced in data.notes[0]
    assert "gold answers:" in data.notes[0]


def test_the_response_of_a_conversation_can_be_the_gold_answer(folder):
    row = {"messages": [USER, {"role": "assistant", "content": "7"}], "images": ["0.png"]}
    prompt = load_one(folder, row, columns=Columns(answer="response"))
    assert (prompt.answer, prompt.response) == ("7", "7")


def test_a_system_message_of_the_recipe_replaces_that_of_the_rows(folder):
    row = {"messages": [SYSTEM, USER], "images": ["0.png"], "answer": "7"}
    assert load_one(folder, row, system="Think.").system == "Think."


def test_a_question_column_with_text_is_never_read_as_another_format(folder):
    row = {**ROWS[0], "messages": [USER, REPLY]}
    assert load_one(folder, row).text == "What is 0?"


TWO = [USER, REPLY, {"role": "user", "content": "And now?"}, REPLY]


def says(*parts):
    return {"role": "user", "content": list(parts)}


IMAGE_PART = {"role": "user", "content": [part("image", "0.png"), part("text", "Q?")]}


@pytest.mark.parametrize(
    ("row", "word"),
    [
        ({"messages": TWO, "images": ["0.png"], "answer": "7"}, "4 turns"),
        ({"messages": [REPLY], "images": [], "answer": "7"}, "1 turns"),
        ({"messages": [IMAGE_PART], "images": ["1.png"], "answer": "7"}, "both in the turns"),
        ({"messages": [says(part("image", "0.png"), part("text", "<image>?"))], "answer": "7"},
         "both an image part and the placeholder"),
        ({"messages": [says(part("video", "a.mp4"))], "answer": "7"}, "'video'"),
        ({"messages": [USER, {"role": "tool", "content": "7"}], "answer": "7"}, "user, tool"),
    ],
)  # fmt: skip
def test_a_conversation_that_is_not_one_question_is_refused(folder, row, word):
    error = load_error_of(folder, row, text_only="plain")
    assert error.code == "D105"
    assert word in f"{error.what} {error.why}"


@pytest.mark.parametrize(
    ("row", "key"),
    [
        (
            {"messages": [USER], "conversations": [USER], "images": ["0.png"], "answer": "7"},
            "prompt",
        ),
        ({"messages": [USER], "images": ["0.png"], "solution": "7", "label": "8"}, "answer"),
    ],
)
def test_two_columns_of_one_meaning_are_ambiguous_and_each_fix_works(folder, row, key):
    error = load_error_of(folder, row)
    assert error.code == "D105"
    fixes = [fix.strip() for fix in error.fix.split(" or ")]
    assert len(fixes) == 2
    for fix in fixes:
        name = fix.removeprefix(f"data.columns.{key}=")
        assert shown(load_one(folder, row, columns=Columns(**{key: name}))) == [0, "How many?"]


# ---- the cases of the reviewers ----


@pytest.mark.parametrize(
    ("name", "answer"),
    [("list_answer", ("7", "8")), ("nested_reward", "7"), ("raw_bytes", "7")],
)
def test_the_reviewers_parquet_files_are_read(shared_data, folder, name, answer):
    pytest.importorskip("pyarrow", reason="the extra `data` is not installed")
    source = shared_data.parent / "cases" / "rows" / f"{name}.parquet"
    if not source.exists():
        pytest.skip(f"{source} is not there")
    (folder / "images").mkdir()
    (folder / "0.png").rename(folder / "images" / "a.png")
    file = folder / source.name
    file.write_bytes(source.read_bytes())
    prompts = load(file).prompts
    assert prompts[0].answer == answer
    assert prompts[0].images[0].load().mode == "RGB"
    assert Path(file).exists()
