"""Mistakes in mixtures of data sets and in the rules of several teachers."""

from fix_cases import DATA_FILE, RECIPE, good_rows, situation, start, write_rows
from fix_cases_python import STUDENT, refused

import vistill

OTHER = "daten 1/andere ö.jsonl"
ONE_TEACHER = "teacher: {model: 'vistill:teacher'}\n"
SETS = RECIPE.replace("  train: daten 1/zeilen ü.jsonl\n", "  sets:\n"
                      "    eins: {train: daten 1/zeilen ü.jsonl}\n"
                      "    zwei: {train: daten 1/andere ö.jsonl}\n")  # fmt: skip
TEACHERS = RECIPE.replace(ONE_TEACHER, "teachers:\n"
                          "  mathe: {model: 'vistill:teacher', rows: [geometrie]}\n"
                          "  bild: {model: 'vistill:teacher', rows: [foto]}\n"
                          ).replace("data:\n", "data:\n  columns: {teacher: fach}\n")  # fmt: skip


def start_sets(place, rest="", recipe=SETS, change=lambda row: None):
    """A mixture of two data sets; the rows of the second one are changed."""
    start(place, rest, recipe=recipe)
    rows = [{**row, "question": f"And now: {row['question']}"} for row in good_rows()]
    for row in rows:
        change(row)
    write_rows(place, rows, OTHER)


def start_teachers(place, *subjects, rest="", recipe=TEACHERS):
    """Rows that name a subject each, in turn."""
    rows = good_rows()
    for number, row in enumerate(rows):
        row["fach"] = subjects[number % len(subjects)]
    start(place, rest, recipe=recipe, rows=rows)


@situation("C002", first=True)
def the_weight_of_a_data_set_is_0(place):
    start_sets(place, "data.sets.zwei.weight=0")


@situation("C002")
def the_weight_of_a_data_set_is_negative(place):
    start_sets(place, recipe=SETS.replace("andere ö.jsonl}", "andere ö.jsonl, weight: -1}"))


@situation("C001")
def a_key_of_a_data_set_is_misspelt(place):
    start_sets(place, "data.sets.zwei.wieght=2")


@situation("C002")
def a_data_set_is_a_number(place):
    start_sets(place, "data.sets.zwei=4")


@situation("C002", FILE_jsonl=DATA_FILE)
def a_data_set_has_no_source(place):
    start_sets(place, recipe=SETS.replace("{train: daten 1/andere ö.jsonl}", "{weight: 2}"))


@situation("C002")
def a_data_set_has_a_name_with_a_hyphen(place):
    start_sets(place, recipe=SETS.replace("zwei:", "daten-zwei:"))


@situation("C002", FILE_jsonl=DATA_FILE)
def a_data_set_is_no_data_set(place):
    def build(place):
        from vistill.data.settings import DataSettings

        DataSettings(sets={"eins": "file.jsonl"})  # pyright: ignore[reportArgumentType]

    start(place)
    place.raises = build


@situation("C101")
def a_source_stands_next_to_data_sets(place):
    start_sets(place, f"'data.train={DATA_FILE}'")


@situation("C101")
def evaluation_rows_stand_next_to_data_sets(place):
    start_sets(place, f"'data.eval={DATA_FILE}'")


@situation("C101", FILE_jsonl=DATA_FILE)
def every_data_set_is_taken_out(place):
    start_sets(place, "data.sets.eins=null data.sets.zwei=null")


@situation("C101")
def a_data_set_is_too_small_for_a_step(place):
    start_sets(place, "data.sets.zwei.limit=2 data.sets.zwei.weight=5 train.prompts_per_step=4"
               " data.sets.eins.weight=1")  # fmt: skip


@situation("D101", first=True)
def a_data_set_has_another_column(place):
    def rename(row):
        row["frage"] = row.pop("question")

    start_sets(place, "data.sets.zwei.columns.prompt=frge", change=rename)


@situation("C101")
def data_sets_stand_next_to_prompts(place):
    from vistill.data.set_settings import DataSet
    from vistill.data.settings import DataSettings
    from vistill.training.checks.data import check_no_sets

    settings = DataSettings(sets={"eins": DataSet(train="a.jsonl")})
    refused(place, lambda: check_no_sets(settings))


@situation("C101")
def one_teacher_stands_next_to_several(place):
    start_teachers(place, "geometrie", "foto", rest="teacher.model=vistill:teacher")


@situation("C002", FOLDER_OR_HUB_ID="vistill:teacher")
def one_of_several_teachers_has_no_model(place):
    start_teachers(place, "geometrie", "foto", rest="teachers.bild.model=")


@situation("C101")
def two_teachers_take_the_same_rows(place):
    start_teachers(place, "geometrie", rest="teachers.bild.rows=[geometrie]")


@situation("C101", first=True)
def two_teachers_take_all_other_rows(place):
    start_teachers(
        place, "geometrie", "foto", rest="teachers.bild.others=true teachers.mathe.others=true"
    )


@situation("D310", first=True)
def rows_have_no_teacher(place):
    start_teachers(place, "geometrie", "foto", "algebra")


@situation("D310")
def evaluation_rows_have_no_teacher(place):
    start_teachers(place, "geometrie", "foto", rest=f"'data.eval={OTHER}' eval.every=1")
    rows = [{**r, "question": r["question"] + "!", "fach": "algebra"} for r in good_rows()]
    write_rows(place, rows, OTHER)


@situation("D310")
def prompts_have_no_teacher(place):
    from vistill.training.recipe import NamedTeacherSettings
    from vistill.training.teachers import TeacherRules

    rules = TeacherRules({"mathe": NamedTeacherSettings("m")}, is_python=True)
    refused(place, lambda: rules.assign([vistill.Prompt("a", ("text",))], "training"))


@situation("D311", first=True)
def no_row_has_a_teacher(place):
    start_teachers(place, "geometrie")


@situation("D311")
def no_prompt_has_a_teacher(place):
    from vistill.training.recipe import NamedTeacherSettings
    from vistill.training.teachers import TeacherRules

    rules = TeacherRules(
        {"a": NamedTeacherSettings("m"), "b": NamedTeacherSettings("m")}, is_python=True
    )
    prompt = vistill.Prompt("a", ("text",), labels={"teacher": "a"})
    refused(place, lambda: rules.check_used({"a": "a"}, [prompt]))


@situation("C002")
def several_teachers_are_none(place):
    from vistill.training.checks.arguments import check_teachers

    refused(place, lambda: check_teachers({}))


@situation("C002")
def one_of_several_teachers_is_a_path(place):
    from vistill.training.checks.arguments import check_teachers

    refused(place, lambda: check_teachers({"mathe": STUDENT}))


@situation("M101")
def one_of_several_teachers_has_another_vocabulary(place):
    rest = "teachers.bild.model=vistill:base"
    start_teachers(place, "geometrie", "foto", rest=rest)
    place.line = place.line.replace(" --fast", "")
