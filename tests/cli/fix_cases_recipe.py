"""Mistakes in a recipe and on the command line."""

from fix_cases import DATA_FILE, RECIPE, RECIPE_FILE, good_rows, situation, start

STAGES = RECIPE + "stages: {eins: {method: opd}, zwei: {method: va_opd}}\n"


@situation("C001", first=True)
def a_key_is_misspelt_on_the_command_line(place):
    start(place, "train.lrr=1e-5")


@situation("C001")
def a_key_is_misspelt_in_the_file(place):
    start(place, recipe=RECIPE.replace("lr: 1e-4", "lrr: 1e-4"))


@situation("C001", first=True)
def a_text_with_spaces_has_a_misspelt_key(place):
    start(place, f"'data.trian={DATA_FILE}'")


@situation("C001")
def a_wording_has_a_misspelt_key(place):
    start(place, r"'data.temlate={prompt}\nThink & answer.'")


@situation("C001")
def a_boolean_has_a_key_that_takes_a_number(place):
    start(place, "train.lora=true")


@situation("C001")
def a_key_of_another_trainer_has_a_value_that_does_not_fit(place):
    start(place, "train.learning_rate=fast")


@situation("C001")
def a_key_is_like_no_other(place):
    start(place, "zebra.stripes=7")


@situation("C002", first=True)
def a_number_is_a_text(place):
    start(place, "train.lr=abc")


@situation("C002")
def a_number_is_infinite(place):
    start(place, "train.lr=.inf")


@situation("C002")
def a_number_is_in_quotes(place):
    start(place, """train.lr='"1e-5"'""")


@situation("C002")
def a_list_is_a_word(place):
    start(place, "train.freeze=tail")


@situation("C002")
def a_template_lacks_the_question(place):
    start(place, "'data.template=no question here'")


@situation("C002", TEXT="Über & unter")
def half_a_character_is_a_value(place):
    start(place, """'data.system="\\ud83d"'""")


@situation("C002")
def a_group_is_a_number(place):
    start(place, "eval=5")


@situation("C002", VALUE="läufe/neuer lauf")
def the_run_is_missing(place):
    start(place, recipe=RECIPE.replace("run: läufe/erster lauf\n", ""))


@situation("C002", FOLDER_OR_HUB_ID="vistill:student")
def the_student_is_missing(place):
    start(place, recipe=RECIPE.replace("student: {model: 'vistill:student'}\n", ""))


@situation("C002")
def the_lowest_rate_is_above_the_highest(place):
    start(place, "train.schedule.min_lr=1")


@situation("C002")
def a_pattern_is_no_expression(place):
    start(place, "method=grpo 'reward.pattern=(a'")


@situation("C105")
def a_reward_is_misspelt(place):
    plugin = "from vistill.registry import rewards\n@rewards.register('short')\n"
    place.write(
        "mein plugin ß.py",
        plugin + "def short(response, prompt, settings, math):\n    return 0.0\n",
    )
    start(place, "--plugin 'mein plugin ß.py' method=grpo reward.extra.shart=0.5")


@situation("C105")
def a_reward_is_unknown(place):
    start(place, "method=grpo reward.extra.zebra=0.5")


@situation("C105")
def an_engine_is_unknown(place):
    start(place, "rollout.engine=shard")


@situation("C105")
def a_kind_is_misspelt(place):
    start(place)
    place.line = "vistill list veiws"


@situation("C102")
def a_method_is_misspelt(place):
    start(place, "method=minillm")


@situation("C102")
def a_word_to_explain_is_misspelt(place):
    start(place)
    place.line = "vistill explain va-odp"


@situation("C102", FILE_yaml="neu ö/rezept 2.yaml")
def a_recipe_to_write_names_no_method(place):
    start(place)
    place.line = "vistill init 'zebra 7'"


@situation("C101")
def a_recipe_to_write_exists(place):
    start(place)
    place.line = f"vistill init '{RECIPE_FILE}' --student vistill:student --data '{DATA_FILE}'"


@situation("C002")
def a_knob_is_refused_by_its_method(place):
    start(place, "--plugin 'mein plugin ß.py' method=picky picky.size=7")
    place.write("mein plugin ß.py", PICKY)


PICKY = """\
from dataclasses import dataclass
import vistill
from vistill.registry import methods
@methods.register("picky")
@dataclass(frozen=True)
class Picky(vistill.OPD):
    size: int = 1
    def __post_init__(self):
        if self.size != 1:
            raise ValueError("size must be 1")
"""


@situation("C101")
def knobs_belong_to_another_method(place):
    start(place, recipe=RECIPE + "vgs: {merged: false}\n")


@situation("C101", FOLDER_OR_HUB_ID="vistill:teacher")
def a_teacher_is_missing(place):
    start(place, "teacher.model=")


@situation("C103", first=True)
def there_is_one_rollout(place):
    start(place, "rollout.per_prompt=1")


@situation("C103")
def a_stage_has_one_rollout(place):
    stages = "stages: {eins: {method: opd}, zwei: {method: va_opd, rollout: {per_prompt: 1}}}\n"
    start(place, recipe=RECIPE + stages)


@situation("C101")
def a_recipe_with_stages_is_evaluated(place):
    start(place, verb="eval", recipe=STAGES)


@situation("C002")
def there_is_no_such_stage(place):
    start(place, "--stage drei", verb="train", recipe=STAGES)


@situation("C002")
def stages_are_a_list(place):
    start(place, recipe=RECIPE + "stages: [eins]\n")


@situation("C003")
def a_recipe_is_latin_1(place):
    start(place)
    place.write(RECIPE_FILE, "# über\n" + RECIPE.replace("läufe/", "runs/").replace(
        "zeilen ü", "zeilen"), "latin-1")  # fmt: skip
    (place.folder / DATA_FILE).rename(place.folder / "daten 1" / "zeilen.jsonl")
    place.line += " 'data.images=bilder é'"


@situation("C003", first=True)
def a_recipe_is_utf_16(place):
    start(place)
    place.write(RECIPE_FILE, RECIPE, "utf-16")


@situation("C003", first=True)
def a_recipe_has_a_tab(place):
    start(place, recipe=RECIPE.replace("train: {prompts_per_step", "train:\n\t{prompts_per_step"))


@situation("C003")
def a_line_of_the_recipe_is_indented_too_far(place):
    start(place, recipe=RECIPE.replace("\n  images:", "\n   images:"))


@situation("C101")
def knobs_of_another_method_are_on_the_command_line(place):
    start(place, "vgs.gamma=2")


@situation("C003", FILE_yaml="neu/grpo ö.yaml")
def a_recipe_is_a_list(place):
    start(place, recipe="- run\n")


@situation("C003", FILE_yaml="neu/grpo ö.yaml")
def a_recipe_is_broken_toml(place):
    start(place)
    place.write("rezept ö.toml", "run = [")
    place.line = "vistill check 'rezept ö.toml' --fast"


@situation("C004", first=True)
def a_recipe_of_the_folder_is_misspelt(place):
    start(place)
    place.line = "vistill check 'rezpt ä.yaml' --fast"


@situation("C004", ends="M103")
def a_shipped_recipe_is_misspelt(place):
    start(place, rows=[{**r, "boxes": [1, 1, 9, 9]} for r in good_rows()])
    columns = {"response": "response", "boxes": "boxes", "thoughts": "images"}
    named = " ".join(f"data.columns.{key}={name}" for key, name in columns.items())
    data = f"'data.train={DATA_FILE}' 'data.images=bilder é' {named}"
    place.line = f"vistill check every_metod.yaml --fast {data}"


@situation("C004", ends="D102")
def a_recipe_is_like_no_other(place):
    start(place)
    place.line = "vistill check 'neu ß/zebra 7.yaml' --fast"


@situation("C004", FILE_yaml="neu/grpo ö.yaml")
def a_folder_without_a_run_is_a_recipe(place):
    start(place)
    place.line = "vistill check 'bilder é' --fast"


@situation("C004")
def a_run_folder_is_a_recipe(place):
    start(place)
    folder = place.folder / "läufe" / "alter lauf"
    folder.mkdir(parents=True)
    (folder / "recipe.json").write_text(
        '{"run": "läufe/neuer lauf", "method": "va_opd", "student": {"model": "vistill:student"}, '
        '"teacher": {"model": "vistill:teacher"}, "data": {"train": "diagrams"}}'
    )
    place.line = "vistill check 'läufe/alter lauf' --fast"


@situation("C005", first=True)
def a_setting_has_a_space(place):
    start(place, "train.lr 1e-5")


@situation("C005")
def a_setting_has_two_spaces(place):
    start(place, "train.lr = 1e-5")


@situation("C005", first=True)
def a_path_has_spaces_and_no_quotes(place):
    start(place, "data.train=daten 1/zeilen ü.jsonl train.lr=1e-5")


@situation("C005")
def a_path_and_its_key_have_spaces(place):
    start(place, "data.train 'daten 1/zeilen ü.jsonl'")


@situation("C005", **{"KEY=VALUE": "train.lr=1e-5"})
def a_word_is_no_setting(place):
    start(place, "train.lr=1e-5 schnell")


@situation("C005")
def a_setting_has_a_colon(place):
    start(place, "train.lr:1e-5")


@situation("C005")
def a_list_is_not_closed(place):
    start(place, "'train.freeze=[vision'")


@situation("C005")
def quotes_are_not_closed(place):
    start(place, """train.lr="'1e-5''" """)


@situation("C005", VALUE="grpo")
def a_value_has_keys(place):
    start(place, "method.name=grpo")


@situation("C106", FILE_py="mein plugin ß.py")
def a_plugin_is_missing(place):
    place.write("mein plugin ß.py", PICKY)
    start(place, "--plugin 'mein plugni.py'")


@situation("C101")
def pixel_limits_are_exchanged(place):
    start(place, "data.min_pixels=9000 data.max_pixels=4000")


@situation("C101")
def a_step_has_more_prompts_than_rows(place):
    start(place, "train.prompts_per_step=64")


@situation("C002", first=True)
def a_pattern_of_a_stage_is_no_expression(place):
    stages = "stages: {eins: {method: grpo, reward: {pattern: '(a'}}, zwei: {method: va_opd}}\n"
    start(place, recipe=RECIPE + stages)


@situation("C002", first=True)
def a_pattern_has_the_border_of_a_word(place):
    start(place, r"method=grpo 'reward.pattern=<a b>\\\boxed\{'")


@situation("C001", first=True)
def a_group_stands_twice_in_a_key(place):
    start(place, "data.data.min_pixels=100")


@situation("C001")
def a_group_is_misspelt_on_the_command_line(place):
    start(place, "'data.colums.prompt=question'")


@situation("C001", ends="C001")
def a_group_is_misspelt_in_the_file(place):
    start(place, recipe=RECIPE.replace("train: {prompts", "trian: {prompts"))


@situation("C001")
def a_key_of_a_misspelt_group_is_like_no_other(place):
    start(place, "trian.zebra=1e-5")


@situation("C101", first=True)
def pixel_limits_of_the_file_are_exchanged(place):
    limits = "data:\n  min_pixels: 9000\n  max_pixels: 4000"
    start(place, recipe=RECIPE.replace("data:", limits))


@situation("C004", ends="D102")
def a_recipe_without_a_suffix_is_like_no_other(place):
    start(place)
    place.line = "vistill check 'läufe/zebra 7' --fast"


@situation("C004", first=True)
def a_recipe_of_the_folder_has_no_suffix(place):
    start(place)
    place.line = "vistill check 'rezept ä' --fast"


@situation("C004")
def a_run_folder_in_place_of_a_recipe_is_misspelt(place):
    a_run_folder_is_a_recipe(place)
    place.line = "vistill check 'läufe/alter laf' --fast"


@situation("C002")
def a_device_is_misspelt(place):
    start(place, "student.device=gpu")
    place.line = place.line.replace(" --fast", "")


@situation("D102")
def a_stage_names_a_column_of_equal_ids(place):
    stages = "stages: {eins: {method: opd, data: {columns: {id: antwort}}}, zwei: {method: kd}}\n"
    rows = [{**row, "antwort": "1"} for row in good_rows()]
    start(place, recipe=RECIPE + stages, rows=rows)
