"""The model card of an exported student, from its run folder alone. It states what was measured."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vistill.evaluation.unparsed import unparsed_fact, unparsed_warning
from vistill.redaction import escape_control_characters, mask_secret_settings
from vistill.report.comparison import compare_with_start, describe_checkpoint, p_text
from vistill.report.headline import interval
from vistill.report.run_data import RunData, describe_rows
from vistill.runs.chosen_student import SHIPPED_MODELS
from vistill.runs.folder import checkpoint_step
from vistill.runs.storage import file_hash

#: Measures of the table: key, name, key of the number of questions.
MEASURES = (
    ("accuracy", "accuracy, T = {temperature:g}", "rows"),
    ("greedy_accuracy", "accuracy, greedy", "greedy_rows"),
    ("accuracy/pixelated", "accuracy, image pixelated", "blind_rows"),
    ("accuracy/text_only", "accuracy, image removed", "blind_rows"),
    ("accuracy/swapped", "accuracy, image swapped", "swapped_rows"),
    ("truncated_share", "responses cut off at the length limit", "rows"),
    ("unparsed_share", "responses without an answer", "rows"),
)
#: Settings of a run that the card lists.
LISTED = {
    "student": ("train", "lora", "precision"),
    "train": ("steps", "epochs", "prompts_per_step", "lr", "schedule", "freeze", "precision"),
    "rollout": ("per_prompt", "temperature", "top_p", "max_new_tokens"),
    "data": ("template", "system", "max_image_tokens", "min_pixels", "max_pixels"),
}
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class CardFacts:
    """What the card states besides the run."""

    name: str
    """Of the exported folder."""
    source: str
    """The exported model folder or hub id."""
    bases: Sequence[str]
    """The models that it was trained from, the nearest first."""
    dtype: str
    parameters: int
    versions: Mapping[str, str]
    commands: str
    """How to use the folder, as Markdown."""
    notes: Sequence[str] = ()
    run: RunData | None = None
    checkpoint: str = ""
    """Name of the exported checkpoint folder of the run."""
    extra: Mapping[str, Any] = field(default_factory=dict)


def model_card(facts: CardFacts) -> str:
    """The card as Markdown with the front matter of the hub; secrets are masked."""
    sections = [
        front_matter(facts),
        f"# {plain(facts.name)}",
        summary(facts),
        "\n\n".join(["## How to use it", facts.commands, *notes(facts)]),
    ]
    if facts.run is not None:
        sections += [training(facts, facts.run), results(facts, facts.run)]
    sections.append(limits(facts))
    text = "\n\n".join(section.strip() for section in sections) + "\n"
    return without_home(mask_secret_settings(text))


def notes(facts: CardFacts) -> list[str]:
    """What a user of the files should know, as a list."""
    return ["\n".join(f"- {plain(note)}" for note in facts.notes)] if facts.notes else []


def without_home(text: str) -> str:
    """The text with `~` for the home folder, whose name is a person's."""
    home = str(Path.home())
    return text if len(home) < 2 else text.replace(f"{home}/", "~/")


def plain(text: Any) -> str:
    """A value in running text: one line, no markup."""
    line = escape_control_characters(str(text)).replace("`", "'")
    return re.sub(r"([\\*_<>\[\]|#])", r"\\\1", line)


def code(text: Any) -> str:
    """A value as inline code: one line, no way out of it, no column separator."""
    line = escape_control_characters(str(text)).replace("`", "'").replace("|", "¦")
    return f"`{line}`" if line.strip() else "none"


def block(text: str) -> str:
    """A text as a code block that the text cannot close."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall(r"`+", text)), 3)
    return f"{fence}\n{escape_control_characters(text, chr(10))}\n{fence}"


def front_matter(facts: CardFacts) -> str:
    """The metadata of the hub."""
    tags = ["vistill", "on-policy-distillation", "vision-language"]
    run = facts.run
    meta: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "image-text-to-text"}
    hub = [base for base in facts.bases if is_hub_id(base)]
    if hub:
        meta["base_model"] = hub[0]
    if run is not None:
        tags.append(run.method)
        source = str(run.recipe.get("data", {}).get("train", ""))
        if source.startswith("hf:"):
            meta["datasets"] = [source.removeprefix("hf:").partition("[")[0]]
    return f"---\n{yaml.safe_dump({**meta, 'tags': tags}, sort_keys=False)}---"


def is_hub_id(source: str) -> bool:
    """Whether a source has the form `owner/name` and is no folder here."""
    return HUB_ID.fullmatch(source) is not None and not Path(source).exists()


def base_name(source: str) -> str:
    """A model by its hub id or its name; only the last part of a folder's path."""
    if is_hub_id(source) or source.startswith("vistill:") or not source:
        return source
    path = Path(source)
    is_shipped = path.name in SHIPPED_MODELS and path.parent.name == "assets"
    return f"vistill:{path.name}" if is_shipped else path.name


def summary(facts: CardFacts) -> str:
    """One paragraph: what the model is and where it comes from."""
    size = f"{facts.parameters / 1e6:,.1f} million parameters, {facts.dtype}"
    if facts.run is None:
        return f"A vision-language model, exported by vistill from {code(facts.source)} ({size})."
    recipe = facts.run.recipe
    teacher = base_name(str(recipe.get("teacher", {}).get("model") or ""))
    learned = f" by {code(teacher)}" if teacher else ""
    base = base_name(facts.bases[0]) if facts.bases else "an unnamed model"
    method = f"the method {code(facts.run.method)}"
    return (
        f"A vision-language model ({size}). vistill trained it from {code(base)} with {method}; "
        f"its responses were scored{learned or ' without a teacher'}."
    )


def training(facts: CardFacts, run: RunData) -> str:
    """Data, models, method, seeds, settings, command and versions."""
    recipe = run.recipe
    knobs = recipe.get(run.method) or {}
    rows = [
        ("method", code(run.method)),
        ("its settings", code(json.dumps(knobs)) if knobs else "the defaults"),
        ("student before training", code(base_name(facts.bases[0])) if facts.bases else "unnamed"),
        ("teacher", code(base_name(str(recipe.get("teacher", {}).get("model") or "")))),
        *data_rows(run),
        ("seeds", seeds(recipe)),
        ("checkpoint", plain(facts.checkpoint or describe_checkpoint(run) or "unknown")),
    ]
    for group, names in LISTED.items():
        values = recipe.get(group) or {}
        kept = {name: values[name] for name in names if values.get(name) not in (None, "", [])}
        rows.append((f"`{group}`", code(json.dumps(kept, ensure_ascii=False)) if kept else "none"))
    versions = run.lock.get("versions") or {}
    used = ", ".join(f"{name} {number}" for name, number in sorted(versions.items()))
    rows.append(("versions", plain(used) or "unknown"))
    table = "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])
    command = str(run.lock.get("command") or "")
    started = f"\n\nStarted {plain(run.lock['started'])} by:\n\n" if run.lock.get("started") else ""
    return "## Training\n\n" + table + (f"{started}{block(command)}" if command else "")


def data_rows(run: RunData) -> list[tuple[str, str]]:
    """Training and evaluation rows: source, number, and a hash of their content."""
    settings, counts = run.recipe.get("data") or {}, run.data
    hashes = hashes_of_rows(run.path)
    lines = []
    for part, name in (("train", "training rows"), ("eval", "evaluation rows")):
        source = base_source(describe_rows(settings, part))
        number = counts.get(f"{part}_rows")
        facts = [code(source)] if source else ["none named"]
        facts += [f"{number:,} rows"] if isinstance(number, int) else []
        facts += [f"content {code(hashes[part])}"] if part in hashes else []
        lines.append((name, ", ".join(facts)))
    bad = counts.get("quarantined")
    if bad:
        lines.append(("rows left out", f"{bad:,} that could not be read"))
    return lines


def base_source(source: str) -> str:
    """A data source without the folders above its file, which say where it lay on a machine."""
    words = source.split(" ")
    return " ".join(Path(word).name if Path(word).is_absolute() else word for word in words)


def hashes_of_rows(path: Path) -> dict[str, str]:
    """xxh3-128 of the content of training and evaluation rows; of a data file where it is known.

    The content is the words and pictures of each row in order, not its place in a file.
    """
    import xxhash

    file = path / "rows.json"
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
        contents = {part: [row[1] for row in rows[part]] for part in ("train", "eval")}
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return {"train": file_hash(file)} if file.is_file() else {}
    return {
        part: xxhash.xxh3_128("\n".join(values).encode()).hexdigest()
        for part, values in contents.items()
        if any(values)  # drawn diagrams have none: their seed says what they are
    }


def seeds(recipe: Mapping[str, Any]) -> str:
    """The seeds of a run; those of drawn data where they are its data."""
    parts = [f"run {recipe.get('seed')}", f"evaluation {(recipe.get('eval') or {}).get('seed')}"]
    data = recipe.get("data") or {}
    if data.get("train") == "diagrams":
        parts.append(f"diagrams {(data.get('diagrams') or {}).get('seed')}")
    return plain(", ".join(parts))


def results(facts: CardFacts, run: RunData) -> str:
    """Before and after training, with 95 % intervals and the number of questions."""
    before = next((r for r in run.evaluations if r.get("step") == 0), {})
    step = exported_step(facts, run)
    after = next((r for r in run.evaluations if r.get("step") == step), {})
    if not before and not after:
        return "## Results\n\nThe run holds no evaluation."
    lines = [f"| | before | step {step} | questions |", "|---|---|---|---|"]
    for key, name, rows in MEASURES:
        if key not in before and key not in after:
            continue
        counts = [count(record, rows) for record in (before, after) if key in record]
        cells = [interval(record, key) for record in (before, after)]
        label = name.format(temperature=run.temperature)
        lines.append(f"| {label} | {cells[0]} | {cells[1]} | {' / '.join(dict.fromkeys(counts))} |")
    for key, name in (("va/mean", "visual advantage of a token, nats"),):
        if key in before or key in after:
            cells = [f"{r[key]:.3f}" if key in r else "not measured" for r in (before, after)]
            tokens = " / ".join(dict.fromkeys(count(r, "tokens") for r in (before, after) if r))
            lines.append(f"| {name} | {cells[0]} | {cells[1]} | {tokens} tokens |")
    settings = run.recipe.get("eval") or {}
    samples = settings.get("samples", 1)
    protocol = (
        f"Intervals are 95 % over questions. Each question has {samples} "
        f"{'response' if samples == 1 else 'responses'}, top_p {settings.get('top_p', 1)}, at most "
        f"{settings.get('max_new_tokens')} tokens; the {settings.get('answer')} answer of a "
        f"response counts, judged by rules (checker `{settings.get('checker', 'auto')}`)."
    )
    return "\n\n".join(
        ["## Results", "\n".join(lines), protocol, *comparison(run, step, after), *warning(after)]
    )


def exported_step(facts: CardFacts, run: RunData) -> int:
    """The step of the exported checkpoint."""
    name = facts.checkpoint or str(run.result.get("checkpoint") or "")
    return checkpoint_step(Path(name)) if name else int(run.last.get("step", 0))


def count(record: Mapping[str, Any], key: str) -> str:
    """A number of questions; empty where it is not stored."""
    value = record.get(key)
    return f"{int(value):,}" if isinstance(value, (int, float)) else "not stored"


def comparison(run: RunData, step: int, after: Mapping[str, Any]) -> list[str]:
    """The paired difference to the start on the same questions, if the last step is exported."""
    if not after:
        return [f"Step {step} itself was not evaluated."]
    if step != run.last.get("step"):
        return []
    pair = compare_with_start(run)
    if pair is None or not pair.is_comparable:
        return []
    p = p_text(pair.p)
    return [
        f"Paired over {pair.questions:,} questions: {100 * pair.difference:+.1f} points, "
        f"95 % [{100 * pair.low:+.1f}, {100 * pair.high:+.1f}], p {p if '<' in p else f'= {p}'}."
    ]


def warning(after: Mapping[str, Any]) -> list[str]:
    """A warning about responses without an answer."""
    if not unparsed_warning(after):
        return []
    return [f"Warning: {unparsed_fact(after['unparsed_share'])}."]


def limits(facts: CardFacts) -> str:
    """What the card does not show."""
    lines = []
    if facts.run is not None:
        lines += [
            "The figures are of one run on its own evaluation rows. They say nothing about other "
            "data or other seeds.",
            "It was trained on single questions with pictures: no conversations, no video.",
        ]
    lines.append("The licences of the base model, the teacher and the data apply. None is named.")
    versions = ", ".join(f"{name} {number}" for name, number in facts.versions.items())
    lines.append(f"Exported with {plain(versions)}.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)
