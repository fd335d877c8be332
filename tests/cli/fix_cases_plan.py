"""Plans of runs that fit on no GPU or disk, and of models, GPUs and profiles without a shape."""

import json

from fix_cases import situation, start
from fix_cases_models import start_models

LARGE = "student.model=Qwen/Qwen3-VL-2B-Instruct teacher.model=Qwen/Qwen3-VL-8B-Instruct"
DISK = "--disk 9999"


def start_plan(place, rest):
    start(place, rest, verb="plan")


@situation("C130")
def settings_make_the_plan_fit(place):
    start_plan(place, f"{LARGE} rollout.max_new_tokens=6000 --gpu H100 {DISK}")


@situation("C130")
def only_a_larger_gpu_fits(place):
    start_plan(place, f"{LARGE} --gpu 4090 {DISK}")


@situation("C130")
def a_smaller_gpu_fits_with_settings(place):
    start_plan(place, f"{LARGE} train.memory=1 rollout.max_new_tokens=4096 --gpu 4090 {DISK}")


@situation("C130")
def no_gpu_fits_the_student(place):
    lora = "student.train=lora student.lora.rank=3000"
    start_plan(place, f"student.model=Qwen/Qwen3-VL-32B-Instruct {lora} {DISK}")


@situation("C131")
def the_disk_holds_fewer_checkpoints(place):
    start_plan(place, f"{LARGE} --gpu B200 save.keep_best=accuracy eval.every=1 --disk 60")


@situation("C131")
def the_disk_holds_no_checkpoint(place):
    start_plan(place, f"{LARGE} --gpu B200 --disk 10")


@situation("C132")
def a_gpu_is_misspelled(place):
    start_plan(place, "--gpu H10")


@situation("C132")
def a_gpu_is_unknown(place):
    start_plan(place, "--gpu xyz")


@situation("C132")
def a_profile_is_misspelled(place):
    start_plan(place, "--profile 81gb")


@situation("C132")
def a_profile_of_a_run_is_misspelled(place):
    start(place, "--profile 81gb")


@situation("C132")
def a_model_has_no_shape(place):
    start_plan(place, f"teacher.model=owner/other {DISK}")


@situation("C132")
def no_model_needs_the_config(place):
    start_models(place, f"--config 'modelle ö/teacher' {DISK}", "teacher")
    place.line = place.line.replace("vistill check", "vistill plan")


@situation("C132", FOLDER_OR_HUB_ID="vistill:teacher")
def a_config_has_no_sizes(place):
    place.write("modelle ö/leer/config.json", json.dumps({"model_type": "qwen3_vl"}))
    start_plan(place, f"'teacher.model=modelle ö/leer' {DISK}")


@situation("C002")
def there_is_no_such_stage_to_plan(place):
    from fix_cases_recipe import STAGES

    start(place, f"--stage nope {DISK}", verb="plan", recipe=STAGES)
