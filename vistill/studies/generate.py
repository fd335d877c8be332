"""`vistill generate`: a model's response to each row of a data source, one JSON line per row.

The noise of a row is keyed by the seed and the row, so neither its batch nor an interruption
changes its response. Rows that the file holds already are skipped.
"""

import fcntl
import itertools
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vistill.answers.math_process import shared_judge
from vistill.answers.verdict import Verdict
from vistill.data.judging import judge_response
from vistill.data.loading import LoadedData, load_source
from vistill.data.settings import DataSettings
from vistill.data.stored_prompts import with_content_hashes
from vistill.errors import ConfigError, DataError, StorageError
from vistill.evaluation.settings import EvalSettings
from vistill.models.backends import with_kernels
from vistill.models.loading import VLM, PromptEncoder, load_weights
from vistill.models.selftest import run_selftest
from vistill.python_fixes import in_python
from vistill.rollouts.build import make_engine
from vistill.rollouts.engine import RolloutEngine, Sampling, make_requests, sampling_for_step
from vistill.rollouts.settings import RolloutSettings
from vistill.runs.recipe_changes import flatten
from vistill.runs.storage import append_line, read_json, read_lines, write_json
from vistill.runtime import prepare_process
from vistill.training.adapted_student import loading_options
from vistill.training.checks.data import check_prompts
from vistill.training.checks.devices import choose_device
from vistill.training.checks.models import load_encoder_of
from vistill.training.checks.prompt_lengths import (
    check_prompt_lengths,
    find_overlong_prompts,
)
from vistill.training.load_model import load
from vistill.training.oom import MemoryRetry
from vistill.training.recipe import Recipe
from vistill.training.run_lock import hash_weights, package_versions
from vistill.types import Finish, Prompt, Rollout

#: Columns without which a question can be answered, though not always judged.
OPTIONAL_COLUMNS = ("answer", "choices", "checker", "response", "thoughts", "boxes")
#: (rows that are done, rows of all, tokens of the responses being written).
Progress = Callable[[int, int, int], None]


@dataclass(frozen=True)
class GeneratedResponse:
    """A model's response to a prompt, with its verdict if the prompt has a gold answer."""

    prompt: Prompt
    rollout: Rollout
    text: str
    verdict: Verdict | None = None

    def to_dict(self) -> dict[str, Any]:
        """One line of the file."""
        prompt = self.prompt
        record = {
            "id": prompt.id,
            "content": prompt.content,
            "row": prompt.labels.get("row", ""),
            "response": self.text,
            "finish": str(self.rollout.finish),
            "tokens": len(self.rollout.ids),
        }
        if self.verdict is None:
            return record
        gold = prompt.golds[0] if len(prompt.golds) == 1 else list(prompt.golds)
        return {**record, "gold": gold, "verdict": self.verdict.to_dict()}


@dataclass(frozen=True)
class GeneratedFile:
    """What a file of responses holds."""

    path: Path
    written: int
    """Rows that this call added."""
    records: list[dict[str, Any]]
    data: LoadedData
    missing: tuple[str, ...] = ()
    """Columns of the settings that the data do not have, and that an answer does not need."""

    def __str__(self) -> str:
        """Rows, verdicts, responses that were cut off, rows that cannot be read."""
        judged = [r["verdict"] for r in self.records if "verdict" in r]
        cut = sum(r["finish"] == Finish.LENGTH for r in self.records)
        text = f"{len(self.records):,} responses in {self.path}, {self.written:,} of them new"
        if judged:
            right = sum(v["correct"] for v in judged)
            silent = sum(v["unparsed"] for v in judged)
            text += f"\n{right:,} of {len(judged):,} with a gold answer are correct"
            text += f", {silent:,} state no answer"
        text += f"\n{cut:,} are cut off at the length limit" if cut else ""
        text += "".join(f"\nno column {name} in the data" for name in self.missing)
        bad = self.data.quarantined
        if bad:
            text += f"\n{len(bad):,} rows cannot be read; first: {bad[0].where} {bad[0].reason}"
        return text


@in_python("generate", "model", "rollout", "evaluation", "seed", "prompts")
def generate(
    model: VLM | str | Path,
    prompts: Sequence[Prompt],
    *,
    rollout: RolloutSettings | None = None,
    evaluation: EvalSettings | None = None,
    seed: int = 42,
    progress: Progress = lambda done, total, tokens: None,
) -> list[GeneratedResponse]:
    """Write one response per prompt.

    Args:
        model: `vistill.load(...)`, or a folder, hub id or run folder to load.
        prompts: questions with or without images, such as `vistill.load_prompts(...)`.
        rollout: engine and sampling; temperature 0 is greedy.
        evaluation: checker and commitment of the verdicts.
        seed: of the sampling noise. The same seed gives the same responses in every batch.
        progress: is called after every token.

    Raises:
        DataError: D102 to D104, D202, a prompt cannot be used.
        RolloutError: R404 to R407, the engine breaks its contract; R501, out of memory.
    """
    check_prompts(prompts)
    hashed = with_content_hashes(prompts)
    vlm = model if isinstance(model, VLM) else load(str(model))
    settings = rollout or RolloutSettings()
    judged_by = evaluation or EvalSettings()
    batches = write_responses(vlm, hashed, settings, judged_by, seed, progress)
    return [response for batch in batches for response in batch]


def write_responses(
    vlm: VLM,
    prompts: Sequence[Prompt],
    settings: RolloutSettings,
    evaluation: EvalSettings,
    seed: int,
    progress: Progress,
) -> Iterator[list[GeneratedResponse]]:
    """The responses in order, batch by batch of at most `rows_per_call` prompts."""
    sampling = sampling_for_step(settings, seed, 0)
    done, tokens = 0, 0

    def poll() -> None:
        nonlocal tokens
        progress(done, len(prompts), tokens)
        tokens += 1

    plain = settings.without_image_skips()
    with make_engine(vlm, plain, poll) as engine, shared_judge() as math:
        for start in range(0, len(prompts), sampling.rows_per_call):
            part, tokens = prompts[start : start + sampling.rows_per_call], 0
            rollouts = generate_batch(vlm, engine, part, sampling)
            batch = []
            for prompt, one in zip(part, rollouts, strict=True):
                text = vlm.decode(one.ids)
                has_gold = prompt.answer is not None and bool(prompt.golds)
                verdict = judge_response(text, prompt, evaluation, math) if has_gold else None
                batch.append(GeneratedResponse(prompt, one, text, verdict))
            done += len(part)
            progress(done, len(prompts), 0)
            yield batch


def generate_batch(
    vlm: VLM, engine: RolloutEngine, prompts: Sequence[Prompt], sampling: Sampling
) -> list[Rollout]:
    """One rollout per prompt; with less memory in several calls, with the same tokens."""
    requests = make_requests(prompts, [vlm.encode(p) for p in prompts], (0,))

    def size(halvings: int) -> int:
        return max(1, min(len(prompts), sampling.rows_per_call) >> halvings)

    def attempt(halvings: int) -> list[tuple[Rollout, ...]]:
        return engine.generate(requests, replace(sampling, rows_per_call=size(halvings)))

    return [group[0] for group in MemoryRetry().run_halving("rollout", size, attempt)]


def generate_file(
    recipe: Recipe,
    out: Path,
    progress: Progress = lambda done, total, tokens: None,
    loading: Callable[[str], None] = lambda text: None,
) -> GeneratedFile:
    """Write the response of `recipe.student` to each row of `recipe.data.train` into a file.

    The file may hold some of them from an earlier call with the same settings.

    Args:
        recipe: model, data source, sampling (`rollout`), checker (`eval`) and seed.
        out: JSON Lines file. `OUT.settings.json` next to it says what it was written with.
        progress: is called after every token.
        loading: is told what is read, before the first response.

    Raises:
        DataError: as in training, if the data cannot be read.
        ConfigError: C203, the file holds responses of another model, of other settings or rows.
        StorageError: S602, another process writes the file.
    """
    prepare_process()
    loading("reading rows")
    settings = recipe.located()
    data, missing = load_rows(settings.data)
    prompts = data.prompts[: settings.data.limit]
    loading("loading the model")
    encoder = load_encoder_of(settings.student, "student", settings.data.max_image_tokens)
    check_lengths(recipe, encoder, prompts)
    with locked_file(out):
        if out.exists() and out.stat().st_size:
            check_rows(out, prompts)
        device = choose_device(recipe.student.device)
        vlm = load_weights(encoder, device=device, **loading_options(recipe, device))
        vlm = with_kernels(run_selftest(vlm), "auto").freeze()
        check_settings(out, facts_of(recipe, vlm))
        records = {record["id"]: record for record in read_lines(out)}
        written = len(records)
        left = [prompt for prompt in prompts if prompt.id not in records]

        def shift(done: int, total: int, tokens: int) -> None:
            progress(written + done, len(prompts), tokens)

        batches = write_responses(vlm, left, recipe.rollout, recipe.eval, recipe.seed, shift)
        for batch in batches:
            for response in batch:
                record = response.to_dict()
                append_line(out, record)
                records[response.prompt.id] = record
    ordered = [records[prompt.id] for prompt in prompts]
    return GeneratedFile(out, len(left), ordered, data, missing)


def load_rows(settings: DataSettings) -> tuple[LoadedData, tuple[str, ...]]:
    """The rows of a source, and the columns that it lacks and an answer does not need."""
    missing: list[str] = []
    while True:
        try:
            return load_source(settings.train, settings, "test", settings.limit), tuple(missing)
        except DataError as error:
            columns = settings.columns
            lacking = [
                name
                for name in OPTIONAL_COLUMNS
                if error.what == f'column "{getattr(columns, name)}" not in {settings.train}'
            ]
            if error.code != "D101" or not lacking:
                raise
            missing.append(getattr(columns, lacking[0]))
            settings = replace(settings, columns=replace(columns, **{lacking[0]: ""}))


def check_lengths(recipe: Recipe, encoder: PromptEncoder, prompts: Sequence[Prompt]) -> None:
    """D203 if a prompt is longer than the limit, before the weights are loaded."""
    limit, context = recipe.data.max_prompt_tokens, recipe.view_context(encoder.family.patch_size)
    check_prompt_lengths(find_overlong_prompts(encoder, context, prompts, limit), limit)


@contextmanager
def locked_file(out: Path) -> Iterator[None]:
    """Lock a file of responses against other processes (S602)."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        handle = out.open("a")
    except OSError as error:
        raise StorageError(
            "S601",
            f"cannot write {out}: {error.strerror or error}",
            where=str(out.parent),
            why="each response becomes a line of this file",
            fix="--out FILE.jsonl",
        ) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StorageError(
                "S602",
                "another process writes this file",
                where=str(out),
                why="two processes would mix their lines",
                fix=f"wait for it, or write another file: --out {unused_file(out)}",
            ) from error
        yield


def facts_of(recipe: Recipe, vlm: VLM) -> dict[str, Any]:
    """What decides a response and its verdict, besides the row itself."""
    rollout, data = recipe.rollout, asdict(recipe.data)
    return {
        "model": recipe.student.model,
        "weights": hash_weights(vlm.model),
        "seed": recipe.seed,
        "rollout": {
            name: getattr(rollout, name)
            for name in ("engine", "temperature", "top_p", "max_new_tokens")
        },
        "data": {name: data[name] for name in ("max_image_tokens", "min_pixels", "max_pixels")},
        "eval": {"checker": recipe.eval.checker, "answer": recipe.eval.answer},
        "versions": package_versions(),
    }


def settings_file(out: Path) -> Path:
    """The file next to the responses that says what they were written with."""
    return out.with_name(f"{out.name}.settings.json")


def unused_file(out: Path) -> str:
    """`OUT-2.jsonl`, or the next number whose file does not exist, quoted for a shell."""
    names = (out.with_stem(f"{out.stem}-{number}") for number in itertools.count(2))
    return shlex.quote(str(next(name for name in names if not name.exists())))


def check_settings(out: Path, facts: dict[str, Any]) -> None:
    """Write the settings of a new file; C203 if those of an existing one differ.

    The name of the model and the versions may differ: the weights count.
    """
    file = settings_file(out)
    if not out.stat().st_size:
        write_json(file, facts)
        return
    if not file.is_file():
        raise other_responses_error(out, f"{file.name} is missing, so nothing says what wrote it")
    before = flatten(read_json(file))
    now = flatten(facts)
    for key, value in now.items():
        if key == "model" or key.startswith("versions"):
            continue
        if before.get(key) != value:
            why = f"{key} is {value!r:.60} now and was {before.get(key)!r:.60}"
            raise other_responses_error(out, why)


def check_rows(out: Path, prompts: Sequence[Prompt]) -> None:
    """C203 if the file holds a row that the data do not hold any more, or hold in other words.

    A half-written last line, of a process that was killed, is removed.
    """
    records = list(read_lines(out))
    known = {prompt.id: prompt.content for prompt in prompts}
    for record in records:
        name = record.get("id")
        if known.get(str(name)) != record.get("content"):
            raise other_responses_error(out, f"it holds the row {name}, which the data do not hold")
    if not out.read_bytes().endswith(b"\n"):
        lines = out.read_bytes().splitlines(keepends=True)
        with out.open("r+b") as handle:
            handle.truncate(sum(len(line) for line in lines[:-1]))


def other_responses_error(out: Path, why: str) -> ConfigError:
    """C203."""
    return ConfigError(
        "C203",
        "the file holds responses of another model, of other settings or of other rows",
        where=str(out),
        why=f"{why}; one file would mix both",
        fix=f"--out {unused_file(out)}",
    )
