"""Data files that cannot be read."""

import gzip
import json

from fix_cases import RECIPE, good_rows, situation, start

LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in good_rows())
UMLAUT = LINES.replace("How many", "Wie viele Säulen: how many")


def file(place, name, content, rest=""):
    """A folder whose recipe names a data file of this content."""
    start(place, f"'data.train=daten 1/{name}'{rest}")
    place.write(f"daten 1/{name}", content)


@situation("D102", first=True)
def a_file_is_latin_1(place):
    file(place, "alt ü.jsonl", UMLAUT.encode("latin-1"))


@situation("D102")
def a_file_is_of_windows(place):
    file(place, "alt ü.jsonl", UMLAUT.replace("bars", "“bars”").encode("cp1252"))


@situation("D102")
def a_packed_file_is_latin_1(place):
    file(place, "alt ü.jsonl.gz", gzip.compress(UMLAUT.encode("latin-1")))


@situation("D102", first=True)
def a_file_is_utf_16_without_a_mark(place):
    file(place, "alt ü.jsonl", LINES.encode("utf-16-le"))


@situation("D102")
def a_file_of_evaluation_is_latin_1(place):
    file(place, "alt ü.jsonl", UMLAUT.replace("figure", "picture").encode("latin-1"))
    place.line = place.line.replace("data.train=", "data.eval=")


@situation("D102")
def a_table_is_latin_1(place):
    file(place, "alt ü.csv", "question,images,answer\nWie viele Säulen?,bild 1.png,7\n".encode(
        "latin-1"), " train.prompts_per_step=1")  # fmt: skip


@situation("D102", first=True)
def a_file_is_bzip2(place):
    import bz2

    file(place, "NEWS {file} & FILES.jsonl.bz2", bz2.compress(LINES.encode()))


@situation("D102")
def a_table_is_xz(place):
    import lzma

    rows = "question,images,answer\n" + "".join(
        f"How many bars {n}?,bild {n}.png,{n}\n" for n in range(4)
    )
    file(place, "tabelle ü.csv.xz", lzma.compress(rows.encode()))


@situation("D102", FILE_jsonl="zeilen é.jsonl")
def a_file_is_a_zip_archive(place):
    import io
    import zipfile

    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("zeilen é.jsonl", LINES)
    file(place, "archiv ü.zip", out.getvalue())


@situation("D102", FILE_jsonl="daten 1/zeilen ü.jsonl")
def a_file_is_a_pickle(place):
    file(place, "alt ü.pkl", b"\x80\x04" + bytes(20))


@situation("D102")
def a_packed_file_is_damaged(place):
    file(place, "alt ü.jsonl.gz", gzip.compress(LINES.encode())[:-20])


@situation("D102")
def a_packed_file_without_a_suffix_is_damaged(place):
    file(place, "alt ü.jsonl", gzip.compress(LINES.encode())[:-20])


@situation("D102")
def a_line_is_not_json(place):
    file(place, "alt ü.jsonl", LINES + "{bad\n", " data.on_bad_row=stop")


@situation("D102", first=True)
def a_line_of_a_packed_file_is_not_json(place):
    file(place, "alt ü.jsonl.gz", gzip.compress((LINES + "{bad\n").encode()))


@situation("D102")
def a_line_is_a_list(place):
    file(place, "alt ü.jsonl", LINES + "[1]\n")


@situation("D102")
def an_array_is_damaged(place):
    file(place, "alt ü.json", json.dumps(good_rows(), indent=1)[:-9])


@situation("D102")
def a_packed_array_is_damaged(place):
    file(place, "alt ü.json.gz", gzip.compress(json.dumps(good_rows(), indent=1)[:-9].encode()))


@situation("D102")
def a_row_of_a_table_has_too_many_cells(place):
    rows = "question,images,answer\n" + "".join(
        f"How many bars {n}?,bild {n}.png,{n}\n" for n in range(4)
    )
    file(place, "tabelle ü.csv", rows + "a,b,c,d\n")


@situation("D102", FILE_jsonl="daten 1/zeilen ü.jsonl")
def a_parquet_file_is_damaged(place):
    file(place, "alt ü.parquet", b"PAR1" + bytes(64))


@situation("D102", ends="D102", **{"hf:OWNER/NAME[SPLIT]": "hf:owner/name[train]"})
def a_data_set_of_the_hub_has_no_form(place):
    start(place, "data.train=hf:a/b/c")


@situation("D102", FILE_jsonl="daten 1/zeilen ü.jsonl")
def a_data_set_is_not_in_the_cache(place):
    start(place, "data.train=hf:owner/name")


@situation("D102", FILE_jsonl="daten 1/zeilen ü.jsonl")
def stored_prompts_are_missing(place):
    start(place, "'data.train=prompts:läufe/alt ü/prompts.jsonl'")


@situation("D102", FILE_jsonl="antworten ü.jsonl")
def replies_are_missing(place):
    replies(place)
    place.line = "vistill judge 'zebra 7.jsonl'"


def replies(place):
    place.write("antworten ü.jsonl", '{"reply": "The answer is B.", "gold": "B"}\n')


@situation("D102", first=True)
def replies_are_misspelt(place):
    replies(place)
    place.line = "vistill judge 'antwoten ü.jsonl'"


@situation("D102")
def replies_are_latin_1(place):
    place.write("antworten ü.jsonl", '{"reply": "Für B.", "gold": "B"}\n', "latin-1")
    place.line = "vistill judge 'antworten ü.jsonl'"


@situation("D102")
def replies_are_not_json(place):
    place.write("antworten ü.jsonl", "{bad\n")
    place.line = "vistill judge 'antworten ü.jsonl'"


@situation("D104")
def replies_lack_the_gold(place):
    place.write("antworten ü.jsonl", '{"reply": "B"}\n')
    place.line = "vistill judge 'antworten ü.jsonl'"


@situation("D102", first=True)
def a_line_of_a_utf_16_file_is_not_json(place):
    file(place, "alt ü.jsonl", (LINES + "{bad\n").encode("utf-16"))


@situation("D102", first=True)
def a_line_of_a_packed_utf_16_file_is_a_list(place):
    file(place, "alt ü.jsonl.gz", gzip.compress((LINES + "[1]\n").encode("utf-16")))


@situation("D102")
def a_utf_16_array_is_damaged(place):
    file(place, "alt ü.json", json.dumps(good_rows(), indent=1)[:-9].encode("utf-16"))


@situation("D102")
def an_array_with_a_mark_is_damaged(place):
    file(place, "alt ü.json", json.dumps(good_rows(), indent=1)[:-9].encode("utf-8-sig"))


@situation("D102")
def a_packed_array_with_a_mark_is_damaged(place):
    text = json.dumps(good_rows(), indent=1)[:-9].encode("utf-8-sig")
    file(place, "alt ü.json.gz", gzip.compress(text))


@situation("D102")
def a_utf_16_file_is_cut(place):
    file(place, "alt ü.jsonl", LINES.encode("utf-16")[:-1])


@situation("D102")
def a_row_of_a_packed_table_has_too_many_cells(place):
    rows = "question,images,answer\n" + "".join(
        f"How many bars {n}?,bild {n}.png,{n}\n" for n in range(4)
    )
    file(place, "tabelle ü.csv.gz", gzip.compress((rows + "a,b,c,d\n").encode("utf-16")))


def start_with_file(place, name, content):
    """A data file in the working folder, whose name a program could take for an option."""
    start(place, f"'data.train={name}'")
    place.write(name, content)


@situation("D102", first=True)
def a_file_with_a_hyphen_is_latin_1(place):
    start_with_file(place, "-alt ü.jsonl", UMLAUT.encode("latin-1"))


@situation("D102")
def a_line_of_a_file_with_a_hyphen_is_not_json(place):
    start_with_file(place, "-alt ü.jsonl", LINES + "{bad\n")


@situation("D102")
def an_array_with_a_hyphen_is_damaged(place):
    start_with_file(place, "--alt ü.json", json.dumps(good_rows(), indent=1)[:-9])


@situation("D102")
def a_file_with_a_hyphen_is_bzip2(place):
    import bz2

    start_with_file(place, "-alt.jsonl.bz2", bz2.compress(LINES.encode()))


def read_only(patch):
    """A folder in which nothing can be written."""
    patch.setattr("vistill.errors.os.access", lambda path, mode: False)


@situation("D102")
def a_file_of_a_read_only_folder_is_latin_1(place):
    file(place, "alt ü.jsonl", UMLAUT.encode("latin-1"))
    place.patches.append(read_only)


@situation("C003")
def a_recipe_of_a_read_only_folder_has_a_tab(place):
    start(place)
    place.write("rezepte ß/mit.yaml", RECIPE.replace("train: {p", "train:\n\t{p"))
    place.line = "vistill check 'rezepte ß/mit.yaml' --fast"
    place.patches.append(read_only)
