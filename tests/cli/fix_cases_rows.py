"""Rows and images that cannot be used."""

import json
import shutil

from fix_cases import (
    DATA_FILE,
    IMAGE_FOLDER,
    good_rows,
    picture,
    situation,
    start,
    write_rows,
)

OTHER = "daten 1/andere ö.jsonl"


def start_with(place, change, rest="", count=1):
    """A folder whose rows are all changed, or the first few."""
    rows = good_rows()
    for row in rows[:count]:
        change(row)
    start(place, rest, rows=rows)


def rename_image(row):
    row["images"] = ["bild 77.png"]


def all_images(place):
    """A folder far away that has the missing image too."""
    for number in (0, 1, 2, 3, 4, 5, 77):
        place.write(f"alle ß/bild {number}.png", picture(number % 6))


@situation("D101", first=True)
def the_question_has_another_column(place):
    start(place, rows=[{"meine Frage": r.pop("question"), **r} for r in good_rows()])
    place.line += " 'data.columns.prompt=meine frage'"


@situation("D101", COLUMN="zebra é")
def the_question_is_in_a_column_of_its_own(place):
    start(place, rows=[{"zebra é": r.pop("question"), **r} for r in good_rows()])


@situation("D101")
def there_is_no_column_of_answers(place):
    start(place, "'data.columns.choices=die Optionen'")


@situation("D104", first=True)
def the_gold_answers_count_the_options_from_1(place):
    options = {"options": ["rot", "grün", "blau"]}
    rows = [{**row, **options, "answer": n % 3 + 1} for n, row in enumerate(good_rows())]
    start(place, "data.columns.choices=options", rows=rows)


@situation("D101", first=True)
def one_column_of_a_group_is_missing(place):
    rows = [{**r, "A": "links", "B": "rechts", "answer": "A"} for r in good_rows()]
    start(place, "data.columns.choices=A,B,C", rows=rows)


@situation("D301", COLUMN="gold", first=True)
def the_checker_reads_no_gold_answer(place):
    rows = [{**r, "gold": "_*_/_#_/_@_"} for r in good_rows()]
    start(place, "data.holdout=2 eval.checker=maze", rows=rows)


@situation("D102", first=True)
def the_data_file_is_misspelt(place):
    start(place, "'data.train=daten 1/zeiln ü.jsonl'")


@situation("D102", first=True)
def the_evaluation_file_is_misspelt(place):
    start(place, "'data.eval=daten 1/andre ö.jsonl'")
    write_rows(place, [{**r, "question": r["question"] + "!"} for r in good_rows()], OTHER)


@situation("D102", FILE_jsonl=DATA_FILE)
def the_data_file_is_like_no_other(place):
    start(place, "data.train=zebra.jsonl")


@situation("D102", FILE_jsonl=DATA_FILE)
def the_data_are_empty(place):
    start(place, "'data.train=leer ß.jsonl'")
    place.write("leer ß.jsonl", "\n")


@situation("D102", COLUMN="bild")
def no_row_has_an_image(place):
    rows = [{**r, "images": [], "bild": r["images"]} for r in good_rows()]
    start(place, "data.text_only=drop", rows=rows)


@situation("D102", first=True)
def two_rows_have_one_id(place):
    start(place, "data.columns.id=nr", rows=[{**r, "nr": "1"} for r in good_rows()])


@situation("D102")
def more_rows_are_held_out_than_there_are(place):
    start(place, "data.holdout=60")


@situation("D308", FILE=OTHER)
def all_rows_ask_the_same(place):
    start(place, "data.holdout=2", rows=[good_rows()[0]] * 6)
    write_rows(place, [{**r, "question": r["question"] + "!"} for r in good_rows()], OTHER)


@situation("D308", FILE=OTHER)
def evaluation_repeats_training(place):
    start(place, f"'data.eval={DATA_FILE}'")
    write_rows(place, [{**r, "question": r["question"] + "!"} for r in good_rows()], OTHER)


@situation("D201", first=True)
def images_are_in_another_folder(place):
    start(place)
    shutil.move(place.folder / IMAGE_FOLDER, place.folder / "bilder & mehr")
    (place.folder / IMAGE_FOLDER).mkdir()


@situation("D201", FOLDER="weit/weg ö/bilder")
def images_are_far_away(place):
    start(place)
    (place.folder / "weit/weg ö").mkdir(parents=True)
    shutil.move(place.folder / IMAGE_FOLDER, place.folder / "weit/weg ö/bilder")


@situation("D201", FOLDER="alle ß")
def an_image_is_missing_and_bad_rows_stop(place):
    start_with(place, rename_image, "data.on_bad_row=stop")
    all_images(place)


@situation("D201", FOLDER="alle ß")
def two_images_are_missing(place):
    start_with(place, rename_image, count=2)
    all_images(place)


@situation("D201", FOLDER="alle ß")
def all_images_are_missing_and_every_share_is_allowed(place):
    start_with(place, rename_image, "data.max_bad_share=1", count=6)
    all_images(place)


@situation("D206", first=True)
def images_have_absolute_paths_elsewhere(place):
    start(place)
    folder = place.folder / "bilder & mehr"
    shutil.copytree(place.folder / IMAGE_FOLDER, folder)
    write_rows(place, [{**r, "images": [str(folder / r["images"][0])]} for r in good_rows()])


@situation("D206")
def images_have_paths_of_windows(place):
    start(place, rows=[{**r, "images": ["C:\\bilder\\a.png"]} for r in good_rows()])


@situation("D206")
def images_are_named_outside(place):
    start(place, rows=[{**r, "images": ["../../" + r["images"][0]]} for r in good_rows()])


@situation("D206", COLUMN="images")
def a_name_of_an_image_is_too_long(place):
    start(place, "data.columns.images=bild", rows=[{**r, "bild": "x" * 5000} for r in good_rows()])


@situation("D202")
def an_image_is_a_pointer_of_git(place):
    start(place)
    place.write(f"{IMAGE_FOLDER}/bild 1.png", "version https://git-lfs.github.com/spec/v1\n")


@situation("D202", first=True)
def images_are_tiff(place):
    import io

    from PIL import Image

    start(place)
    out = io.BytesIO()
    Image.new("RGB", (64, 64), (9, 9, 200)).save(out, "TIFF")
    for number in range(2):
        place.write(f"{IMAGE_FOLDER}/bild {number}.png", out.getvalue())


@situation("D202")
def an_image_is_cut(place):
    start(place)
    place.write(f"{IMAGE_FOLDER}/bild 1.png", picture(1)[:80])


@situation("D204", first=True)
def a_row_has_no_image(place):
    start_with(place, lambda row: row.update(images=[]))


@situation("D204", first=True)
def the_recipe_reads_no_column_of_pictures(place):
    rows = [{"question": r["question"], "mein Bild": r["images"][0], "answer": r["answer"]}
            for r in good_rows()]  # fmt: skip
    start(place, "data.columns.images=", rows=rows)


@situation("D101", first=True)
def a_column_of_pictures_has_an_unusual_name(place):
    rows = [{"question": r["question"], "mein Bild": r["images"][0], "answer": r["answer"]}
            for r in good_rows()]  # fmt: skip
    start(place, rows=rows)


@situation("D101")
def a_column_of_turns_is_misspelt(place):
    rows = [{"messages": [{"role": "user", "content": r["question"]}], "images": r["images"],
             "answer": r["answer"]} for r in good_rows()]  # fmt: skip
    start(place, "data.columns.prompt=mesages", rows=rows)


@situation("D205", FILE_jsonl=DATA_FILE)
def the_data_are_a_url(place):
    start(place, "data.train=https://example.com/a.jsonl")


@situation("D103", COLUMN="alle bilder")
def a_placeholder_has_no_image(place):
    rows = [{**r, "question": "<image> <image> ?", "alle bilder": r["images"] * 2}
            for r in good_rows()]  # fmt: skip
    start(place, rows=rows)


@situation("D103")
def an_answer_has_a_special_token(place):
    start_with(place, lambda row: row.update(answer="7<|im_end|>"))


@situation("D104", COLUMN="text")
def questions_are_numbers(place):
    start(place, rows=[{**r, "question": 7, "text": r["question"]} for r in good_rows()])


@situation("D104", COLUMN="die Optionen")
def options_are_a_number(place):
    rows = [
        {**r, "choices": 7, "die Optionen": ["0", "1", "2", "3", "4", "5"]} for r in good_rows()
    ]
    start(place, "data.columns.choices=choices", rows=rows)


@situation("D104", COLUMN="die Antwort")
def answers_are_objects(place):
    rows = [{**r, "answer": {"a": 1}, "die Antwort": r["answer"]} for r in good_rows()]
    start(place, rows=rows)


@situation("D104")
def an_answer_has_several_parts(place):
    rows = [{**r, "answer": ["A", "B"], "choices": ["x", "y"]} for r in good_rows()]
    start(place, "data.columns.choices=choices", rows=rows)


@situation("D104", COLUMN="die Optionen")
def an_answer_names_no_option(place):
    rows = [{**r, "choices": ["x", "y"], "answer": "D", "die Optionen": ["x", "y", "z", "0"]}
            for r in good_rows()]  # fmt: skip
    start(place, "data.columns.choices=choices", rows=rows)


@situation("D104", COLUMN="response")
def responses_are_numbers(place):
    rows = [{**r, "lösung": 7} for r in good_rows()]
    start(place, "method=sft teacher.model= data.columns.response=lösung", rows=rows)


@situation("D104", COLUMN="meine frage")
def a_conversation_is_a_text(place):
    rows = [{"messages": [{"role": "user", "content": r["question"]}], **r} for r in good_rows()]
    for row in rows:
        row["meine frage"] = row.pop("question")
    rows[0]["messages"] = "?"
    start(place, rows=rows)


@situation("D105")
def answers_are_in_two_columns(place):
    rows = []
    for row in good_rows():
        turns = [{"role": "user", "content": row.pop("question")}]
        answer = row.pop("answer")
        rows.append({**row, "messages": turns, "solution": answer, "label": answer})
    start(place, rows=rows)


@situation("D105")
def conversations_are_in_two_columns(place):
    rows = []
    for row in good_rows():
        turns = [{"role": "user", "content": row.pop("question")}]
        rows.append({**row, "messages": turns, "conversations": turns})
    start(place, rows=rows)


def as_turns(row, content=None, **more):
    turns = [{"role": "user", "content": content or row["question"]}]
    return {**{k: v for k, v in row.items() if k != "question"}, "messages": turns, **more}


@situation("D105")
def a_row_has_a_video(place):
    rows = [as_turns(r) for r in good_rows()]
    rows[1]["videos"] = ["a.mp4"]
    start(place, rows=rows)


@situation("D105")
def images_are_in_turns_and_in_a_column(place):
    part = [{"type": "image", "image": "bild 1.png"}, {"type": "text", "text": "Why?"}]
    start(place, rows=[as_turns(r, part) for r in good_rows()])


@situation("D105")
def a_placeholder_is_next_to_an_image_part(place):
    part = [{"type": "image", "image": "bild 1.png"}, {"type": "text", "text": "<image> Why?"}]
    rows = [as_turns(r, part) for r in good_rows()]
    for row in rows:
        del row["images"]
    start(place, rows=rows)


@situation("D302", COLUMN="die Antwort")
def no_row_has_an_answer(place):
    rows = [{**r, "answer": None, "die Antwort": r["answer"]} for r in good_rows()]
    start(place, "method=grpo teacher.model=", verb="train", rows=rows)


@situation("D303", COLUMN="response")
def a_row_has_no_response(place):
    start(place, "method=sft teacher.model=", verb="train")


@situation("D304", COLUMN="gedanken")
def no_row_has_a_thought(place):
    rows = [{**r, "gedanken": r["images"]} for r in good_rows()]
    start(place, "method=visual_opsd visual_opsd.gate=false", verb="train", rows=rows)


@situation("D305", COLUMN="bilder")
def a_visual_method_has_no_image(place):
    rows = [{**r, "images": [], "bilder": r["images"]} for r in good_rows()]
    start(place, "data.text_only=plain", verb="train", rows=rows)


@situation("D203")
def a_prompt_is_too_long(place):
    start_with(place, lambda row: row.update(question="How many bars? " * 60))
    place.line = place.line.replace(" --fast", " data.max_prompt_tokens=200")


def start_with_sisters(place, rest):
    """Pictures next to the rows, and in a sister folder of theirs."""
    rows = [{**r, "images": [["bild {}.png", "../fotos ß/bild {}.png"][n % 2].format(n)]}
            for n, r in enumerate(good_rows())]  # fmt: skip
    start(place, rest, rows=rows)
    for number in range(6):
        folder = ["daten 1", "fotos ß"][number % 2]
        place.write(f"{folder}/bild {number}.png", picture(number))
    shutil.rmtree(place.folder / IMAGE_FOLDER)


@situation("D206", first=True)
def images_are_in_a_sister_folder_too(place):
    start_with_sisters(place, "data.images= data.on_bad_row=stop")


@situation("D201")
def the_image_folder_is_the_sister_folder(place):
    start_with_sisters(place, "'data.images=fotos ß'")


@situation("D102")
def one_file_of_a_pattern_is_latin_1(place):
    start(place)
    rows = good_rows()
    write_rows(place, rows[:1], "daten 1/teil 1.jsonl")
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows[1:])
    text = text.replace("How many", "Größe: how many")
    place.write("daten 1/teil 2.jsonl", text, "latin-1")
    place.line += " 'data.train=daten 1/teil*.jsonl'"


@situation("D312", FILE="neu ß/zeilen.jsonl")
def the_training_rows_are_for_evaluation_only(place):
    start(place)
    place.write("daten 1/SOURCE.md", "A benchmark. Evaluation use only.")
    write_rows(place, good_rows(), "neu ß/zeilen.jsonl")


@situation("D102", FOLDER="bänke 1")
def the_folder_holds_no_benchmark(place):
    start(place, "data.benchmarks=leer")
    place.write("bänke 1/ai2d/bild.png", picture(0))
    row = {"question": "Which?", "options": ["a leaf", "a root"], "answer": "1",
           "image": "bild.png"}  # fmt: skip
    place.write("bänke 1/ai2d/data.jsonl", json.dumps(row) + "\n")
