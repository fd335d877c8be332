"""Runs on several data sets: resume, rows that go missing, rewards and metrics by data set."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from vistill.answers.math_process import shared_judge
from vistill.answers.verdict import Verdict
from vistill.config import load_recipe
from vistill.data.mixture import set_of
from vistill.data.set_settings import DataSet, SetReward
from vistill.registry import checkers
from vistill.runs.folder import RunFolder
from vistill.training.build import build, make_setup
from vistill.training.checks.gold import judge_gold_answers
from vistill.training.loop import pick_prompts, run
from vistill.training.rewards import Rewards
from vistill.training.settings import RewardSettings, rewards_of_sets
from vistill.training.teacher_responses import (
    keep_correct_responses,
    no_correct_response_error,
)
from vistill.types import Finish, Prompt, Rollout, RolloutGroup

RECIPE = """\
run: {folder}/run
method: opd
student: {{model: 'vistill:student'}}
teachers:
  large: {{model: 'vistill:teacher', rows: [sums]}}
  small: {{model: 'vistill:student', rows: [words]}}
data:
  text_only: plain
  columns: {{images: ""}}
  max_bad_share: 0.2
  sets:
    sums: {{train: {folder}/sums.jsonl, weight: 3, holdout: 3, checker: number}}
    words: {{train: {folder}/words.jsonl, weight: 1, holdout: 2, template: "Say: {{prompt}}"}}
rollout: {{per_prompt: 2, max_new_tokens: 5, all_truncated: go_on}}
train: {{prompts_per_step: 4, steps: 4, lr: 1.0e-4}}
save: {{every: 1}}
eval: {{every: 4, max_new_tokens: 5, greedy: false}}
"""


@pytest.fixture
def start(tmp_path):
    """A function that makes a folder with data and recipe, and loads the recipe."""

    def make(name, *words):
        folder = tmp_path / name
        if not folder.exists():
            folder.mkdir()
            sums = [{"question": f"{n} + {n + 1}?", "answer": str(2 * n + 1)} for n in range(15)]
            words_of = [{"question": f"word {n}", "answer": f"w{n}"} for n in range(12)]
            for file, rows in (("sums", sums), ("words", words_of)):
                lines = "".join(json.dumps(row) + "\n" for row in rows)
                (folder / f"{file}.jsonl").write_text(lines, encoding="utf-8")
            text = RECIPE.format(folder=folder)
            (folder / "r.yaml").write_text(text, encoding="utf-8")
        settings = load_recipe(folder / "r.yaml", words)
        return settings, RunFolder(folder / "run")

    return make


def continued(settings, folder, stop=None):
    plan = build(make_setup(settings, folder))
    run(replace(plan, stop_after=stop), folder)
    return plan


def weights(plan):
    return torch.cat([p.detach().flatten() for p in plan.models.student.model.parameters()])


def test_a_mixture_that_stops_and_continues_is_the_same_to_the_bit(start):
    settings, folder = start("whole")
    whole = continued(settings, folder)
    metrics = folder.read(folder.metrics)
    settings, folder = start("cut")
    continued(settings, folder, 2)
    cut = continued(settings, folder)
    assert torch.equal(weights(whole), weights(cut))
    assert folder.read(folder.metrics) == metrics
    assert [m["set/sums/prompts"] for m in metrics] == [3.0] * 4
    assert [m["set/words/prompts"] for m in metrics] == [1.0] * 4
    last = folder.read(folder.evaluations)[-1]
    assert (last["set/sums/rows"], last["set/words/rows"], last["rows"]) == (3, 2, 5)
    rows = 3 * last["set/sums/accuracy"] + 2 * last["set/words/accuracy"]
    assert rows / 5 == pytest.approx(last["accuracy"])


def test_a_row_that_is_missing_at_a_later_start_is_replaced_by_one_of_its_set(start):
    settings, folder = start("missing")
    before = continued(settings, folder, 2)
    planned, _ = pick_prompts(before, 3)
    lost = next(p for p in planned if set_of(p) == "sums")
    file = folder.path.parent / "sums.jsonl"
    lines = file.read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["question"] != lost.text]
    assert len(kept) == len(lines) - 1
    file.write_text("\n".join(kept) + "\n")
    after = continued(settings, folder)
    assert set(after.missing_rows) == {lost.id}
    again, _ = pick_prompts(after, 3, {lost.id})
    assert lost.id not in {p.id for p in again}
    assert [set_of(p) for p in again] == [set_of(p) for p in planned]
    assert folder.read(folder.metrics)[-1]["step"] == 4


def test_another_weight_or_order_of_names_is_judged_on_resume(start):
    settings, _ = start("other")
    names = dict(reversed(settings.data.sets.items()))
    same = replace(settings, data=replace(settings.data, sets=names))
    assert same.fingerprint() == settings.fingerprint()
    other, _ = start("other", "data.sets.sums.weight=2")
    assert other.fingerprint() != settings.fingerprint()
    free, _ = start("other", "data.sets.sums.images=elsewhere", "teachers.small.device=cpu")
    assert free.fingerprint() == settings.fingerprint()


def test_a_data_set_has_rewards_of_its_own():
    settings = RewardSettings(accuracy=1.0)
    sets = {
        "plain": DataSet(train="a"),
        "own": DataSet(train="b", reward=SetReward(accuracy=0.5, format=0.25, pattern="x")),
    }
    by_set = rewards_of_sets(settings, sets)
    assert set(by_set) == {"own"}

    class Decoder:
        def decode(self, ids):
            return "x = 3, so the answer is 3."

    groups = [
        RolloutGroup(
            Prompt(name, ("q",), answer="3", labels={"data_set": name}),
            (Rollout((1,), 0, Finish.STOP),),
        )
        for name in sets
    ]
    with Rewards(settings, Decoder(), shared_judge(), by_set) as rewards:
        assert rewards.of(groups) == [1.0, 0.75]


def responses_of(folder):
    """The stored teacher responses by prompt, and the events of the run."""
    lines = (folder.path / "teacher_responses.jsonl").read_text().splitlines()
    records = {record["prompt"]: record for record in map(json.loads, lines)}
    return records, (folder.path / "events.log").read_text()


def test_teachers_write_the_responses_to_their_own_rows(start):
    settings, folder = start("kd", "method=kd", "train.steps=1", "eval.every=0")
    plan = continued(settings, folder)
    stored, _ = responses_of(folder)
    assert set(stored) == {p.id for p in plan.train_prompts}
    own = {p.id: "large" if set_of(p) == "sums" else "small" for p in plan.train_prompts}
    assert {prompt: record["teacher"] for prompt, record in stored.items()} == own
    facts = json.loads((folder.path / "teacher_responses.settings.json").read_text())
    assert set(facts["teachers"]) == {"large", "small"}


@pytest.mark.parametrize("word", ["teachers.large.precision=bf16", "teachers.large.revision=other"])
def test_responses_of_a_teacher_of_another_precision_or_revision_are_written_again(start, word):
    settings, folder = start("kd", "method=kd", "eval.every=0")
    build(make_setup(settings, folder))
    build(make_setup(settings, folder))
    assert "writing them again" not in responses_of(folder)[1]
    build(make_setup(start("kd", "method=kd", "eval.every=0", word)[0], folder))
    assert "writing them again" in responses_of(folder)[1]


def test_the_response_to_a_row_that_has_another_teacher_now_is_written_again(start):
    words = ("method=kd", "eval.every=0", "data.sets.words.weight=3")
    settings, folder = start("kd", *words)
    build(make_setup(settings, folder))
    before, _ = responses_of(folder)
    swapped = ("teachers.large.rows=[words]", "teachers.small.rows=[sums]")
    build(make_setup(start("kd", *words, *swapped)[0], folder))
    after, _ = responses_of(folder)
    other = {"large": "small", "small": "large"}
    assert {name: other[one["teacher"]] for name, one in before.items()} == {
        name: one["teacher"] for name, one in after.items()
    }
    assert any(before[name]["ids"] != after[name]["ids"] for name in before)


def test_responses_are_kept_by_the_reward_of_their_data_set():
    sets = {"sums": DataSet(train="a", reward=SetReward(answer="last")), "words": DataSet("b")}
    reward = RewardSettings()

    class Decoder:
        def decode(self, ids):
            return "The answer is 2. No: the answer is 3."

    prompts = [Prompt(name, ("q",), answer="3", labels={"data_set": name}) for name in sets]
    responses = {p.id: (Rollout((1,), 0, Finish.STOP),) for p in prompts}
    models = SimpleNamespace(student=Decoder(), by_teacher=lambda: [("", None)])
    by_set = rewards_of_sets(reward, sets)
    assert set(keep_correct_responses(models, prompts, responses, reward, by_set)) == {"sums"}


def test_gold_answers_are_judged_by_the_reward_of_their_data_set(start, clean_registry):
    judged = []

    @checkers.register("records")
    def check(response, answer, choices, take, math):
        judged.append(take)
        return Verdict(answer, correct=True)

    settings, _ = start("gold", "data.sets.sums.reward.answer=last")
    labels = [{"data_set": name, "checker": "records"} for name in ("sums", "words")]
    rows = [Prompt(one["data_set"], ("q",), answer="3", labels=one) for one in labels]
    judge_gold_answers(settings, rows, [], "all")
    assert judged == ["last", "first"]


def test_no_correct_response_of_several_teachers_names_all_of_them():
    error = no_correct_response_error([Rollout((1,), 0, Finish.STOP)], 2, ["large", "small"])
    assert "large, small" in error.what
    assert "teachers.large.model=" in error.fix
    assert "teachers.small.model=" in error.fix
