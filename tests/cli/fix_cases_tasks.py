"""`vistill eval --tasks`, `--suite` and `vistill rescore`: names, options, absent sets, logs."""

import json

from fix_cases import picture, situation, start

SETS = "bänke 1"
SHORT = "eval.max_new_tokens=2 run=läufe/bank"
EVERY = "eval.every=1 eval.max_new_tokens=2"
LOG = "läufe/bank/samples/ai2d.official.jsonl"


def start_tasks(place, rest="--tasks ai2d", data=SETS):
    """A folder with one benchmark of two made rows; the line evaluates it."""
    for number in range(2):
        place.write(f"{SETS}/ai2d/bild {number}.png", picture(number))
    rows = [
        {"question": f"Which is {n}?", "options": ["a leaf", "a root"], "answer": "1",
         "image": f"bild {n}.png"}
        for n in range(2)
    ]  # fmt: skip
    place.write(f"{SETS}/ai2d/data.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    place.line = f"vistill eval vistill:student {rest} {SHORT}"
    if data:
        place.line += f" --data '{data}'"


def start_rescore(place, rest=""):
    """A log of samples; the line judges it again."""
    start_tasks(place)
    assert place.type(place.line).error is None
    place.line = f"vistill rescore {LOG} {rest}".rstrip()


@situation("C105", first=True)
def a_benchmark_is_misspelt(place):
    start_tasks(place, "--tasks ai2,ai2d")


@situation("C105")
def a_suite_is_misspelt(place):
    start_tasks(place, "--suite vaopd")


@situation("C105")
def a_protocol_is_misspelt(place):
    start_tasks(place, "--tasks ai2d --protocol offical")


@situation("D102", FOLDER=SETS)
def a_named_benchmark_is_not_in_the_folder(place):
    start_tasks(place, data="leer")


@situation("C101")
def a_greedy_protocol_gets_samples(place):
    start_tasks(place, "--tasks ai2d --samples 2")


@situation("C101")
def a_sampling_protocol_gets_temperature_zero(place):
    start_tasks(place, "--tasks ai2d --protocol va_opd --samples 2 eval.temperature=0")


@situation("C101")
def an_option_of_benchmarks_without_benchmarks(place):
    start_tasks(place, "--limit 2")


@situation("C101")
def tasks_and_suite_together(place):
    start_tasks(place, "--tasks ai2d --suite va_opd")


@situation("C203")
def the_folder_has_samples_of_other_settings(place):
    start_tasks(place)
    assert place.type(place.line).error is None
    place.line = place.line.replace("max_new_tokens=2", "max_new_tokens=3")


@situation("C002")
def the_commitment_of_a_rescore_is_misspelt(place):
    start_rescore(place, "--take lats")


@situation("C105")
def the_checker_of_a_rescore_is_misspelt(place):
    start_rescore(place, "--checker chioce")


@situation("S608", FOLDER="neu")
def the_log_of_a_rescore_exists(place):
    start_rescore(place, "--out läufe/bank/samples")


@situation("C105")
def a_reducer_is_misspelt(place):
    start_tasks(place, "--tasks ai2d --protocol va_opd --samples 2 --reduce pas@k")


@situation("C101")
def a_reducer_gets_too_few_samples(place):
    start_tasks(place, "--tasks ai2d --reduce majority")


@situation("C105")
def a_reducer_of_a_rescore_is_misspelt(place):
    start_rescore(place, "--reduce majorty")


@situation("C101")
def a_reducer_of_a_rescore_gets_too_few_samples(place):
    start_rescore(place, "--reduce pass@4")


@situation("C101")
def signals_are_asked_of_a_server(place):
    server = "rollout.engine=server rollout.server.url=http://127.0.0.1:9"
    start_tasks(place, f"--tasks ai2d {server} eval.signals=true")


@situation("C101")
def a_model_is_named_twice(place):
    start_tasks(place, "vistill:student --tasks ai2d")


@situation("C105")
def a_benchmark_of_a_recipe_is_misspelt(place):
    start(place, verb="train")
    train = place.line
    start_tasks(place)
    place.line = f"{train} 'eval.tasks=[ai2]' 'eval.task_data={SETS}' {EVERY}"


@situation("D102", FOLDER=SETS)
def a_benchmark_of_a_recipe_is_not_in_the_folder(place):
    start(place, verb="train")
    train = place.line
    start_tasks(place)
    place.line = f"{train} 'eval.tasks=[ai2d]' eval.task_data=leer {EVERY}"
