"""Models that are missing, do not match, or do not fit; and memory, devices and frozen parts."""

import json
import shutil
import sys
import warnings

from fix_cases import ASSETS, DATA_FILE, good_rows, picture, situation, start, write_rows

TEACHER = "vistill:teacher"


def start_models(place, rest, *names, **edits):
    """A folder with copies of the shipped models; `edits` change the JSON of the last one."""
    start(place, rest)
    place.line = place.line.replace(" --fast", "", 1)
    for name in names:
        source = ASSETS / (name if (ASSETS / name).is_dir() else "teacher")
        shutil.copytree(source, place.folder / "modelle ö" / name)
    for file, changes in edits.items():
        path = place.folder / "modelle ö" / names[-1] / f"{file}.json"
        tree = json.loads(path.read_text())
        for key, value in changes.items():
            group, _, last = key.rpartition("__")
            (tree[group] if group else tree)[last] = value
        path.write_text(json.dumps(tree))


LARGE = {"size": {"shortest_edge": 4096, "longest_edge": 65536}}
PATCH_16 = {"config": {"vision_config__patch_size": 16}, "preprocessor_config": {"patch_size": 16}}


def other_tokenizer(place, name):
    from vistill.models.tiny import train_tokenizer

    text = ["quite different words stand here, one behind the other, and more of them"] * 50
    words = [f"{line} {n}" for n, line in enumerate(text)]
    train_tokenizer(words, 300).save_pretrained(place.folder / "modelle ö" / name)


def alone(place):
    """The student in a folder of its own."""
    shutil.copytree(ASSETS / "student", place.folder / "allein ö" / "student")
    place.line += " 'student.model=allein ö/student'"


@situation("M101")
def vocabularies_differ(place):
    start_models(place, "'teacher.model=modelle ö/fremd'", "student", "teacher", "fremd")
    other_tokenizer(place, "fremd")


@situation("M101", FOLDER_OR_HUB_ID=TEACHER)
def vocabularies_differ_and_no_other_model_is_near(place):
    start_models(place, "'teacher.model=modelle ö/fremd'", "fremd")
    alone(place)
    other_tokenizer(place, "fremd")


@situation("M102")
def patches_differ(place):
    start_models(
        place, "'teacher.model=modelle ö/fremd'", "student", "teacher", "fremd", **PATCH_16
    )


@situation("M102", FOLDER_OR_HUB_ID=TEACHER)
def patches_differ_and_no_other_model_is_near(place):
    start_models(place, "'teacher.model=modelle ö/fremd'", "fremd", **PATCH_16)
    alone(place)


@situation("M102")
def image_limits_differ(place):
    start_models(place, "'teacher.model=modelle ö/fremd'", "fremd", preprocessor_config=LARGE)


@situation("M103", first=True)
def a_model_is_misspelt(place):
    start_models(place, "'teacher.model=modelle ö/teacehr' --fast", "teacher")


@situation("M103")
def an_included_model_is_misspelt(place):
    start_models(place, "teacher.model=vistill:techer")


@situation("M103", FOLDER_OR_HUB_ID=TEACHER)
def a_model_is_like_no_other(place):
    start_models(place, "'teacher.model=zebra 7' --fast")


@situation("M103", FOLDER=TEACHER)
def a_model_of_the_hub_is_not_in_the_cache(place):
    start_models(place, "teacher.model=Qwen/Qwen3-VL-8B-Instruct")


@situation("M103", FOLDER=TEACHER)
def the_hub_does_not_answer(place):
    start_models(place, "teacher.model=Qwen/Qwen3-VL-8B-Instruct")
    place.patches.append(hub_without_answer)


def hub_without_answer(patch):
    """A hub at a port that nothing listens on."""
    warnings.filterwarnings("ignore", message=".*does not answer")
    patch.delenv("HF_HUB_OFFLINE", raising=False)
    patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    patch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")


def online(patch):
    """A hub that may be asked."""
    patch.delenv("HF_HUB_OFFLINE", raising=False)
    patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@situation("M103", FOLDER_OR_HUB_ID=TEACHER)
def a_model_is_not_on_the_hub(place):
    from vistill.runs.model_not_found import model_not_found_error

    start_models(place, "teacher.model=owner/zebra")
    place.patches.append(online)
    place.raises = lambda place: model_not_found_error("owner/zebra", "teacher")


@situation("M104")
def a_configuration_is_not_valid(place):
    start_models(place, "'teacher.model=modelle ö/fremd'", "fremd", config={"model_type": "clip"})


@situation("M105", FOLDER_OR_HUB_ID=TEACHER)
def a_family_has_no_adapter(place):
    start_models(place, "'teacher.model=modelle ö/fremd' --fast", "fremd",
                 config={"model_type": "mllama"})  # fmt: skip


@situation("C101")
def responses_exceed_the_positions(place):
    start_models(place, "rollout.max_new_tokens=9000")


@situation("C101")
def an_image_exceeds_the_positions(place):
    import io

    from PIL import Image

    start_models(place, "'student.model=modelle ö/student' 'teacher.model=modelle ö/teacher'",
                 "teacher", "student",
                 config={"text_config__max_position_embeddings": 120})  # fmt: skip
    limits = {"size": {"shortest_edge": 256, "longest_edge": 10**7}}
    for name in ("student", "teacher"):
        file = place.folder / f"modelle ö/{name}/preprocessor_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **limits}))
    out = io.BytesIO()
    Image.effect_noise((1600, 16), 80).save(out, "PNG")
    for number in range(6):
        place.write(f"bilder é/bild {number}.png", out.getvalue())


@situation("C101")
def a_question_exceeds_the_positions(place):
    start_models(place, "'student.model=modelle ö/student'", "student",
                 config={"text_config__max_position_embeddings": 120})  # fmt: skip
    write_rows(place, [{**r, "question": r["question"] * 30} for r in good_rows()])


@situation("C101")
def there_is_no_such_device(place):
    start_models(place, "student.device=cuda")
    place.once["CUDA_VISIBLE_DEVICES"] = ""


@situation("C104")
def the_memory_budget_is_tiny(place):
    start(place, "train.memory=1e-5")
    place.line = place.line.replace(" --fast", "")


@situation("C104")
def the_memory_holds_one_prompt_with_checkpointing_only(place):
    start(place, "train.memory=0.0013 rollout.max_new_tokens=60")
    place.line = place.line.replace(" --fast", "")


@situation("C110")
def everything_is_frozen(place):
    start(place, "'train.freeze=[vision,language,head]'", verb="train")


@situation("C002")
def steering_is_merged_with_a_clamp(place):
    start(place, "method=vgs vgs.merged=true vgs.eta=dynamic", verb="train")


@situation("D301", COLUMN="antwort é")
def a_gold_answer_is_refused_by_its_checker(place):
    rows = [{**r, "answer": "how so?", "antwort é": r["answer"]} for r in good_rows()]
    start(place, "method=grpo teacher.model= reward.checker=number eval.checker=number", rows=rows)
    place.line = place.line.replace(" --fast", "")


@situation("D301", COLUMN="antwort é")
def some_gold_answers_are_refused_by_their_checker(place):
    rows = [{**r, "antwort é": r["answer"]} for r in good_rows()]
    rows[0]["answer"] = "how so?"
    start(place, "method=grpo teacher.model= reward.checker=number eval.checker=number", rows=rows)
    place.line = place.line.replace(" --fast", "")


@situation("D304")
def diagrams_have_no_thoughts(place):
    start(place, "method=visual_opsd visual_opsd.gate=false data.train=diagrams "
          "data.diagrams.train=8 data.diagrams.eval=0")  # fmt: skip
    place.line = place.line.replace(" --fast", "")


@situation("D309")
def all_thoughts_are_the_same(place):
    rows = [{**r, "thoughts": ["bild 1.png"]} for r in good_rows()]
    start(place, "method=visual_opsd visual_opsd.gate=false visual_opsd.thoughts=mismatched "
          "data.columns.thoughts=thoughts", rows=rows)  # fmt: skip
    place.line = place.line.replace(" --fast", "")


@situation("E301")
def a_package_for_parquet_is_missing(place):
    start(place, "'data.train=daten 1/alt ü.parquet'")
    place.write("daten 1/alt ü.parquet", b"PAR1" + bytes(64))
    place.patches.append(lambda patch: patch.setitem(sys.modules, "pyarrow", None))


@situation("D102", FILE_jsonl=DATA_FILE)
def a_data_set_is_not_on_the_hub(place):
    from vistill.data.sources import unreadable_hub_data_error

    start(place, "data.train=hf:owner/name")
    place.patches.append(online)
    place.raises = lambda place: unreadable_hub_data_error("owner/name", OSError("404"))


@situation("D201", FOLDER="alle ß")
def the_first_rows_are_all_bad(place):
    place.write("alle ß/weg.png", picture(1))
    rows = [{**row, "bild": ["weg.png"]} for row in good_rows() * 4]
    start(place, "data.columns.images=bild data.overlap=allow", rows=rows)


@situation("M103", FOLDER_OR_HUB_ID=TEACHER)
def a_teacher_is_an_adapter(place):
    start_models(place, "'teacher.model=modelle ö/adapter' --fast")
    place.write("modelle ö/adapter/adapter_config.json", "{}")


@situation("M108")
def a_teacher_has_no_tokenizer(place):
    start_models(place, "'teacher.model=modelle ö/teacher'", "teacher")
    (place.folder / "modelle ö/teacher/tokenizer.json").unlink()


@situation("C101")
def tf32_on_a_cpu(place):
    start(place, "train.head_precision=tf32")
    place.line = place.line.replace(" --fast", "", 1)


@situation("C101")
def tf32_while_the_teacher_reads_next_to_the_rollouts(place):
    start(place, "train.head_precision=tf32 train.overlap=true")


@situation("C101")
def a_cuda_graph_and_bf16_weights_for_transformers_generate(place):
    start(place, "rollout.engine=hf rollout.cuda_graph=true rollout.weights=bf16")


@situation("C101")
def a_cuda_graph_while_the_teacher_reads_next_to_the_rollouts(place):
    start(place, "rollout.cuda_graph=true train.overlap=true")
