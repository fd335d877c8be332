"""`train.teacher_scorer: sampled_token`: a vLLM server scores the responses as the teacher.

An approximation: it knows the log-probability of the sampled token alone, so only methods whose
passes of the teacher keep nothing else can use it. What the server answers is stored next to the
responses of the step, so a step that is repeated or replayed has the same bits, without a server.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import torch

from vistill.batch import ScoredBatch, ScoredPass
from vistill.errors import ConfigError, VistillError
from vistill.models.loading import VLM
from vistill.phases import READINGS, count_done
from vistill.rollouts.server_checks import checked_url
from vistill.rollouts.server_scores import SampledTokenTeacher
from vistill.rollouts.settings import RolloutSettings
from vistill.training.journal import Journal
from vistill.training.models_of_run import Models
from vistill.training.plan import Plan
from vistill.training.step_inputs import StepInputs
from vistill.types import Pass, Reader

#: The value of `train.teacher_scorer`.
SAMPLED_TOKEN = "sampled_token"


def make_teacher_scores(plan: Plan, poll: Callable[[], None]) -> "TeacherScores | None":
    """The server that scores as the teacher, or None where the teacher itself does."""
    if plan.train.teacher_scorer != SAMPLED_TOKEN:
        return None
    assert plan.models.teacher is not None, "the check `method` requires a teacher"
    return TeacherScores(plan.models.teacher, plan.rollout, poll)


def teacher_passes(passes: Sequence[Pass]) -> list[Pass]:
    """The passes that the teacher reads."""
    return [p for p in passes if p.reader is Reader.TEACHER]


def other_passes(passes: Sequence[Pass]) -> list[Pass]:
    """All other passes."""
    return [p for p in passes if p.reader is not Reader.TEACHER]


def check_scorer(
    name: str, passes: Sequence[Pass], rollout: RolloutSettings, teachers: int
) -> None:
    """C101 for a method, or a recipe, that the sampled-token teacher cannot serve.

    Args:
        name: of the method.
        passes: of the method.
        rollout: `server` has the address.
        teachers: number of teachers by name.
    """
    wider = [p.name for p in teacher_passes(passes) if p.keep != "log_prob"]
    why, note = "", ""
    if not teacher_passes(passes):
        why = f"{name} reads no teacher"
    elif wider:
        why = f"{name} needs the whole distribution of {', '.join(wider)}; a server gives the"
        why += " log-probability of the sampled token"
        note = "opd, iw_opd and va_opd can do with it: METHOD.estimator=sampled"
    elif teachers:
        why = "one server serves one teacher"
    if why:
        what = f"train.teacher_scorer = {SAMPLED_TOKEN} cannot be used"
        raise ConfigError("C101", what, why=why, fix="train.teacher_scorer=model", note=note)
    with fix_of_scorer():
        checked_url(rollout.server)


@contextmanager
def fix_of_scorer() -> Iterator[None]:
    """Errors of the server name the way out of a scorer, in place of that of a writer."""
    try:
        yield
    except VistillError as error:
        if error.fix == "rollout.engine=shared":
            error.fix = "train.teacher_scorer=model"
            error.what = error.what.replace("rollout.engine = server", "the teacher's server")
            error.args = (error.render(),)
        raise


@dataclass
class TeacherScores:
    """The teacher's passes of every step, by a server or from the journal.

    Args:
        teacher: the teacher, loaded: it encodes the prompts, and the server is compared with it.
        settings: `server` has the address.
        poll: called while the server computes.
    """

    teacher: VLM
    settings: RolloutSettings
    poll: Callable[[], None] = field(default=lambda: None)

    @cached_property
    def server(self) -> SampledTokenTeacher:
        """The server; it is not asked where the journal has all scores."""
        return SampledTokenTeacher(self.teacher, self.settings, self.poll)

    def prove(self) -> str:
        """R412, R413, R417 or R418 unless the server serves the teacher and scores given ids."""
        with fix_of_scorer():
            distance = self.server.prove()
        return f"{self.settings.server.url} is {distance:.1e} nats per token away from the teacher"

    def add(
        self,
        batch: ScoredBatch,
        inputs: StepInputs,
        passes: Sequence[Pass],
        models: Models,
        journal: Journal | None,
        step: int,
    ) -> ScoredBatch:
        """The batch with the teacher's passes, in the order that the method names them.

        Args:
            batch: with the passes that models of this process have read.
            inputs: of the step.
            passes: of the method.
            models: of the step.
            journal: has the responses of the step, and takes the scores.
            step: counted from 1.
        """
        scored = dict(batch.passes)
        stored = {} if journal is None else journal.scores(step)
        device = inputs.responses.ids.device
        values: dict[str, list[float]] = {}
        for p in teacher_passes(passes):
            known = stored.get(p.name)
            if known is None:
                key = models.encoding_key(p.view, p.reader)
                with fix_of_scorer():
                    known = self.server.log_probs(inputs.encoded[key]).tolist()
            values[p.name] = known
            scored[p.name] = ScoredPass(torch.tensor(known, dtype=torch.float32, device=device))
            count_done(READINGS, inputs.responses.num_rollouts)
        if journal is not None and stored.keys() != values.keys():
            journal.add_scores(step, values)
        order = [p.name for p in passes if not p.gradient]
        return ScoredBatch(batch.responses, {name: scored[name] for name in order})
