"""Run folders: resumed with another recipe, damaged, used twice, replayed, evaluated."""

import fcntl
import json
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace

from fix_cases import (
    ASSETS,
    DATA_FILE,
    RECIPE,
    RECIPE_FILE,
    good_rows,
    situation,
    start,
    write_rows,
)
from fix_shell import Place

RUN = "läufe/erster lauf"
LONGER = "train.steps=2 --accept train.steps"


@cache
def trained():
    """A folder with a run of one step."""
    place = Place(Path(tempfile.mkdtemp(prefix="trained")))
    start(place, verb="train")
    outcome = place.type(place.line)
    assert outcome.error is None, outcome.error
    return place.folder


def start_trained(place, rest="", line=""):
    """A folder with a run, and a command behind it."""
    shutil.copytree(trained(), place.folder, dirs_exist_ok=True)
    start(place, rest, verb="train")
    place.line = line or place.line
    return place.folder / RUN


def change_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@situation("C201")
def a_run_continues_with_another_rate(place):
    start_trained(place, "train.lr=5e-5")


@situation("C201")
def a_run_continues_with_another_temperature(place):
    start_trained(place, "rollout.temperature=0.9")


@situation("C201")
def a_run_is_evaluated_by_its_recipe(place):
    start_trained(place, line=f"vistill eval '{RECIPE_FILE}'")


@situation("C201")
def a_run_began_with_an_old_warmup(place):
    folder = start_trained(place)
    lock = json.loads((folder / "run.lock.json").read_text())
    lock["recipe"]["train"]["steps"] = 2
    change_json(folder / "run.lock.json", format=1, recipe=lock["recipe"])
    place.line += " train.steps=2"


PLUGIN = """\
from dataclasses import dataclass
import vistill
from vistill.registry import methods
@methods.register("own")
@dataclass(frozen=True)
class Own(vistill.OPD):
    pass
"""


def start_with_plugin(place):
    """A run of a method of a plug-in."""
    start(place, "--plugin 'mein plugin ß.py' method=own", verb="train")
    place.write("mein plugin ß.py", PLUGIN)
    outcome = place.type(place.line)
    assert outcome.error is None, outcome.error


@situation("C201")
def a_plugin_changed(place):
    start_with_plugin(place)
    place.write("mein plugin ß.py", PLUGIN + "# other\n")


@situation("C102")
def a_run_continues_without_its_plugin(place):
    start_with_plugin(place)
    place.line = f"vistill train '{RECIPE_FILE}' method=own"


@situation("C102")
def a_run_is_replayed_without_its_plugin(place):
    start_with_plugin(place)
    place.line = f"vistill replay '{RUN}'"


@situation("S601")
def the_run_is_a_file(place):
    start(place, "run=README", verb="train")
    place.write("README", "")


@situation("S601", OTHER_FOLDER="läufe/zweiter lauf")
def the_disk_is_full(place):
    start(place, verb="train")
    place.once["VISTILL_FAULT"] = "save.begin:enospc"


@situation("C131", OTHER_FOLDER="läufe/zweiter lauf")
def the_disk_holds_no_checkpoint(place):
    start(place, verb="train")
    place.patches.append(
        lambda patch: patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    )


@situation("S601")
def the_disk_fills_up_before_a_save(place):
    start(place, verb="train")
    free = iter([10**12])
    place.patches.append(
        lambda patch: patch.setattr(
            shutil, "disk_usage", lambda path: SimpleNamespace(free=next(free, 0))
        )
    )


@situation("S602", OTHER_FOLDER="läufe/zweiter lauf")
def another_process_uses_the_run(place):
    folder = start_trained(place)
    place.owner = os.open(folder / ".owner", os.O_RDWR | os.O_CREAT)
    fcntl.flock(place.owner, fcntl.LOCK_EX | fcntl.LOCK_NB)


@situation("S604")
def every_checkpoint_is_damaged(place):
    folder = start_trained(place, LONGER)
    for file in folder.glob("checkpoint-*/*.json"):
        file.write_text("{")
    (place.folder / f"{RUN}-2").mkdir()


@situation("S604")
def the_rows_of_a_run_are_not_stored(place):
    (start_trained(place, LONGER) / "rows.json").unlink()


@situation("S605")
def a_run_to_report_is_misspelt(place):
    start_trained(place, line="vistill report 'läufe/erster laf'")


@situation("S605", RUN_FOLDER=RUN)
def a_run_to_report_is_like_no_other(place):
    start_trained(place, line="vistill report zebra")


@situation("S605", RUN_FOLDER=RUN)
def a_folder_to_report_holds_no_run(place):
    start_trained(place, line="vistill report 'bilder é'")


@situation("S605", RUN_FOLDER=RUN)
def a_folder_to_replay_holds_no_recipe(place):
    start_trained(place, line="vistill replay 'bilder é'")


@situation("S605")
def a_stage_is_to_be_replayed(place):
    folder = start_trained(place, line="vistill replay läufe")
    assert folder.is_dir()


@situation("S605")
def a_step_to_replay_was_never_taken(place):
    start_trained(place, line=f"vistill replay '{RUN}' --step 99")


@situation("S605")
def a_line_of_a_log_is_damaged(place):
    file = start_trained(place, line=f"vistill report '{RUN}'") / "metrics.jsonl"
    file.write_text("{bad\n" + file.read_text())


@situation("S605", FILE_jsonl=DATA_FILE)
def a_run_does_not_name_its_data(place):
    line = f"vistill probe '{RUN}' data.diagrams.eval=4 data.diagrams.train=4"
    folder = start_trained(place, line=line)
    (folder / "recipe.json").unlink()


@situation("S605", VALUE="Über & unter")
def a_setting_of_a_run_is_masked(place):
    folder = start_trained(place, line=f"vistill probe '{RUN}'")
    change_json(folder / "run.lock.json", masked=["data.system"])


@situation("S605", first=True)
def the_student_is_a_run_that_is_not_finished(place):
    """The fix is the command that started it."""
    folder = start_trained(place, "run=läufe/neu 'student.model=läufe/erster lauf'")
    (folder / "result.json").unlink()


@situation("S605", RECIPE=RECIPE_FILE)
def the_recipe_of_an_unfinished_run_was_elsewhere(place):
    folder = start_trained(place, "run=läufe/neu 'student.model=läufe/erster lauf'")
    (folder / "result.json").unlink()
    change_json(folder / "run.lock.json", command="vistill train anderswo.yaml")


@situation("S605")
def an_unfinished_run_was_started_in_python(place):
    folder = start_trained(place, "run=läufe/neu 'student.model=läufe/erster lauf'")
    (folder / "result.json").unlink()
    change_json(folder / "run.lock.json", command="mein.py")
    place.write(f"{RUN}/data/train.jsonl", "")


@situation("S606")
def a_file_of_a_run_is_damaged(place):
    (start_trained(place) / "run.lock.json").write_text("{")


@situation("D307")
def the_rows_of_a_run_changed(place):
    start_trained(place, LONGER)
    write_rows(place, [{**row, "question": row["question"] + "!"} for row in good_rows()])


@situation("D302", COLUMN="antwort é", TARGET=RECIPE_FILE)
def nothing_can_be_judged(place):
    rows = [{**row, "answer": None, "antwort é": row["answer"]} for row in good_rows()]
    start(
        place,
        verb="eval",
        rows=rows,
        recipe=RECIPE.replace("eval: {every: 0}", "eval: {every: 0, limit: 2}"),
    )


@situation("M103")
def a_run_to_evaluate_is_misspelt(place):
    start_trained(place, line="vistill probe 'läufe/erster laf'")


@situation("M103", TARGET=RUN)
def a_target_is_like_no_other(place):
    start_trained(place, line="vistill probe 'zebra 7'")


@situation("R401")
def every_response_is_cut_off(place):
    start(place, "rollout.max_new_tokens=12 train.steps=4", verb="train")


@situation("R501", NEW="läufe/zweiter lauf", SMALLER="4")
def the_memory_is_full(place):
    start(place, verb="train")
    place.once["VISTILL_FAULT"] = "score.begin:oom@every"


@situation("R501", NEW="läufe/zweiter lauf", SMALLER="4")
def the_memory_is_full_in_the_backward_pass(place):
    start(place, verb="train")
    place.once["VISTILL_FAULT"] = "learn.part:oom@every"


@situation("N701")
def nothing_is_finite(place):
    start(place, "train.steps=3", verb="train")
    place.once["VISTILL_FAULT"] = "learn.loss:nan@every"


@situation("S605", first=True)
def the_second_run_to_report_is_misspelt(place):
    folder = start_trained(place, line=f"vistill report '{RUN}' 'läufe/zweiter laf'")
    shutil.copytree(folder, folder.with_name("zweiter lauf"))


@situation("S605", RUN_FOLDER=RUN)
def the_second_run_to_report_is_the_first_misspelt(place):
    start_trained(place, line=f"vistill report '{RUN}' 'läufe/erster laf'")


@situation("S605")
def a_folder_to_report_holds_runs(place):
    start_trained(place, line="vistill report läufe")


@situation("M103")
def a_run_to_evaluate_with_settings_is_misspelt(place):
    start_trained(place, line="vistill eval 'läufe/erster laf' eval.limit=2 --json")


@situation("D102", first=True)
def a_run_continues_with_a_misspelt_file(place):
    start_trained(place, "'data.train=daten 1/zeiln ü.jsonl'")


@situation("D102")
def a_run_continues_with_a_misspelt_file_of_evaluation(place):
    start_trained(place, "'data.eval=daten 1/zeiln ü.jsonl' data.overlap=allow")


@situation("M103")
def a_run_continues_with_a_misspelt_model(place):
    start_trained(place, "'teacher.model=modelle ö/teacehr'")
    shutil.copytree(ASSETS / "teacher", place.folder / "modelle ö/teacher")


def start_with_positions(place, count):
    """A run whose responses are all cut off, by models with few positions."""
    start(place, "'student.model=modelle ö/student' 'teacher.model=modelle ö/teacher' "
          "rollout.max_new_tokens=12 train.steps=4", verb="train")  # fmt: skip
    for name in ("student", "teacher"):
        folder = place.folder / "modelle ö" / name
        shutil.copytree(ASSETS / name, folder)
        tree = json.loads((folder / "config.json").read_text())
        tree["text_config"]["max_position_embeddings"] = count
        (folder / "config.json").write_text(json.dumps(tree))


@situation("R401")
def every_response_is_cut_off_at_the_last_position(place):
    start_with_positions(place, 41)


@situation("S601", first=True)
def a_run_folder_cannot_be_made(place):
    """No user can create a folder in /proc, root neither."""
    start(place, "run=/proc/nowhere/run")
