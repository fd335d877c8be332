"""Figures of an evaluation by data set and by teacher, where there are several."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from vistill.data.mixture import set_of
from vistill.evaluation.advantage import TokenMeasurements, measure_tokens, summarise_tokens
from vistill.evaluation.responses import JudgedResponse, accuracy_by_question
from vistill.evaluation.settings import EvalSettings
from vistill.evaluation.statistics import mean, mean_interval, wilson_interval
from vistill.models.loading import VLM
from vistill.types import Prompt, View
from vistill.views import ViewContext

#: Figures of the tokens that are given for each data set and each teacher.
OF_TOKENS = ("va/mean", "kl/mean", "tokens")


class EvaluatedModels(Protocol):
    """A student, its teachers if it has any, and the parameters of the views."""

    @property
    def student(self) -> VLM:
        """The evaluated model."""
        ...

    @property
    def teacher(self) -> VLM | None:
        """The model that measures visual advantage; None without one, or if rows have several."""
        ...

    @property
    def view(self) -> ViewContext:
        """Parameters of the views."""
        ...

    @property
    def teacher_names(self) -> Mapping[str, str]:
        """By prompt id the name of its teacher; empty unless there are several."""
        ...

    def by_teacher(self) -> "Sequence[tuple[str, EvaluatedModels]]":
        """Each teacher alone, with its name; these models themselves if there is at most one."""
        ...

    def teacher_of(self, prompt: Prompt) -> VLM:
        """The teacher of a prompt, where there is one."""
        ...


def measure_by_teacher(
    models: EvaluatedModels, responses: Sequence[JudgedResponse], poll: Callable[[], None]
) -> list[TokenMeasurements]:
    """Measure each response with the teacher of its row, one teacher after another."""
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
