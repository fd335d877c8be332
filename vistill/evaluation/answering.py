"""Let a model answer questions under a view, and judge the answers."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from vistill.data.answers import judge_answer
from vistill.data.keys import keyed_seed
from vistill.data.math_judge import MathJudge
from vistill.evaluation.settings import EvalSettings
from vistill.models.loading import VLM
from vistill.rollouts.engine import RolloutEngine, Sampling, make_requests
from vistill.types import Prompt, Rollout, View
from vistill.views import Partners, ViewContext, apply_view
from vistill.views.partners import pixel_digest


@dataclass(frozen=True)
class Answered:
    """One response to one question under one view."""

    prompt: Prompt
    view: View
    mode: str
    """`sampled` or `greedy`."""
    rollout: Rollout
    text: str
    extracted: str | None
    correct: bool

    def to_dict(self, asked: str) -> dict[str, object]:
        """One line of the per-sample file; `asked` is the digest of question and pictures (`question_digest`)."""
        return {
            "prompt": self.prompt.id,
            "asked": asked,
            "view": str(self.view),
            "mode": self.mode,
            "sample": self.rollout.sibling,
            "question": self.prompt.text,
            "gold": self.prompt.answer,
            "response": self.text,
            "extracted": self.extracted,
            "correct": self.correct,
            "finish": str(self.rollout.finish),
        }


@dataclass(frozen=True)
class Answering:
    """A model, a way of sampling, the judge of mathematics, and the engine that writes for the model."""

    vlm: VLM
    settings: EvalSettings
    math: MathJudge
    engine: RolloutEngine
    view: ViewContext = ViewContext()
    pool: Sequence[Prompt] = ()
    """Rows whose pictures and thoughts other rows may be shown, in order; without any, the rows that are asked.

    The whole data set, so that a row has the same partner in an evaluation of fewer rows."""
    known: dict[View, Partners] = field(default_factory=dict, compare=False)
    """Partners within the pool, by view: each picture is decoded once for them."""

    def answer(
        self, prompts: Sequence[Prompt], view: View, mode: str = "sampled"
    ) -> list[Answered]:
        """All responses, in order of prompts and samples. An empty one is an answer that says nothing."""
        count = self.settings.samples if mode == "sampled" else 1
        sampling = Sampling(
            self.settings.seed,
            0,
            self.settings.temperature if mode == "sampled" else 0.0,
            self.settings.top_p,
            self.settings.max_new_tokens,
            self.settings.rows_per_call,
        )
        answered = []
        contexts = self.contexts(prompts, view)
        per_call = max(1, self.settings.rows_per_call // count)
        for start in range(0, len(prompts), per_call):
            part = prompts[start : start + per_call]
            seen = [apply_view(p, view, contexts[p.id]) for p in part]
            requests = make_requests(seen, [self.vlm.encode(p) for p in seen], range(count))
            for prompt, rollouts in zip(part, self.engine.write(requests, sampling), strict=True):
                answered += [self.judge(prompt, view, mode, rollout) for rollout in rollouts]
        return answered

    def contexts(self, prompts: Sequence[Prompt], view: View) -> dict[str, ViewContext]:
        """By prompt id what a view needs: noise of the row's own, and the row it borrows from."""
        partners = self.partners(prompts, view)
        seed = lambda prompt: keyed_seed("view", prompt.id, self.view.seed)
        return {p.id: replace(self.view, partner=partners.get(p.id), seed=seed(p)) for p in prompts}

    def partners(self, prompts: Sequence[Prompt], view: View) -> Partners:
        """The row whose pictures or thoughts a view shows; rows without another one have no entry."""
        if not self.pool:
            return Partners(prompts, (view,), self.view.thought)
        return self.known.setdefault(view, Partners(self.pool, (view,), self.view.thought))

    def judge(self, prompt: Prompt, view: View, mode: str, rollout: Rollout) -> Answered:
        """Decode and compare with the gold answer."""
        text = self.vlm.decode(rollout.ids)
        assert prompt.answer is not None, "a question without an answer cannot be judged"
        verdict = judge_answer(text, prompt.answer, prompt.choices, self.settings.answer, self.math)
        return Answered(prompt, view, mode, rollout, text, verdict.extracted, verdict.correct)


def question_digest(prompt: Prompt) -> str:
    """Digest of the words and the pictures of a question: equal in two runs that were asked the same."""
    if prompt.content:
        return prompt.question_key
    parts = [part if isinstance(part, str) else [pixel_digest(part)] for part in prompt.parts]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).hexdigest()


def accuracy_by_question(answered: Sequence[Answered]) -> list[float]:
    """Mean correctness over the samples of each question (avg@k is the mean of these)."""
    by_prompt: dict[str, list[float]] = {}
    for item in answered:
        by_prompt.setdefault(item.prompt.id, []).append(float(item.correct))
    return [sum(v) / len(v) for v in by_prompt.values()]
