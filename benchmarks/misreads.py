"""Why stopping at a misread helps or not: what happens in a response after its first misread.

`python benchmarks/misreads.py [--student X --teacher X --prompts 256 --seed 0]` samples 4 responses
to each diagram at T = 1 and updates nothing. A misread is a token with signed visual advantage
below -1 nat, as in `grounded_opd`; diagrams also say which stated labels are wrong. It prints

- how often the mark is right: the first marked token against the first label that is wrong;
- the loss `KL(pS || pT) / T_n` up to the first misread and after it;
- norms of the gradients of both parts, the angle between them, and the angle of each with the
  gradient of supervised learning on the correct solutions of the same diagrams;
- entropy of the teacher, and what student and teacher write where a label is stated again.
"""

import argparse
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import vistill
from vistill.batch import LossTerm, Objective, ScoredPass, reduce_terms
from vistill.data.diagrams import diagram_prompts
from vistill.data.wording import NAMES
from vistill.models.loading import VLM
from vistill.models.scoring import EncodedGroup, score
from vistill.objectives import OPD, SFT, GroundedOPD
from vistill.objectives.shared import STUDENT, TEACHER, log_prob_of, reverse_kl_to_teacher
from vistill.rollouts.build import make_engine
from vistill.rollouts.engine import sampling_for_step
from vistill.rollouts.settings import RolloutSettings
from vistill.runtime import quiet_libraries, use_one_thread
from vistill.training.models_of_run import Models
from vistill.training.response_source import ResponseSource, response_in_data, write_groups
from vistill.training.step_inputs import (
    encode_step,
    flatten_responses,
    parts_with_gradient,
    score_without_gradient,
)
from vistill.types import Prompt, RolloutGroup, View

SIBLINGS, PER_CALL = 4, 16
#: Share of its response from which a token counts as late.
LATE = 0.25


@dataclass(frozen=True)
class AfterMisread(GroundedOPD):
    """The loss that `grounded_opd` leaves out."""

    def signals(self, batch):
        """The weights of the tokens after the first misread, as token weights."""
        signals = super().signals(batch)
        return {**signals, "token_weight": signals["after_weight"]}


@dataclass(frozen=True)
class SupervisedLabels(GroundedOPD):
    """Supervised learning of the tokens of a solution that the teacher reads off the picture."""

    def signals(self, batch):
        """Weight 1 where the picture makes the token more likely by more than 1 nat."""
        signals = super().signals(batch)
        return {"token_weight": (signals["signed_advantage"] > 1).float()}

    def terms(self, batch, signals):
        """Negative log-likelihood."""
        weights = signals["token_weight"]
        return (LossTerm("nll", -log_prob_of(batch, STUDENT, weights), weights, per="token"),)


def sample(models: Models, prompts: Sequence[Prompt], seed: int) -> list[RolloutGroup]:
    """The student's responses at T = 1."""
    rollout = RolloutSettings(per_prompt=SIBLINGS, max_new_tokens=96, temperature=1.0, top_p=1.0)
    groups = []
    with make_engine(models.student, rollout) as engine:
        source = ResponseSource(engine, OPD(), SIBLINGS)
        for start in range(0, len(prompts), PER_CALL):
            sampling = sampling_for_step(rollout, seed, start, weights=0)
            groups += write_groups(models, source, prompts[start : start + PER_CALL], sampling)
    return groups


def read(models: Models, objective: Objective, groups: list[RolloutGroup]):
    """Inputs, passes and signals of a method."""
    passes = objective.passes()
    responses = flatten_responses(groups, 0, 0, models.student.device, None)
    inputs = encode_step(models, groups, passes, responses)
    batch = score_without_gradient(models, inputs, passes)
    return inputs, batch, objective.signals(batch)


def gradient(models: Models, objective: Objective, groups: list[RolloutGroup]) -> Tensor:
    """The gradient of a method's loss in all weights of the student, in double precision."""
    weights = list(models.student.model.parameters())
    for weight in weights:
        weight.grad = None
    for start in range(0, len(groups), PER_CALL):
        part = groups[start : start + PER_CALL]
        inputs, batch, signals = read(models, objective, part)
        own = batch.responses.counts()
        share = len(part) / len(groups)  # parts have equally many prompts
        for micro, cut in parts_with_gradient(models, inputs, batch, objective.passes(), signals):
            (share * reduce_terms(objective.terms(micro, cut), own)[0]).backward()
    flat = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
    return torch.cat([g.flatten().double() for g in flat])


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of the angle between two gradients."""
    return float(a.dot(b) / (a.norm() * b.norm()))


@dataclass(frozen=True)
class Stated:
    """A label that a response states."""

    name: str
    token: int
    """Index of the token of its value."""
    prefix: str
    """The response up to the value."""
    value: str
    true: str

    @property
    def wrong(self) -> bool:
        """Whether the picture shows another value."""
        return self.value != self.true


def stated_labels(vlm: VLM, prompt: Prompt, ids: tuple[int, ...]) -> list[Stated]:
    """Every drawn label that a response states, in order."""
    text = vlm.decode(ids)
    ends = [len(vlm.decode(ids[: n + 1])) for n in range(len(ids))]
    names = NAMES[prompt.labels["kind"]]
    values = prompt.labels["values"].split()
    drawn = {names[int(i)]: values[int(i)] for i in prompt.labels["drawn"].split()}
    stated = []
    for match in re.finditer(r"(?<![a-z+])([a-z])=(\d+)", text):
        name, value = match.groups()
        if name in drawn:
            token = next(n for n, end in enumerate(ends) if end > match.start(2))
            stated.append(Stated(name, token, text[: match.start(2)], value, drawn[name]))
    return stated


@dataclass
class Readings:
    """What the responses of some prompts show, token by token and label by label."""

    kl: dict[str, list[float]]
    """`KL(pS || pT)` of tokens, by place."""
    entropy: dict[str, list[float]]
    """Entropy of the teacher, by place."""
    loss: dict[str, float]
    """Sum of `KL / T_n` up to the first misread and after it."""
    marks: list[tuple[int | None, int | None]]
    """By rollout: the first marked token, and the first token of a wrong label."""
    again: dict[str, list[tuple[str, float, float]]]
    """By model, where a wrong label is stated again: what it finds most likely, and its
    probabilities of the stated and of the true value."""


#: What a model does with a wrong label that is stated again; the rest is something else.
SHOWN_KINDS = ("carries on", "corrects")
#: Places of a token.
PLACES = ("before the misread", "the misread", "after the misread", "late, no misread")


def place_of(token: int, length: int, first: int | None) -> str | None:
    """The place of a token in its rollout, the first misread known."""
    if first is None:
        return PLACES[3] if token / length > LATE else None
    return PLACES[0] if token < first else PLACES[1] if token == first else PLACES[2]


def measure(models: Models, groups: list[RolloutGroup], readings: Readings) -> None:
    """Add the readings of some groups."""
    _, batch, signals = read(models, GroundedOPD(), groups)
    with torch.no_grad():
        student = score_student(models, groups)
        with_student = replace(batch, passes={**batch.passes, STUDENT.name: student})
        kl = reverse_kl_to_teacher(with_student, torch.ones(batch.responses.num_tokens)).values
        full = batch[TEACHER.name]
        teacher_log = full.projection().logits(full.states()).log_softmax(-1)
        student_log = student.projection().logits(student.states()).log_softmax(-1)
        entropy = -(teacher_log.exp() * teacher_log).sum(-1)
    start = 0
    for group in groups:
        for rollout in group.rollouts:
            rows = slice(start, start + len(rollout.ids))
            start = rows.stop
            marked = torch.nonzero(signals["misread"][rows])[:, 0].tolist()
            first = marked[0] if marked else None
            for t, (k, h) in enumerate(zip(kl[rows].tolist(), entropy[rows].tolist(), strict=True)):
                part = "after" if first is not None and t > first else "up to"
                readings.loss[part] += k / len(rollout.ids)
                if place := place_of(t, len(rollout.ids), first):
                    readings.kl[place].append(k)
                    readings.entropy[place].append(h)
            stated = stated_labels(models.student, group.prompt, rollout.ids)
            wrong = next((s for s in stated if s.wrong), None)
            readings.marks.append((first, None if wrong is None else wrong.token))
            if wrong is not None:
                later = [s for s in stated if s.token > wrong.token and s.name == wrong.name]
                logs = {"student": student_log[rows], "teacher": teacher_log[rows]}
                note_again(models.student, wrong, later, logs, readings)


def note_again(vlm: VLM, wrong: Stated, later: Sequence[Stated], logs, readings: Readings) -> None:
    """What both models find likely where a wrong label is stated for the second time."""
    if not later:
        return
    again = later[0]
    carried, true = (
        vlm.response_ids(again.prefix + value)[again.token] for value in (wrong.value, wrong.true)
    )
    for model, log_probs in logs.items():
        row = log_probs[again.token]
        best = int(row.argmax())
        kind = {carried: "carries on", true: "corrects"}.get(best, "something else")
        readings.again[model].append((kind, float(row[carried].exp()), float(row[true].exp())))


def score_student(models: Models, groups: Sequence[RolloutGroup]) -> ScoredPass:
    """The student on its own responses, without gradient."""
    encoded = [
        EncodedGroup(models.encode(g.prompt, View.FULL), tuple(r.ids for r in g.rollouts))
        for g in groups
    ]
    ids = torch.tensor([i for g in groups for r in g.rollouts for i in r.ids])
    return score(models.student, encoded, ids, models.vocabulary, "both")


def mean(values: Sequence[float]) -> float:
    """Mean, or NaN of nothing."""
    return sum(values) / len(values) if values else math.nan


def print_marks(readings: Readings) -> None:
    """How often the mark is where the picture says it must be."""
    marks = readings.marks
    both = [(m, w) for m, w in marks if m is not None and w is not None]
    alone, missed = sum(w is None for m, w in marks if m is not None), 0
    missed = sum(m is None for m, w in marks if w is not None)
    print(f"\nRollouts: {len(marks)}. With a wrong label and a mark: {len(both)}; a mark and no")
    print(
        f"wrong label: {alone}; a wrong label and no mark: {missed}. Of the first kind the mark is"
    )
    print(f"on the first wrong label in {sum(m == w for m, w in both)}, earlier in ", end="")
    print(f"{sum(m < w for m, w in both)}, later in {sum(m > w for m, w in both)}.\n")


def print_places(readings: Readings) -> None:
    """Loss and entropy by place."""
    total = sum(readings.loss.values())
    print(f"Loss after the first misread: {100 * readings.loss['after'] / total:.1f} %.\n")
    print(
        "| tokens | number | KL(pS || pT), nats | entropy of the teacher, nats |\n|---|---|---|---|"
    )
    for place in PLACES:
        cells = f"{mean(readings.kl[place]):.3f} | {mean(readings.entropy[place]):.3f}"
        print(f"| {place} | {len(readings.kl[place])} | {cells} |")


def print_again(readings: Readings) -> None:
    """Who carries on and who corrects, where a wrong label is stated again."""
    print("\n| wrong label stated again | number | carries on | corrects | p stated | p true |")
    print("|---|---|---|---|---|---|")
    for model, rows in readings.again.items():
        kinds = [kind for kind, _, _ in rows]
        shares = [100 * mean([float(k == kind) for k in kinds]) for kind in SHOWN_KINDS]
        probabilities = [p for _, p, _ in rows], [p for _, _, p in rows]
        cells = " | ".join(f"{share:.1f} %" for share in shares)
        cells += " | " + " | ".join(f"{mean(p):.3f}" for p in probabilities)
        print(f"| {model} | {len(rows)} | {cells} |")


def print_gradients(models: Models, groups: list[RolloutGroup]) -> None:
    """Norms and angles of the gradients of the loss before and after the first misread."""
    written = [
        RolloutGroup(g.prompt, (response_in_data(models.student, g.prompt),)) for g in groups
    ]
    solutions, labels = (gradient(models, m, written) for m in (SFT(), SupervisedLabels()))
    before, after = (
        gradient(models, GroundedOPD(), groups),
        gradient(models, AfterMisread(), groups),
    )
    print("\nCosine with the gradient of supervised learning on correct solutions, of all their")
    print("tokens and of the tokens that the teacher reads off the picture:\n")
    print("| gradient of the loss | norm | all tokens | read tokens |\n|---|---|---|---|")
    for name, value in (
        ("up to the first misread", before),
        ("after it", after),
        ("all of it, as opd", before + after),
    ):
        cosines = " | ".join(f"{cosine(value, other):.3f}" for other in (solutions, labels))
        print(f"| {name} | {float(value.norm()):.4f} | {cosines} |")
    print(f"\nCosine of the first two: {cosine(before, after):.3f}.")


def main() -> None:
    """Sample, read, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--student", default="vistill:student")
    parser.add_argument("--teacher", default="vistill:teacher")
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    use_one_thread()
    quiet_libraries()
    student, teacher = (
        vistill.load(name, device="cpu") for name in (options.student, options.teacher)
    )
    teacher.freeze()
    models = Models(student, teacher, student.vocabulary_size)
    prompts = diagram_prompts("val", options.prompts, options.seed)
    groups = sample(models, prompts, options.seed)
    readings = Readings(
        {p: [] for p in PLACES},
        {p: [] for p in PLACES},
        {"up to": 0.0, "after": 0.0},
        [],
        {"student": [], "teacher": []},
    )
    for start in range(0, len(groups), PER_CALL):
        measure(models, groups[start : start + PER_CALL], readings)
    print_marks(readings)
    print_places(readings)
    print_again(readings)
    print_gradients(models, groups)


if __name__ == "__main__":
    main()
