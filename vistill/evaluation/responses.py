"""Sample responses to questions under a view and judge their answers."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vistill.answers.math_process import MathJudge
from vistill.data.judging import judge_response
from vistill.data.keys import keyed_seed
from vistill.evaluation.settings import EvalSettings
from vistill.models.loading import VLM
from vistill.phases import EVALUATING, RESPONSES, open_phase
from vistill.rollouts.engine import RolloutEngine, Sampling, make_requests
from vistill.types import Prompt, Rollout, View
from vistill.views import Partners, ViewContext, apply_view
from vistill.views.partners import pixel_digest


@dataclass(frozen=True)
class JudgedResponse:
    """One response to one question under one view."""

    prompt: Prompt
    view: View | str
    mode: str
    """`sampled` or `greedy`."""
    rollout: Rollout
    text: str
    extracted: str | None
    correct: bool
    rule: str = ""
    """The rule that chose the answer (`Verdict.rule`)."""
    reason: str = ""
    """Why the answer is not correct (`Verdict.reason`)."""

    def to_dict(self, digest: str) -> dict[str, object]:
        """One line of the per-sample file; `digest` is the `question_digest` of the prompt."""
        return {
            "prompt": self.prompt.id,
            "asked": digest,
            "view": str(self.view),
            "mode": self.mode,
            "sample": self.rollout.sibling,
            "question": self.prompt.text,
            "gold": self.prompt.gold_text,
            "response": self.text,
            "extracted": self.extracted,
            "correct": self.correct,
            "finish": str(self.rollout.finish),
        }


@dataclass(frozen=True)
class AnswerEvaluator:
    """Samples and judges answers of one model with one engine."""

    vlm: VLM
    settings: EvalSettings
    math: MathJudge
    engine: RolloutEngine
    view: ViewContext = ViewContext()
    partner_rows: Sequence[Prompt] = ()
    """Rows that can be the partner of another row, in order; empty means the evaluated rows.

    Pass the whole data set, so that a row has the same partner in an evaluation of fewer rows."""
    partner_cache: dict[View | str, Partners] = field(default_factory=dict, compare=False)
    """Partners among `partner_rows`, by view, so that each image is decoded once."""

    def answer(
        self, prompts: Sequence[Prompt], view: View | str, mode: str = "sampled", shown: str = ""
    ) -> list[JudgedResponse]:
        """All judged responses, in order of prompts and samples; an empty response is wrong.

        Args:
            prompts: the questions.
            view: what the model sees of them.
            mode: `sampled` (`settings.samples` responses each), or `greedy`.
            shown: what the phase is called; default: view and mode.
        """
        count = self.settings.samples if mode == "sampled" else 1
        kind = str(view) if view != View.FULL else "" if mode == "sampled" else mode
        phase = f"{EVALUATING} {shown or kind}".rstrip()
        with open_phase(phase, len(prompts) * count, RESPONSES):
            return self.write_and_judge(prompts, view, mode, count)

    def write_and_judge(
        self, prompts: Sequence[Prompt], view: View | str, mode: str, count: int
    ) -> list[JudgedResponse]:
        """`count` judged responses per prompt."""
        sampling = Sampling(
            self.settings.seed,
            0,
            self.settings.temperature if mode == "sampled" else 0.0,
            self.settings.top_p,
            self.settings.max_new_tokens,
            self.settings.rows_per_call,
            noise=self.settings.noise,
        )
        responses = []
        contexts = self.contexts(prompts, view)
        per_call = max(1, self.settings.rows_per_call // count)
        for start in range(0, len(prompts), per_call):
            part = prompts[start : start + per_call]
            viewed = [apply_view(p, view, contexts[p.id]) for p in part]
            requests = make_requests(viewed, [self.vlm.encode(p) for p in viewed], range(count))
            for prompt, rollouts in zip(
                part, self.engine.generate(requests, sampling), strict=True
            ):
                responses += [self.judge(prompt, view, mode, rollout) for rollout in rollouts]
        return responses

    def contexts(self, prompts: Sequence[Prompt], view: View | str) -> dict[str, ViewContext]:
        """The view context of each prompt id: its own noise seed and its partner row."""
        partners = self.partners(prompts, view)
        return {
            p.id: replace(
                self.view,
                partner=partners.get(p.id),
                seed=keyed_seed("view", p.id, self.view.seed),
            )
            for p in prompts
        }

    def partners(self, prompts: Sequence[Prompt], view: View | str) -> Partners:
        """The partner row of each row under a view; rows without a partner have no entry."""
        if not self.partner_rows:
            return Partners(prompts, (view,), self.view.thought)
        return self.partner_cache.setdefault(
            view, Partners(self.partner_rows, (view,), self.view.thought)
        )

    def judge(
        self, prompt: Prompt, view: View | str, mode: str, rollout: Rollout
    ) -> JudgedResponse:
        """Decode a response and compare its answer with the gold answer."""
        text = self.vlm.decode(rollout.ids)
        verdict = judge_response(text, prompt, self.settings, self.math)
        return JudgedResponse(
            prompt,
            view,
            mode,
            rollout,
            text,
            verdict.extracted,
            verdict.correct,
            verdict.rule,
            verdict.reason,
        )


def pick_response(responses: Sequence[JudgedResponse], *key: object) -> dict[str, Any] | None:
    """One sampled response with its verdict, picked by a key, to show while a run works."""
    sampled = [
        r for r in responses if r.view == View.FULL and r.mode == "sampled" and r.prompt.answer
    ]
    if not sampled:
        return None
    chosen = sampled[keyed_seed("shown response", *key) % len(sampled)]
    return {
        "question": chosen.prompt.text,
        "gold": chosen.prompt.gold_text,
        "text": chosen.text,
        "extracted": chosen.extracted,
        "correct": chosen.correct,
        "rule": chosen.rule,
        "reason": chosen.reason,
    }


def question_digest(prompt: Prompt) -> str:
    """Digest of the text and the images of a question; equal questions have equal digests."""
    if prompt.content:
        return prompt.question_key
    parts = [part if isinstance(part, str) else [pixel_digest(part)] for part in prompt.parts]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).hexdigest()


def accuracy_by_question(responses: Sequence[JudgedResponse]) -> list[float]:
    """Mean correctness over the samples of each question (avg@k is the mean of these)."""
    by_prompt: dict[str, list[float]] = {}
    for item in responses:
        by_prompt.setdefault(item.prompt.id, []).append(float(item.correct))
    return [sum(v) / len(v) for v in by_prompt.values()]
