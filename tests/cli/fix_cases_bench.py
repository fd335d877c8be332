"""Judges, failed samples, `vistill harness` and `vistill export --inspect`."""

from fix_cases import situation
from fix_cases_tasks import LOG, start_rescore, start_tasks

JUDGE = "eval.judge=http://127.0.0.1:9/v1 eval.judge_model=richter"
HARNESS = "vistill harness lmms-eval owner/model --to probe"


@situation("C101")
def no_benchmark_is_judged_by_a_model(place):
    start_tasks(place, f"--tasks ai2d {JUDGE}")


@situation("C105")
def a_code_of_failed_samples_is_misspelt(place):
    start_tasks(place, "--tasks ai2d --retry-errors R43")


@situation("C101")
def a_checker_and_a_judge_together(place):
    start_rescore(place, "--checker choice --judge http://127.0.0.1:9/v1 --judge-model richter")


@situation("S608", FOLDER="neu")
def the_log_of_inspect_exists(place):
    start_rescore(place)
    place.line = f"vistill export {LOG} --inspect --to alt"
    assert place.type(place.line).error is None


@situation("C105")
def a_harness_is_misspelt(place):
    place.line = "vistill harness lmms owner/model --to probe"


@situation("C101")
def a_harness_has_no_task_for_a_benchmark(place):
    place.line = f"{HARNESS} --tasks vsp_maze,ai2d"


@situation("C101")
def a_harness_scores_one_of_several_samples(place):
    place.line = f"{HARNESS} --tasks wemath,ai2d --protocol va_opd"


@situation("C101")
def a_harness_scores_one_of_several_samples_of_every_benchmark(place):
    place.line = f"{HARNESS} --tasks wemath --protocol va_opd"


@situation("C101")
def a_greedy_protocol_of_a_harness_gets_samples(place):
    place.line = f"{HARNESS} --tasks ai2d --samples 2"


@situation("S608", FOLDER="neu")
def the_folder_of_a_harness_exists(place):
    place.line = f"{HARNESS} --tasks ai2d"
    assert place.type(place.line).error is None


@situation("S605")
def a_log_has_no_verdict_of_a_rule(place):
    """As a version wrote it that did not have the rule."""
    start_rescore(place)
    log = place.folder / LOG
    log.write_text(log.read_text().replace('"choice": {', '"other": {'))
    place.line = "vistill export läufe/bank --inspect --to viewer"
