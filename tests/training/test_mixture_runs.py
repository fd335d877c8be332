"""Runs on several data sets: resume, rows that go missing, rewards and metrics by data set."""

import json
from dataclasses import replace

import pytest
import torch

from vistill.answers.math_process import shared_judge
from vistill.config import load_recipe
from vistill.data.mixture import set_of
from vistill.data.set_settings import DataSet, SetReward
from vistill.runs.folder import RunFolder
from vistill.training.build import build, make_setup
from vistill.training.loop import pick_prompts, run
from vistill.training.rewards import Rewards, rewards_of_sets
from vistill.training.settings import RewardSettings
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


def test_teachers_write_the_responses_to_their_own_rows(start):
    settings, folder = start("kd", "method=kd", "train.steps=1", "eval.every=0")
    plan = continued(settings, folder)
    stored = [json.loads(line) for line in
              (folder.path / "teacher_responses.jsonl").read_text().splitlines()]  # fmt: skip
    assert {record["prompt"] for record in stored} == {p.id for p in plan.train_prompts}
    facts = json.loads((folder.path / "teacher_responses.settings.json").read_text())
    assert len(facts["teacher"]) == 2
