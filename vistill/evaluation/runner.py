"""One evaluation: accuracy with interval and denominator, blind gaps, reading, visual advantage, per-sample lines."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from vistill.data.diagrams import Diagram
from vistill.data.math_judge import MathJudge
from vistill.evaluation.advantage import TokenReading, heavy_tail_curve, read_tokens, summarise_tokens
from vistill.evaluation.answering import Answered, Answering, accuracy_by_question
from vistill.evaluation.reading import counterfactual, stated_share
from vistill.evaluation.settings import EvalSettings
from vistill.evaluation.statistics import mean, mean_interval, wilson
from vistill.models.loading import VLM
from vistill.rollouts.boundary import awake
from vistill.rollouts.build import build_engine
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
        return "".join(to_json(sample.to_dict()) + "\n" for sample in self.samples)

    def heatmaps(self, vlm: VLM) -> list[dict[str, Any]]:
        """Token readings of the first items, with the verdict on each response, for the report."""
        sampled = (s for s in self.samples if s.view is View.FULL and s.mode == "sampled" and s.rollout.sibling == 0)
        correct = {sample.prompt.id: sample.correct for sample in sampled}
        return [
            {
                "prompt": reading.prompt.id,
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
    cast: Judged,
    prompts: Sequence[Prompt],
    settings: EvalSettings,
    poll: Callable[[], None] = lambda: None,
    diagrams: Sequence[Diagram] = (),
    engine: RolloutEngine | None = None,
) -> EvalResult:
    """Judge the student on the rows that have an answer.

    Args:
        cast: student and teacher.
        prompts: the evaluation rows; `settings.limit` of them are used.
        settings: protocol.
        poll: called often, so that a signal is honoured.
        diagrams: the procedural items behind the prompts, where counterfactual twins can be drawn.
        engine: writes for the student; without one the default engine does. The recipe's is
            `build_engine(student, rollout.without_image_skips(), poll)`: turns are not reopened in an evaluation.
    """
    engine = engine or build_engine(cast.student, RolloutSettings(), poll)
    rows = [p for p in prompts if p.answer is not None][: settings.limit]
    fewer = rows[: settings.extra_limit]
    with MathJudge() as math, awake(engine):
        answering = Answering(cast.student, settings, math, engine, cast.view)
        sampled = answering.answer(rows, View.FULL)
        samples = list(sampled)
        summary = accuracy_summary(sampled, settings)
        if settings.greedy:
            greedy = answering.answer(fewer, View.FULL, "greedy")
            samples += greedy
            summary |= share_summary("greedy_accuracy", greedy)
        pictured = [p for p in fewer if p.images]
        same_rows = {p.id for p in pictured}
        if settings.blind and pictured:
            seen = mean(accuracy_by_question([a for a in sampled if a.prompt.id in same_rows]))
            summary["blind_rows"] = float(len(pictured))
            for view in BLIND_VIEWS:
                blind = answering.answer(pictured, view)
                samples += blind
                value = mean(accuracy_by_question(blind))
                summary |= {f"accuracy/{view}": value, f"gap/{view}": seen - value}
        summary |= stated_share(sampled)
        if settings.reading and diagrams:
            summary |= counterfactual(answering, diagrams)
    tokens = []
    if settings.advantage and cast.teacher is not None and pictured:
        first = [a for a in sampled if a.prompt.id in same_rows and a.rollout.sibling == 0 and a.rollout.ids]
        with cast.teacher.here():
            tokens = read_tokens(cast.student, cast.teacher, first, cast.view, poll)
        summary |= summarise_tokens(tokens, settings)
    return EvalResult(summary, samples, tokens, settings)


def accuracy_summary(sampled: Sequence[Answered], settings: EvalSettings) -> dict[str, float]:
    """avg@k with its 95 % interval over questions, and what could not be judged."""
    by_question = accuracy_by_question(sampled)
    if not by_question:
        return {"rows": 0.0}
    if settings.samples == 1:
        low, high = wilson(sum(by_question), len(by_question))
    else:
        low, high = mean_interval(by_question)
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
    """A share with its Wilson interval."""
    right = sum(a.correct for a in answered)
    low, high = wilson(right, len(answered))
    return {name: right / max(1, len(answered)), f"{name}_low": low, f"{name}_high": high}
