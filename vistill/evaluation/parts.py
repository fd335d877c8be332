"""Figures of an evaluation by data set and by teacher, where there are several."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from vistill.data.mixture import set_of
from vistill.evaluation.advantage import TokenMeasurements, measure_tokens, summarise_tokens
from vistill.evaluation.responses import JudgedResponse, accuracy_by_question
from vistill.evaluation.settings import EvalSettings
from vistill.evaluation.statistics import mean, mean_interval, wilson_interval
from vistill.types import Prompt, View

#: Figures of the tokens that are given for each data set and each teacher.
OF_TOKENS = ("va/mean", "kl/mean", "tokens")


@runtime_checkable
class SeveralTeachers(Protocol):
    """Models whose rows may have different teachers (`vistill/training/models_of_run.py`)."""

    @property
    def teacher_names(self) -> Mapping[str, str]:
        """By prompt id the name of its teacher."""
        ...

    def by_teacher(self) -> list[tuple[str, Any]]:
        """Each teacher alone."""
        ...

    def teacher_of(self, prompt: Prompt) -> Any:
        """The teacher of a prompt."""
        ...


def measure_by_teacher(
    models: Any, responses: Sequence[JudgedResponse], poll: Callable[[], None]
) -> list[TokenMeasurements]:
    """Measure each response with the teacher of its row, one teacher after another."""
    if not isinstance(models, SeveralTeachers):
        apart = [("", models)]
    else:
        apart = models.by_teacher()
    measured: dict[int, TokenMeasurements] = {}
    for _, one in apart:
        own = [
            index
            for index, response in enumerate(responses)
            if len(apart) == 1 or models.teacher_of(response.prompt) is one.teacher
        ]
        if one.teacher is None or not own:
            continue
        with one.teacher.on_device():
            part = [responses[index] for index in own]
            tokens = measure_tokens(one.student, one.teacher, part, one.view, poll)
        measured |= dict(zip(own, tokens, strict=True))
    return [measured[index] for index in sorted(measured)]


def summarise_by_set(
    samples: Sequence[JudgedResponse], tokens: Sequence[TokenMeasurements], settings: EvalSettings
) -> dict[str, float]:
    """`set/NAME/accuracy` and others for each data set; empty without several."""
    facts: dict[str, float] = {}
    judged = [a for a in samples if a.mode == "sampled" and a.prompt.answer]
    for name in sorted({set_of(a.prompt) for a in judged} - {""}):
        own = [a for a in judged if set_of(a.prompt) == name]
        full = [a for a in own if a.view == View.FULL]
        by_question = accuracy_by_question(full)
        if settings.samples == 1:
            low, high = wilson_interval(sum(by_question), len(by_question))
        else:
            low, high = mean_interval(by_question, settings.samples)
        figures = {
            "accuracy": mean(by_question),
            "accuracy_low": low,
            "accuracy_high": high,
            "rows": float(len(by_question)),
            "unparsed_share": mean([float(a.extracted is None) for a in full]),
        }
        blind = [a for a in own if a.view == View.PIXELATED]
        if blind:
            ids = {a.prompt.id for a in blind}
            same = mean(accuracy_by_question([a for a in full if a.prompt.id in ids]))
            figures["gap/pixelated"] = same - mean(accuracy_by_question(blind))
        figures |= of_tokens([t for t in tokens if set_of(t.prompt) == name], settings)
        facts |= {f"set/{name}/{key}": value for key, value in figures.items()}
    return facts


def summarise_by_teacher(
    names: Mapping[str, str], tokens: Sequence[TokenMeasurements], settings: EvalSettings
) -> dict[str, float]:
    """`teacher/NAME/kl/mean` and `va/mean` for each of several teachers."""
    facts: dict[str, float] = {}
    for name in sorted({names[t.prompt.id] for t in tokens if t.prompt.id in names}):
        own = of_tokens([t for t in tokens if names.get(t.prompt.id) == name], settings)
        facts |= {f"teacher/{name}/{key}": value for key, value in own.items()}
    return facts


def of_tokens(tokens: Sequence[TokenMeasurements], settings: EvalSettings) -> dict[str, float]:
    """The figures of some responses; empty for none."""
    summary = summarise_tokens(tokens, settings)
    return {key: summary[key] for key in OF_TOKENS if key in summary}
