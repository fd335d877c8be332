"""One evaluation: accuracy with interval and denominator, blind gaps, reading, visual advantage, per-sample lines."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from zlib import crc32

from vistill.data.diagrams import Diagram
from vistill.data.keys import keyed_seed
from vistill.data.math_judge import MathJudge
from vistill.evaluation.advantage import (
    TokenReading,
    heavy_tail_curve,
    read_tokens,
    summarise_tokens,
)
from vistill.evaluation.answering import Answered, Answering, accuracy_by_question, question_digest
from vistill.evaluation.counterfactual import counterfactual, stated_share
from vistill.evaluation.settings import EvalSettings
from vistill.evaluation.statistics import mean, mean_interval, wilson
from vistill.models.loading import VLM
from vistill.rollouts.build import make_engine
from vistill.rollouts.checked_engine import keep_awake
from vistill.rollouts.engine import RolloutEngine
from vistill.rollouts.settings import RolloutSettings
from vistill.runs.storage import to_json
from vistill.types import Prompt, View
from vistill.views import ViewContext

BLIND_VIEWS = (View.PIXELATED, View.TEXT_ONLY, View.SWAPPED)


class Judged(Protocol):
    """A student, a teacher where there is one, and the parameters of the views."""

    @property
    def student(self) -> VLM:
        """The model that answers."""
        ...

    @property
    def teacher(self) -> VLM | None:
        """The model whose visual advantage is measured."""
        ...

    @property
    def view(self) -> ViewContext:
        """Parameters of the views."""
        ...


@dataclass(frozen=True)
class EvalResult:
    """Summary, every sample, token readings."""

    summary: dict[str, float]
    samples: list[Answered]
    tokens: list[TokenReading]
    settings: EvalSettings

    def to_lines(self) -> str:
        """Per-sample JSON lines."""
        prompts = {sample.prompt.id: sample.prompt for sample in self.samples}
        asked = {name: question_digest(prompt) for name, prompt in prompts.items()}
        return "".join(
            to_json(sample.to_dict(asked[sample.prompt.id])) + "\n" for sample in self.samples
        )

    def heatmaps(self, vlm: VLM) -> list[dict[str, Any]]:
        """Token readings of the first items, with the verdict on each response, for the report."""
        sampled = (
            s
            for s in self.samples
            if s.view is View.FULL and s.mode == "sampled" and s.rollout.sibling == 0
        )
        correct = {sample.prompt.id: sample.correct for sample in sampled if sample.prompt.answer}
        return [
            {
                "prompt": reading.prompt.id,
                "asked": question_digest(reading.prompt),
                "question": reading.prompt.text,
                "gold": reading.prompt.answer,
                "correct": correct.get(reading.prompt.id),
                "tokens": vlm.tokens(reading.ids),
                "advantage": rounded(reading.advantage),
                "log_prob_full": rounded(reading.log_prob_full),
                "log_prob_degraded": rounded(reading.log_prob_degraded),
                "kl": rounded(reading.kl),
            }
            for reading in self.tokens[: self.settings.heatmaps]
        ]

    def tail(self) -> list[list[float]]:
        """The heavy-tail curve."""
        return heavy_tail_curve(self.tokens) if self.tokens else []


def rounded(values: Any) -> list[float]:
    """Numbers short enough to store."""
    return [round(float(v), 4) for v in values]


def evaluate(
    models: Judged,
    prompts: Sequence[Prompt],
    settings: EvalSettings,
    poll: Callable[[], None] = lambda: None,
    diagrams: Sequence[Diagram] = (),
    engine: RolloutEngine | None = None,
) -> EvalResult:
    """Judge the student on the rows that have an answer.

    A row whose answer is "" has none and is judged nowhere, but its responses are read for visual advantage.

    Args:
        models: student and teacher.
        prompts: the evaluation rows; `settings.limit` of them are used, chosen by a key, always the same ones. Any of
            them lends its pictures to `swapped`.
        settings: protocol.
        poll: called often, so that a signal is honoured.
        diagrams: the procedural items behind the prompts, where counterfactual twins can be drawn.
        engine: writes for the student; without one the default engine does. The recipe's is
            `build_engine(student, rollout.without_image_skips(), poll)`: turns are not reopened in an evaluation.
    """
    engine = engine or make_engine(models.student, RolloutSettings(), poll)
    answered = [p for p in prompts if p.answer is not None]
    rows = chosen_rows(answered, settings.limit, settings.seed)
    fewer = chosen_rows(rows, settings.extra_limit, settings.seed)
    with MathJudge() as math, keep_awake(engine):
        answering = Answering(models.student, settings, math, engine, models.view, prompts)
        sampled = answering.answer(rows, View.FULL)
        samples = list(sampled)
        summary = accuracy_summary([a for a in sampled if a.prompt.answer], settings)
        summary["unanswered_rows"] = float(sum(not p.answer for p in prompts))
        if settings.greedy:
            greedy = answering.answer([p for p in fewer if p.answer], View.FULL, "greedy")
            samples += greedy
            summary |= share_summary("greedy_accuracy", greedy)
            summary["greedy_rows"] = float(len(greedy))
        if settings.blind:
            pictured = [p for p in fewer if p.images and p.answer]
            facts, blind = blind_summary(answering, pictured, sampled)
            summary |= facts
            samples += blind
        summary |= stated_share(sampled)
        if settings.reading and diagrams:
            summary |= counterfactual(answering, diagrams)
    tokens = []
    read = {p.id for p in fewer if p.images}
    if settings.advantage and models.teacher is not None and read:
        first = [
            a for a in sampled if a.prompt.id in read and a.rollout.sibling == 0 and a.rollout.ids
        ]
        with models.teacher.on_device():
            tokens = read_tokens(models.student, models.teacher, first, models.view, poll)
        summary |= summarise_tokens(tokens, settings)
    return EvalResult(summary, samples, tokens, settings)


def chosen_rows(prompts: Sequence[Prompt], count: int | None, seed: int) -> list[Prompt]:
    """So many prompts in the order of a key of their own, put back in their order: fewer are a part of more.

    A benchmark's file is often sorted by kind, so its first rows are no fair sample of it.
    """
    if count is None or count >= len(prompts):
        return list(prompts)
    order = sorted(prompts, key=lambda p: (keyed_seed("evaluation rows", seed, p.id), p.id))
    taken = {p.id for p in order[:count]}
    return [p for p in prompts if p.id in taken]


def heatmap_rows(prompts: Sequence[Prompt], settings: EvalSettings) -> list[Prompt]:
    """The rows whose tokens an evaluation stores for heatmaps."""
    answered = [p for p in prompts if p.answer is not None]
    rows = chosen_rows(answered, settings.limit, settings.seed)
    fewer = chosen_rows(rows, settings.extra_limit, settings.seed)
    return [p for p in fewer if p.images][: settings.heatmaps]


def selection_size(settings: EvalSettings) -> int | None:
    """Rows that choose between checkpoints: as many as the smaller of the evaluations during the run and at its end."""
    limits = [n for n in (settings.limit, settings.final_limit) if n is not None]
    return min(limits) if limits else None


def selection_summary(
    result: EvalResult, prompts: Sequence[Prompt], settings: EvalSettings
) -> dict[str, float]:
    """Accuracy on the rows that choose between checkpoints: the same rows and samples in every evaluation of a run.

    Args:
        result: an evaluation during the run or at its end.
        prompts: all evaluation rows.
        settings: of the run.
    """
    size = selection_size(settings)
    answered = [p for p in prompts if p.answer is not None]
    fixed = {p.id for p in chosen_rows(answered, size, settings.seed) if p.answer}
    at_one = [a for a in result.samples if a.view is View.FULL and a.mode == "sampled"]
    by_question = accuracy_by_question([a for a in at_one if a.prompt.id in fixed])
    if not by_question:
        return {}
    facts = {"selection/accuracy": mean(by_question), "selection/rows": float(len(by_question))}
    return facts | {"selection/protocol": protocol_number(settings)}


def protocol_number(settings: EvalSettings) -> float:
    """A hash of what decides an accuracy, rows excepted: evaluations with different hashes are not compared."""
    names = ("samples", "temperature", "top_p", "max_new_tokens", "answer", "seed")
    return float(crc32(json.dumps([getattr(settings, name) for name in names]).encode()))


def blind_summary(
    answering: Answering, pictured: Sequence[Prompt], sampled: Sequence[Answered]
) -> tuple[dict[str, float], list[Answered]]:
    """Accuracy without the picture and what its loss costs on the very same rows; every answer.

    Rows that no other picture can be shown to are left out of `swapped`; `swapped_rows` says how many are in it.
    """
    if not pictured:
        return {}, []
    facts, samples = {"blind_rows": float(len(pictured))}, []
    for view in BLIND_VIEWS:
        rows = pictured
        if view is View.SWAPPED:
            partners = answering.partners(pictured, view)
            rows = [p for p in pictured if p.id in partners]
            facts["swapped_rows"] = float(len(rows))
        if not rows:
            continue
        blind = answering.answer(rows, view)
        samples += blind
        same = {p.id for p in rows}
        seen = mean(accuracy_by_question([a for a in sampled if a.prompt.id in same]))
        value = mean(accuracy_by_question(blind))
        facts |= {f"accuracy/{view}": value, f"gap/{view}": seen - value}
    return facts, samples


def accuracy_summary(sampled: Sequence[Answered], settings: EvalSettings) -> dict[str, float]:
    """avg@k with its 95 % interval over questions, and what could not be judged."""
    by_question = accuracy_by_question(sampled)
    if not by_question:
        return {"rows": 0.0}
    if settings.samples == 1:
        low, high = wilson(sum(by_question), len(by_question))
    else:
        low, high = mean_interval(by_question, settings.samples)
    return {
        "accuracy": mean(by_question),
        "accuracy_low": low,
        "accuracy_high": high,
        "rows": float(len(by_question)),
        "samples": float(settings.samples),
        "truncated_share": mean([float(a.rollout.finish.is_truncated()) for a in sampled]),
        "unparsed_share": mean([float(a.extracted is None) for a in sampled]),
        "response_tokens": mean([float(len(a.rollout.ids)) for a in sampled]),
    }


def share_summary(name: str, answered: Sequence[Answered]) -> dict[str, float]:
    """A share with its Wilson interval; nothing where nothing was asked."""
    if not answered:
        return {}
    right = sum(a.correct for a in answered)
    low, high = wilson(right, len(answered))
    return {name: right / len(answered), f"{name}_low": low, f"{name}_high": high}
