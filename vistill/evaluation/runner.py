"""One evaluation: accuracy with its interval, gaps without the image, reading, visual advantage."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

from vistill.answers.math_process import shared_judge
from vistill.data.diagrams import Diagram
from vistill.data.keys import keyed_seed
from vistill.evaluation.advantage import TokenMeasurements, heavy_tail_curve, summarise_tokens
from vistill.evaluation.counterfactual import (
    MAX_ITEMS,
    measure_counterfactual,
    measure_stated_labels,
)
from vistill.evaluation.parts import (
    EvaluatedModels,
    measure_by_teacher,
    summarise_by_set,
    summarise_by_teacher,
)
from vistill.evaluation.responses import (
    AnswerEvaluator,
    JudgedResponse,
    accuracy_by_question,
    question_digest,
)
from vistill.evaluation.settings import EvalSettings
from vistill.evaluation.statistics import mean, mean_interval, wilson_interval
from vistill.faults import fault
from vistill.models.loading import VLM
from vistill.rollouts.build import make_engine
from vistill.rollouts.checked_engine import keep_awake
from vistill.rollouts.engine import RolloutEngine
from vistill.rollouts.settings import RolloutSettings
from vistill.runs.storage import to_json
from vistill.types import Prompt, View

BLIND_VIEWS = (View.PIXELATED, View.TEXT_ONLY, View.SWAPPED)


@dataclass(frozen=True)
class EvalResult:
    """Summary, all samples and token measurements of one evaluation."""

    summary: dict[str, float]
    samples: list[JudgedResponse]
    tokens: list[TokenMeasurements]
    settings: EvalSettings

    def to_lines(self) -> str:
        """Per-sample JSON lines."""
        prompts = {sample.prompt.id: sample.prompt for sample in self.samples}
        digests = {name: question_digest(prompt) for name, prompt in prompts.items()}
        return "".join(
            to_json(sample.to_dict(digests[sample.prompt.id])) + "\n" for sample in self.samples
        )

    def heatmaps(self, vlm: VLM) -> list[dict[str, Any]]:
        """Token measurements and verdicts of the first responses, for the report."""
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
                "gold": reading.prompt.gold_text,
                "correct": correct.get(reading.prompt.id),
                "tokens": vlm.tokens(reading.ids),
                "advantage": round_values(reading.advantage),
                "log_prob_full": round_values(reading.log_prob_full),
                "log_prob_degraded": round_values(reading.log_prob_degraded),
                "kl": round_values(reading.kl),
            }
            for reading in self.tokens[: self.settings.heatmaps]
        ]

    def tail(self) -> list[list[float]]:
        """The heavy-tail curve."""
        return heavy_tail_curve(self.tokens) if self.tokens else []


def round_values(values: Any) -> list[float]:
    """Round values for storage."""
    return [round(float(v), 4) for v in values]


def evaluate(
    models: EvaluatedModels,
    prompts: Sequence[Prompt],
    settings: EvalSettings,
    poll: Callable[[], None] = lambda: None,
    diagrams: Sequence[Diagram] = (),
    engine: RolloutEngine | None = None,
) -> EvalResult:
    """Evaluate the student on the rows that have an answer.

    A row with the answer "" counts in no accuracy, but its responses count for visual advantage.

    Args:
        models: student and teacher.
        prompts: the evaluation rows. `settings.limit` of them are used, always the same ones,
            chosen by a key. All of them can be the partner of a row under `swapped`.
        settings: the evaluation protocol.
        poll: called often, so that a signal can stop the evaluation.
        diagrams: the procedural items behind the prompts, for the counterfactual test.
        engine: generates the student's responses; None means the default engine. A run passes
            `make_engine(student, rollout.without_image_skips(), poll)`: an evaluation reopens no
            turns.
    """
    fault("evaluate.attempt")
    engine = engine or make_engine(models.student, RolloutSettings(), poll)
    with_answer = [p for p in prompts if p.answer is not None]
    rows = select_rows(with_answer, settings.limit, settings.seed)
    fewer = select_rows(rows, settings.extra_limit, settings.seed)
    with shared_judge() as math, keep_awake(engine):
        math.limits.clear()
        evaluator = AnswerEvaluator(models.student, settings, math, engine, models.view, prompts)
        sampled = evaluator.answer(rows, View.FULL)
        samples = list(sampled)
        summary = accuracy_summary([a for a in sampled if a.prompt.answer], settings)
        summary["unanswered_rows"] = float(sum(not p.answer for p in prompts))
        if settings.greedy:
            greedy = evaluator.answer([p for p in fewer if p.answer], View.FULL, "greedy")
            samples += greedy
            summary |= share_summary("greedy_accuracy", greedy)
            summary["greedy_rows"] = float(len(greedy))
        if settings.blind:
            with_image = [p for p in fewer if p.images and p.answer]
            facts, blind = blind_summary(evaluator, with_image, sampled)
            summary |= facts
            samples += blind
        summary |= measure_stated_labels(sampled)
        if settings.reading and diagrams:
            summary |= measure_counterfactual(evaluator, diagrams)
        summary |= {f"judge/{name}": float(n) for name, n in sorted(math.limits.items())}
    tokens = []
    measured = {p.id for p in fewer if p.images}
    if settings.advantage and measured:
        first = [a for a in sampled if a.prompt.id in measured and a.rollout.sibling == 0]
        tokens = measure_by_teacher(models, [a for a in first if a.rollout.ids], poll)
        summary |= summarise_tokens(tokens, settings)
    summary |= summarise_by_set(samples, tokens, settings)
    summary |= summarise_by_teacher(models.teacher_names, tokens, settings)
    return EvalResult(summary, samples, tokens, settings)


def select_rows(prompts: Sequence[Prompt], count: int | None, seed: int) -> list[Prompt]:
    """Select `count` prompts by a random key, in their original order.

    A smaller count selects a subset of a larger one. The first rows would be a biased sample,
    because benchmark files are often sorted by kind.
    """
    if count is None or count >= len(prompts):
        return list(prompts)
    order = sorted(prompts, key=lambda p: (keyed_seed("evaluation rows", seed, p.id), p.id))
    selected = {p.id for p in order[:count]}
    return [p for p in prompts if p.id in selected]


def heatmap_rows(prompts: Sequence[Prompt], settings: EvalSettings) -> list[Prompt]:
    """The rows whose tokens an evaluation stores for heatmaps."""
    with_answer = [p for p in prompts if p.answer is not None]
    rows = select_rows(with_answer, settings.limit, settings.seed)
    fewer = select_rows(rows, settings.extra_limit, settings.seed)
    return [p for p in fewer if p.images][: settings.heatmaps]


def num_responses(settings: EvalSettings, rows: int, diagrams: int = 0) -> int:
    """About how many responses an evaluation of so many rows writes: its size."""
    rows = min(rows, settings.limit or rows)
    fewer = min(rows, settings.extra_limit or rows)
    blind = len(BLIND_VIEWS) * settings.samples if settings.blind else 0
    twins = 2 * min(MAX_ITEMS, diagrams) if settings.reading else 0
    return rows * settings.samples + fewer * (settings.greedy + blind) + twins


def selection_size(settings: EvalSettings) -> int | None:
    """Number of rows that select a checkpoint: the smaller limit of during and after the run."""
    limits = [n for n in (settings.limit, settings.final_limit) if n is not None]
    return min(limits) if limits else None


def selection_summary(
    result: EvalResult, prompts: Sequence[Prompt], settings: EvalSettings
) -> dict[str, float]:
    """Accuracy that selects a checkpoint: the same rows and samples in every evaluation of a run.

    Args:
        result: an evaluation during the run or at its end.
        prompts: all evaluation rows.
        settings: the evaluation settings of the run.
    """
    size = selection_size(settings)
    with_answer = [p for p in prompts if p.answer is not None]
    fixed = {p.id for p in select_rows(with_answer, size, settings.seed) if p.answer}
    sampled = [a for a in result.samples if a.view is View.FULL and a.mode == "sampled"]
    by_question = accuracy_by_question([a for a in sampled if a.prompt.id in fixed])
    if not by_question:
        return {}
    facts = {"selection/accuracy": mean(by_question), "selection/rows": float(len(by_question))}
    return facts | {"selection/protocol": protocol_number(settings)}


def protocol_number(settings: EvalSettings) -> float:
    """Hash of the settings that affect an accuracy; different hashes are not comparable."""
    names = ["samples", "temperature", "top_p", "max_new_tokens", "answer", "seed"]
    names += [
        name
        for name in ("checker", "task")
        if getattr(settings, name) != getattr(EvalSettings, name)
    ]
    return float(crc32(json.dumps([getattr(settings, name) for name in names]).encode()))


def blind_summary(
    evaluator: AnswerEvaluator, with_image: Sequence[Prompt], sampled: Sequence[JudgedResponse]
) -> tuple[dict[str, float], list[JudgedResponse]]:
    """Accuracy without the image, its gap on the same rows, and all judged responses.

    `swapped` leaves out rows without a partner; `swapped_rows` counts the remaining ones.
    """
    if not with_image:
        return {}, []
    facts, samples = {"blind_rows": float(len(with_image))}, []
    for view in BLIND_VIEWS:
        rows = with_image
        if view is View.SWAPPED:
            partners = evaluator.partners(with_image, view)
            rows = [p for p in with_image if p.id in partners]
            facts["swapped_rows"] = float(len(rows))
        if not rows:
            continue
        blind = evaluator.answer(rows, view)
        samples += blind
        ids = {p.id for p in rows}
        full_accuracy = mean(accuracy_by_question([a for a in sampled if a.prompt.id in ids]))
        value = mean(accuracy_by_question(blind))
        facts |= {f"accuracy/{view}": value, f"gap/{view}": full_accuracy - value}
    return facts, samples


def accuracy_summary(sampled: Sequence[JudgedResponse], settings: EvalSettings) -> dict[str, float]:
    """avg@k with its 95 % interval over questions, and shares of truncated and unparsed answers."""
    by_question = accuracy_by_question(sampled)
    if not by_question:
        return {"rows": 0.0}
    if settings.samples == 1:
        low, high = wilson_interval(sum(by_question), len(by_question))
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


def share_summary(name: str, responses: Sequence[JudgedResponse]) -> dict[str, float]:
    """A share with its Wilson interval; empty without responses."""
    if not responses:
        return {}
    correct = sum(a.correct for a in responses)
    low, high = wilson_interval(correct, len(responses))
    return {name: correct / len(responses), f"{name}_low": low, f"{name}_high": high}
