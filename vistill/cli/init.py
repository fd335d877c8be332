"""`vistill init`: a commented recipe, filled in from the method and the first rows of the data."""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from vistill.cli.data_facts import PROMPTS_PER_STEP, DataFacts, facts_of
from vistill.config import build_recipe, method_schemas, parse_text
from vistill.data.set_settings import valid_name, with_keys_of_set
from vistill.data.sources import DATA_SUFFIXES, files_of
from vistill.errors import ConfigError, DataError, closest, quote_command, quote_path
from vistill.redaction import mask_secrets
from vistill.registry import plugin_words
from vistill.runs.model_families import has_token_limit
from vistill.schema import recipe_schema

#: The schema that an editor completes and validates by. It lies next to the recipe, so that both
#: may be moved, shared and opened offline, and it knows the methods that there were.
SCHEMA_NAME = "vistill.schema.json"

TEMPLATE = """\
# yaml-language-server: $schema={schema}
# made by: {command}
# every key can also be given on the command line: {train} train.lr=2e-6
# what a key means: vistill explain train.lr
version: 1
run: {run}                    # everything is written below this folder
seed: 42

student:
  model: {student}
{teacher_block}
method: {method}                    # vistill explain {method}
{knobs}
data:
{data_block}  on_bad_row: quarantine            # quarantine | stop
  max_image_tokens: {limit}            # of one image; {limit_note}

rollout:
  per_prompt: 4                     # K sibling responses
  temperature: 0.7                  # scores are always taken at temperature 1
  top_p: 0.95
  max_new_tokens: 4096              # as in VA-OPD; the default is 1024

train:
  prompts_per_step: {per_step}              # {per_step} x 4 = {responses} responses per update
  epochs: 5
  lr: 1.0e-6
  schedule: {{kind: cosine, warmup: 0.05}}
  weight_decay: 0.1
  clip_norm: 1.0
  micro_batch: auto                 # only speed and memory depend on it, never the update

save: {{every: 50, keep: 2, keep_best: {keep_best}}}
eval: {{every: {eval_every}, limit: 200, max_new_tokens: 4096, checker: {checker}}}
"""
DATA = """\
  train: {data}                     # .jsonl | hf:owner/name[split] | .parquet | diagrams
  eval: {eval}                          # evaluation rows of their own; or hold training rows out:
  holdout: {holdout}                        # rows set aside for evaluation
  images: ""                        # folder of the image paths; empty: the data file's folder
  columns: {columns}
  template: {template}              # {{choices}} is filled in too
{index_base}  text_only: error                  # error | drop | plain: rows without a picture
"""
DATA_SET = """\
    {name}:
      train: {data}
      weight: rows  # or a number: its share relative to the other sets
      eval: {eval}
      holdout: {holdout}
      columns: {columns}
      template: {template}
{index_base}{text_only}{checker}"""
REWARD = """\
reward:                             # from the answer checkers
  accuracy: 1.0                     # of a right answer
  format: 0.0                       # of a response that matches the pattern
"""
JUDGED = """\
reward:                             # what judges the responses that the method keeps or rewards
"""


def knobs_block(method: str, schema: Mapping[str, Any]) -> str:
    """Every knob of the method with its default, in the file's own words."""
    lines = [f"{method}:"] if schema["properties"] else []
    for knob, info in schema["properties"].items():
        setting = f"  {knob}: {json.dumps(info['default'])}"
        lines.append(f"{setting:<34}  # {info['description']}")
    return "\n".join(lines) + "\n" if lines else ""


def write_recipe(name: str, student: str, teacher: str, data: str | Sequence[str]) -> str:
    """Write `NAME.yaml` and the schema next to it; say what was found and what to do next.

    An existing recipe is never overwritten. The schema is, because it is generated.

    Args:
        name: of the method, or of the file.
        student: the model to train.
        teacher: the model to learn from.
        data: the source of the rows, or several that are mixed.

    Raises:
        ConfigError: C101, the recipe exists; C102, the name names no method.
    """
    sources = [data] if isinstance(data, str) else list(data)
    method, notes = method_named(name)
    stem = Path(name).stem
    file = Path(
        name if name.endswith(".yaml") else f"{method if notes else stem.replace('-', '_')}.yaml"
    )
    options = ("--student", student, "--teacher", teacher)
    of_data = [word for source in sources for word in ("--data", source)]
    if file.exists():
        raise existing_recipe_error(file, *options, *of_data)
    for source in sources:
        check_no_folder(name, options, sources, source)
    schema, all_facts = method_schemas()[method], [facts_of(source) for source in sources]
    if len(sources) > 1:
        all_facts = list(map(facts_of_set, all_facts, names_of_sets(sources)))
    asks_teacher = schema["x-needs-teacher"] or schema["x-writer"] == "teacher"
    evaluated = any(facts.judged for facts in all_facts) or "diagrams" in sources
    per_step = min(PROMPTS_PER_STEP, sum(facts.prompts_per_step for facts in all_facts))
    checker = all_facts[0].answers.checker if len(all_facts) == 1 else "auto"
    text = TEMPLATE.format(
        schema=SCHEMA_NAME,
        command=one_line(quote_command("vistill", "init", name, *options, *of_data)),
        student=plain(student),
        train=one_line(quote_command("vistill", "train", file)),
        run=plain(f"runs/{file.stem}"),
        method=method,
        teacher_block=f"teacher:\n  model: {plain(teacher)}\n" if asks_teacher else "",
        knobs=knobs_block(method, schema) + reward_block(schema, checker),
        data_block=data_block(sources, all_facts, schema),
        **image_limit(student),
        per_step=per_step,
        responses=4 * per_step,
        keep_best="accuracy" if evaluated else "none",
        eval_every=50 if evaluated else 0,
        checker=checker,
    )
    text = "\n".join(aligned(line) for line in text.splitlines()) + "\n"
    build_recipe(parse_text(text, file), text, file.name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(mask_secrets(text), encoding="utf-8")
    write_schema(file.parent / SCHEMA_NAME)
    notes += needed_columns(schema, sources, all_facts)
    if schema["x-writer"] == "data" and any(facts.answers.instruction for facts in all_facts):
        notes.append("data.template asks for no form of the answer: the responses are in the data")
    return summary(file, sources, notes, all_facts)


def data_block(
    sources: Sequence[str], all_facts: Sequence[DataFacts], schema: Mapping[str, Any]
) -> str:
    """The keys of `data`: of one source, or of several data sets."""
    filled = [
        {
            "data": plain(source),
            "eval": plain(facts.eval),
            "holdout": facts.holdout,
            "columns": columns_text(facts, schema),
            "template": json.dumps(asking_template(facts, schema), ensure_ascii=False),
        }
        for source, facts in zip(sources, all_facts, strict=True)
    ]
    base = "index_base: 1  # gold answers count the options from 1\n"
    if len(all_facts) == 1:
        return DATA.format(**filled[0], index_base=f"  {base}" if all_facts[0].index_base else "")
    sets = [
        DATA_SET.format(
            name=name,
            **values,
            index_base=f"      {base}" if facts.index_base else "",
            text_only="" if facts.columns.get("images") else "      text_only: plain\n",
            checker=f"      checker: {facts.answers.checker}  # vistill list checkers\n"
            if facts.answers.checker != "auto"
            else "",
        )
        for name, values, facts in zip(names_of_sets(sources), filled, all_facts, strict=True)
    ]
    head = "  sets:  # mixed; what a set does not name is that of data\n"
    return f"{head}{''.join(sets)}  text_only: error  # error | drop | plain: of every set\n"


def facts_of_set(facts: DataFacts, name: str) -> DataFacts:
    """The facts of a source in words of its data set."""
    notes = [with_keys_of_set(note, name) for note in facts.notes if "prompts_per_step" not in note]
    return replace(facts, fix=with_keys_of_set(facts.fix, name), notes=notes)


def names_of_sets(sources: Sequence[str]) -> list[str]:
    """A name for each source, from its file or its name on the hub; no name twice."""
    names: list[str] = []
    for source in sources:
        stem = re.sub(r"^hf:|\[.*\]$", "", source).rpartition("/")[2].partition(".")[0]
        stem = valid_name(stem, "data")
        numbered = (f"{stem}_{n}" for n in itertools.count(2))
        names.append(stem if stem not in names else next(n for n in numbered if n not in names))
    return names


def image_limit(student: str) -> dict[str, str]:
    """`data.max_image_tokens` for a student, with its comment; null where the family has none."""
    file = Path(student) / "config.json"
    config: Any = {}
    if file.is_file():
        with suppress(ValueError):  # `vistill check` says what is wrong with the file
            config = json.loads(file.read_text(encoding="utf-8"))
    if isinstance(config, dict) and config and not has_token_limit(config):
        note = f"{config.get('model_type')} has no setting that makes it smaller"
        return {"limit": "null", "limit_note": note}
    return {"limit": "1024", "limit_note": "Qwen3-VL alone would take up to 16,384"}


def check_no_folder(name: str, options: Sequence[str], sources: Sequence[str], data: str) -> None:
    """D102 for data that are a folder, or that have the name of one that does not exist.

    A file that does not exist yet may be written after its recipe.
    """
    path = Path(data)
    may_come = path.suffix and not data.endswith("/") and not path.is_dir()
    if may_come or data == "diagrams" or data.startswith("hf:") or path.is_file():
        return
    try:
        files_of(data)
    except DataError as error:
        files = data_files_in(path)
        command = quote_command("vistill", "init", name, *options, *plugin_words())
        file = quote_path(files[0]) if files else "FILE"
        right = [file if source == data else quote_path(Path(source)) for source in sources]
        error.fix = " ".join([command, *(f"--data {source}" for source in right)])
        error.args = (error.render(),)
        raise


def data_files_in(folder: Path) -> list[Path]:
    """Files of a folder that may hold rows, those for training first."""
    files = sorted(folder.iterdir())[:5000] if folder.is_dir() else []
    named = [file for file in files if file.suffix.lower() in DATA_SUFFIXES and file.is_file()]
    return sorted(named, key=lambda file: "train" not in file.name.lower())


def reward_block(schema: Mapping[str, Any], checker: str) -> str:
    """The group `reward` of a method that rewards responses, or keeps correct ones."""
    by_knob = [facts for values in schema["x-by-knob"].values() for facts in values.values()]
    judges = schema["x-answers"] or any(facts.get("x-answers") for facts in by_knob)
    named = f"  checker: {checker}  # vistill list checkers\n"
    return (REWARD if "reward" in schema["x-needs"] else JUDGED) + named if judges else ""


def asking_template(facts: DataFacts, schema: Mapping[str, Any]) -> str:
    """The wording of the question, with the sentence that asks for a form of the answer.

    A method that learns the responses of the data learns their form: no sentence is added.
    """
    sentence = "" if schema["x-writer"] == "data" else facts.answers.instruction
    return f"{facts.template}\n{sentence}" if sentence else facts.template


def one_line(command: str) -> str:
    """A command as a comment: without line breaks and other control characters."""
    return "".join(sign if sign.isprintable() else " " for sign in command)


def existing_recipe_error(file: Path, *options: str) -> ConfigError:
    """C101 with the command that writes the same recipe into another file."""
    names = (file.with_name(f"{file.stem}-{number}.yaml") for number in itertools.count(2))
    new = next(path for path in names if not path.exists())
    fix = quote_command("vistill", "init", new, *options, *plugin_words())
    why = "vistill init never overwrites a recipe"
    return ConfigError("C101", f"{file} exists already", why=why, fix=fix)


def method_named(name: str) -> tuple[str, list[str]]:
    """The method that a name begins with or is spelt like, and a note where it was guessed."""
    methods = list(method_schemas())
    stem = Path(name).stem
    letters = letters_of(stem)
    begins = [method for method in methods if letters.startswith(letters_of(method))]
    if begins:
        method = max(begins, key=len)
        rest = stem.lower().replace("-", "_").removeprefix(method)
        exact = rest != stem.lower() and not rest[:1].isalpha()
        return method, [] if exact else [f"{stem} is understood as {method}"]
    if name.endswith(".yaml"):
        return "va_opd", []
    near = closest(letters, [letters_of(method) for method in methods], cutoff=0.75)
    if near:
        method = next(method for method in methods if letters_of(method) == near[0])
        return method, [f"{stem} is understood as {method}"]
    why = f"methods: {', '.join(methods)}"
    fix = "vistill init va-opd   or   vistill init FILE.yaml"
    raise ConfigError("C102", f'"{name}" names no method', why=why, fix=fix)


def letters_of(name: str) -> str:
    """A name without its hyphens and case."""
    return re.sub(r"[-_ ]", "", name.lower())


def columns_text(facts: DataFacts, schema: Mapping[str, Any]) -> str:
    """The columns as one line of YAML, with those that the method needs."""
    columns = dict(facts.columns)
    if schema["x-writer"] == "data":
        columns.setdefault("response", "response")
    if "thoughts" in schema["x-needs"]:
        columns.setdefault("thoughts", "thoughts")
    if schema["x-writer"] != "data":
        columns.pop("response", None)
    return "{" + ", ".join(f"{key}: {plain(name)}" for key, name in columns.items()) + "}"


def needed_columns(
    schema: Mapping[str, Any], sources: Sequence[str], all_facts: Sequence[DataFacts]
) -> list[str]:
    """Lines about columns that the method needs; of several data sets in the words of each."""
    if len(all_facts) == 1:
        return needed(schema, all_facts[0])
    named = zip(names_of_sets(sources), all_facts, strict=True)
    return [with_keys_of_set(line, name) for name, facts in named for line in needed(schema, facts)]


def needed(schema: Mapping[str, Any], facts: DataFacts) -> list[str]:
    """Lines about columns that the method needs and the data lack."""
    if not any(note.startswith("columns  ") for note in facts.notes):
        return []
    wants = {"response": schema["x-writer"] == "data", "thoughts": "thoughts" in schema["x-needs"]}
    wants["answer"] = bool(schema["x-answers"])
    absent = [key for key, wanted in wants.items() if wanted and not facts.columns.get(key)]
    return [f"the method needs a column for {key}: set data.columns.{key}" for key in absent]


def plain(text: str) -> str:
    """A text as YAML: as it is where that is safe, else in quotes."""
    safe = re.fullmatch(r"[A-Za-z_./~][\w./~-]*", text) and text not in (
        "true",
        "false",
        "null",
        "~",
    )
    return text if safe else json.dumps(text, ensure_ascii=False)


def aligned(line: str) -> str:
    """A line with its comment in the column of the others."""
    setting, mark, comment = line.partition("  # ")
    return f"{setting.rstrip():<34}  # {comment}" if mark and setting.strip() else line


def write_schema(file: Path) -> None:
    """The schema that the recipe's first line names."""
    schema = recipe_schema(method_schemas().usable())
    file.write_text(json.dumps(schema, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def summary(
    file: Path, sources: Sequence[str], notes: list[str], all_facts: Sequence[DataFacts]
) -> str:
    """What was written and read, and the next commands."""
    lines = [
        f"wrote  {file}",
        f"wrote  {file.parent / SCHEMA_NAME}   (completion and checks in an editor)",
    ]
    lines += [f"note   {note}" for note in notes]
    lines += [
        f"{f'data   {source}:' if index == 0 else '      '} {note}"
        for source, facts in zip(sources, all_facts, strict=True)
        for index, note in enumerate(facts.notes)
    ]
    check, train = (
        quote_command("vistill", verb, file, *plugin_words()) for verb in ("check", "train")
    )
    first = "".join(f"{facts.fix}   then   " for facts in all_facts if facts.fix)
    return "\n".join([*lines, f"next   {first}{check}   then   {train}"])
