"""`vistill init`: a commented recipe, filled in."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vistill.config import build_recipe, method_schemas, parse_text
from vistill.errors import ConfigError, suggest
from vistill.redaction import mask_secrets

TEMPLATE = """\
# made by: vistill init {name} --student {student} --teacher {teacher} --data {data}
# every key can also be given on the command line: vistill train {file} train.lr=2e-6
version: 1
run: runs/{stem}                    # everything is written below this folder
seed: 42

student:
  model: {student}
{teacher_block}
method: {method}                    # vistill explain {method}
{knobs}
data:
  train: {data}                     # .jsonl | hf:owner/name[split] | .parquet | diagrams
  eval: ""                          # the same; or hold training rows out:
  holdout: 0                        # rows set aside for evaluation
  images: ""                        # folder the image paths are relative to; empty: the data file's folder
  columns: {{prompt: question, images: images, answer: answer{extra_column}}}
  template: "{{prompt}}"              # {{choices}} is filled in too
  text_only: error                  # error | drop | plain: rows without a picture
  on_bad_row: quarantine            # quarantine | stop
  max_image_tokens: 1024            # Qwen3-VL's own limit would be 16,384 per image

rollout:
  per_prompt: 4                     # K sibling responses
  temperature: 0.7                  # scores are always taken at temperature 1
  top_p: 0.95
  max_new_tokens: 4096

train:
  prompts_per_step: 16              # 16 x 4 = 64 responses an update, whatever the hardware
  epochs: 5
  lr: 1.0e-6
  schedule: {{kind: cosine, warmup: 0.05}}
  weight_decay: 0.1
  clip_norm: 1.0
  micro_batch: auto                 # only speed and memory depend on it, never the update

save: {{every: 50, keep: 2, keep_best: accuracy}}
eval: {{every: 50, limit: 200, max_new_tokens: 4096}}
"""
REWARD = """\
reward:                             # from the answer checkers
  accuracy: 1.0                     # of a right answer
  format: 0.0                       # of a response that matches the pattern
"""


def knobs_block(method: str, schema: Mapping[str, Any]) -> str:
    """Every knob of the method with its default, in the file's own words."""
    lines = [f"{method}:"] if schema["properties"] else []
    for knob, info in schema["properties"].items():
        setting = f"  {knob}: {json.dumps(info['default'])}"
        lines.append(f"{setting:<34}  # {info['description']}")
    return "\n".join(lines) + "\n" if lines else ""


def write_recipe(name: str, student: str, teacher: str, data: str) -> str:
    """Write `NAME.yaml` and say what to do next. An existing file is never overwritten."""
    stem = Path(name).stem
    methods = list(method_schemas())
    wanted = stem.replace("-", "_")
    method = max((m for m in methods if wanted.startswith(m)), key=len, default=None)
    if method is None and not name.endswith(".yaml"):
        why = f"methods: {', '.join(methods)}   {suggest(stem.replace('-', '_'), methods)}".rstrip()
        raise ConfigError(
            "C102",
            f'"{name}" names no method',
            why=why,
            fix="vistill init va-opd   or   vistill init FILE.yaml",
        )
    method = method or "va_opd"
    file = Path(name if name.endswith(".yaml") else f"{stem.replace('-', '_')}.yaml")
    if file.exists():
        raise ConfigError(
            "C101", f"{file} exists already", fix=f"vistill init {stem}-2, or remove it first"
        )
    schema = method_schemas()[method]
    asks_teacher = schema["x-needs-teacher"] or schema["x-writer"] == "teacher"
    column = ", response: response" if schema["x-writer"] == "data" else ""
    column += ", thoughts: thoughts" if "thoughts" in schema["x-needs"] else ""
    text = TEMPLATE.format(
        name=name,
        student=student,
        teacher=teacher,
        data=data,
        file=file,
        stem=stem,
        method=method,
        teacher_block=f"teacher:\n  model: {teacher}\n" if asks_teacher else "",
        knobs=knobs_block(method, schema) + (REWARD if "reward" in schema["x-needs"] else ""),
        extra_column=column,
    )
    build_recipe(parse_text(text, file), text, file.name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(mask_secrets(text), encoding="utf-8")
    return f"wrote {file}\nnext  vistill check {file}   then   vistill train {file}"
