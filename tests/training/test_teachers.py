"""Several teachers: each row is read by its own, and nothing else changes."""

import json
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import build_model
from tiers import few
from tiny_llava import build_llava

import vistill
from vistill.config import load_recipe
from vistill.errors import ConfigError, DataError, ModelError
from vistill.functional.divergences import entropy, reverse_kl
from vistill.functional.heads import Head
from vistill.functional.mixed_heads import mix_heads
from vistill.functional.rows import States, log_prob_from_hidden, per_row
from vistill.models.loading import VLM
from vistill.models.offload import OffloadedWeights
from vistill.objectives import METHODS, OPD
from vistill.rollouts.settings import RolloutSettings
from vistill.rollouts.shared import SharedEngine
from vistill.runs.folder import RunFolder
from vistill.training.build import build, make_setup
from vistill.training.checks.heads import check_heads
from vistill.training.checks.models import check_views
from vistill.training.context import StepContext
from vistill.training.loop import run
from vistill.training.models_of_run import Models
from vistill.training.recipe import NamedTeacherSettings
from vistill.training.response_source import ResponseSource
from vistill.training.run_state import RunState
from vistill.training.settings import TrainSettings
from vistill.training.step import train_step
from vistill.training.teachers import TeacherRules
from vistill.types import Prompt, Reader, View

ROLLOUT = RolloutSettings(max_new_tokens=6, all_truncated="go_on")
TRAIN = TrainSettings(prompts_per_step=4, lr=1e-3, clip_norm=1e9)


class Recorder(torch.optim.SGD):
    """Keeps the gradient in place of an update."""

    def step(self, closure=None):
        params = [p for group in self.param_groups for p in group["params"]]
        self.gradient = torch.cat([p.grad.flatten().clone() for p in params if p.grad is not None])


def step_of(models, prompts, method="opd", reward=None):
    """Gradient and metrics of a first step."""
    objective = METHODS[method]()
    optimizer = Recorder(models.student.model.parameters(), lr=0.0)
    context = StepContext(
        models=models,
        response_source=ResponseSource(SharedEngine(models.student), objective, 2),
        optimizer=optimizer,
        train=TRAIN,
        rollout=ROLLOUT,
        seed=0,
        num_steps=4,
    )
    metrics = train_step(context, prompts, RunState()).metrics
    assert metrics["finite"] == 1
    return optimizer.gradient, metrics


@pytest.fixture
def two(tokenizer):
    """Two teachers of different width."""
    wide, narrow = build_model(tokenizer, 1, hidden=48), build_model(tokenizer, 2)
    return {"wide": wide.freeze(), "narrow": narrow.freeze()}


def models_of(tokenizer, teachers, names):
    student = build_model(tokenizer, 0)
    distinct = list({id(vlm): vlm for vlm in teachers.values()}.values())
    only = distinct[0] if len(distinct) == 1 else None
    size = student.vocabulary_size
    return Models(student, only, size, teachers=teachers, teacher_names=names)


def single(tokenizer, teacher):
    student = build_model(tokenizer, 0)
    return Models(student, teacher, student.vocabulary_size)


def split(prompts, *names):
    """The teacher of every prompt, in turn."""
    return {p.id: names[i % len(names)] for i, p in enumerate(prompts)}


@pytest.mark.parametrize("method", few(["opd", "va_opd", "vgs", "eopd"], 2))
def test_names_of_one_model_give_the_same_bits_as_one_teacher(method, tokenizer, teacher, prompts):
    rows = prompts[:4]
    names = split(rows, "a", "b")
    several = models_of(tokenizer, {"a": teacher, "b": teacher}, names)
    own, metrics = step_of(several, rows, method)
    plain, expected = step_of(single(tokenizer, teacher), rows, method)
    assert torch.equal(own, plain)
    assert {key: metrics[key] for key in expected} == expected
    assert {key.split("/")[1] for key in metrics if key.startswith("teacher/")} == {"a", "b"}


#: Methods whose loss is a mean over prompts, each of which is read by its own teacher alone.
SEPARABLE = ["opd", "va_opd", "eopd"]


@pytest.mark.parametrize("method", few(SEPARABLE, 2))
def test_the_gradient_is_the_mean_of_those_of_single_teachers(method, tokenizer, two, prompts):
    rows = prompts[:4]
    names = split(rows, "wide", "narrow")
    mixed, _ = step_of(models_of(tokenizer, two, names), rows, method)
    parts = [
        step_of(single(tokenizer, two[name]), [p for p in rows if names[p.id] == name], method)[0]
        for name in two
    ]
    mean = (parts[0] + parts[1]) / 2
    assert float((mixed - mean).abs().max()) <= 1e-6 * float(mean.abs().max())


def test_teachers_of_two_families_read_their_rows_each_in_its_own_way(tokenizer, two, prompts):
    other = build_llava(tokenizer, 3, hidden=40).freeze()
    teachers, rows = {"wide": two["wide"], "llava": other}, prompts[:4]
    names = split(rows, *teachers)
    mixed = replace(models_of(tokenizer, teachers, names), teacher_encodes=True)
    gradient, _ = step_of(mixed, rows)
    parts = []
    for name, teacher in teachers.items():
        alone = replace(single(tokenizer, teacher), teacher_encodes=name == "llava")
        parts.append(step_of(alone, [p for p in rows if names[p.id] == name])[0])
    mean = (parts[0] + parts[1]) / 2
    assert float((gradient - mean).abs().max()) <= 1e-6 * float(mean.abs().max())


def test_of_two_families_only_the_other_one_encodes_a_prompt_again(
    tokenizer, two, prompts, monkeypatch
):
    """A teacher of the student's family encoded its rows again, next to one of another family."""
    teachers, rows = {**two, "llava": build_llava(tokenizer, 3).freeze()}, prompts[:3]
    names = dict(zip((p.id for p in rows), teachers, strict=True))
    models = replace(models_of(tokenizer, teachers, names), teacher_encodes=True)
    calls, encode = Counter(), VLM.encode

    def counted(vlm, prompt):
        calls[prompt.id, vlm.family.describe()] += 1
        return encode(vlm, prompt)

    monkeypatch.setattr(VLM, "encode", counted)  # counts
    step_of(models, rows)
    own, other = models.student.family.describe(), teachers["llava"].family.describe()
    assert calls == {**{(p.id, own): 1 for p in rows}, (rows[2].id, other): 1}


WITH_TEACHER = [
    name
    for name, method in METHODS.items()
    if any(p.reader is Reader.TEACHER for p in method().passes())
    and not method().requirements.needs & {"reward", "thoughts"}
    and method().requirements.teacher_share == 0
]


@pytest.mark.parametrize("method", few(WITH_TEACHER, 3))
def test_every_method_with_a_teacher_takes_a_step_with_two(method, tokenizer, two, prompts):
    rows = prompts[:4]
    gradient, metrics = step_of(models_of(tokenizer, two, split(rows, *two)), rows, method)
    assert float(gradient.abs().max()) > 0
    for name in two:
        assert metrics[f"teacher/{name}/prompts"] == 2


def test_the_terms_of_the_teachers_add_up_to_those_of_the_step(tokenizer, two, prompts):
    rows = prompts[:3]
    names = dict(zip([p.id for p in rows], ["wide", "wide", "narrow"], strict=True))
    _, metrics = step_of(models_of(tokenizer, two, names), rows)
    wide, narrow = (metrics[f"teacher/{name}/loss/reverse_kl"] for name in two)
    assert (2 * wide + narrow) / 3 == pytest.approx(metrics["loss/reverse_kl"], rel=1e-6)


class CountedWeights(OffloadedWeights):
    """Off-loaded weights that note when they are moved, and which others are there then."""

    def watch(self, name, others, calls):
        self.name, self.others, self.calls = name, others, calls
        return self

    def on_device(self):
        there = [one.name for one in self.others() if one is not self and one.depth]
        self.calls.append((self.name, self.depth, there))
        return super().on_device()


def counted(teachers):
    """The teachers in host memory, and the list of their moves."""
    calls, weights = [], {}
    for name, vlm in teachers.items():
        own = CountedWeights(vlm.model, vlm.model.get_output_embeddings(), vlm.device)
        weights[name] = own.watch(name, weights.values, calls)
    return {name: replace(vlm, offload=weights[name]) for name, vlm in teachers.items()}, calls


def test_an_offloaded_teacher_is_moved_once_per_step_and_never_with_another(
    tokenizer, two, prompts
):
    rows = prompts[:4]
    plain, _ = step_of(models_of(tokenizer, two, split(rows, *two)), rows, "va_opd")
    offloaded, calls = counted(two)
    own, _ = step_of(models_of(tokenizer, offloaded, split(rows, *two)), rows, "va_opd")
    assert calls == [("wide", 0, []), ("narrow", 0, [])]
    assert torch.equal(own, plain)


def test_a_step_without_a_row_of_a_teacher_does_not_move_it(tokenizer, two, prompts):
    rows = prompts[:2]
    plain, _ = step_of(single(tokenizer, two["wide"]), rows)
    offloaded, calls = counted(two)
    own, _ = step_of(models_of(tokenizer, offloaded, split(rows, "wide")), rows)
    assert calls == [("wide", 0, [])]
    assert torch.equal(own, plain)


def test_mixed_heads_give_the_values_of_each_head():
    generator = torch.Generator().manual_seed(0)
    heads = [Head(torch.randn(50, width, generator=generator)) for width in (8, 12)]
    heads[1] = replace(heads[1], softcap=5.0, scale=0.5)
    states = [torch.randn(rows, h.weight.shape[1], generator=generator) for rows, h in
              zip((5, 3), heads, strict=True)]  # fmt: skip
    order = torch.randperm(8, generator=generator)
    hidden, head = mix_heads(list(zip(states, heads, strict=True)))
    hidden = hidden[order]
    logits = torch.cat([h.logits(s) for h, s in zip(heads, states, strict=True)])[order]
    ids = torch.randint(50, (8,), generator=generator)
    assert torch.allclose(head.logits(hidden), logits, atol=1e-6)
    log_p = logits.log_softmax(-1)
    mine = log_prob_from_hidden(hidden, head, ids)
    assert torch.allclose(mine, log_p.gather(-1, ids[:, None])[:, 0], atol=1e-5)
    assert torch.allclose(per_row(entropy, hidden, head), -(log_p.exp() * log_p).sum(-1), atol=1e-5)
    own = Head(torch.randn(50, 6, generator=generator))
    student = torch.randn(8, 6, generator=generator)
    values = per_row(reverse_kl, student, own, [States(hidden, head)])
    assert torch.allclose(values, reverse_kl(own.logits(student), logits), atol=1e-5)
    assert not head.is_linear


# rules


def rows_of(*keys):
    return [Prompt(f"p{i}", ("q",), labels={"teacher": key}) for i, key in enumerate(keys)]


def rules(**teachers):
    return TeacherRules(
        {name: NamedTeacherSettings("m", **keys) for name, keys in teachers.items()}
    )


def test_a_row_names_a_teacher_or_one_of_its_rows():
    names = rules(math={"rows": ("geometry", "algebra")}, chart={}).assign(
        rows_of("algebra", "chart", "geometry"), "training"
    )
    assert list(names.values()) == ["math", "chart", "math"]


def test_without_a_value_the_data_set_decides():
    rows = [Prompt("a", ("q",), labels={"data_set": "chart"}), *rows_of("math")]
    assert list(rules(math={}, chart={}).assign(rows, "training").values()) == ["chart", "math"]


def test_one_teacher_may_take_the_others():
    names = rules(math={}, rest={"others": True}).assign(rows_of("math", "x", ""), "training")
    assert list(names.values()) == ["math", "rest", "rest"]


def test_rows_without_a_teacher_are_refused():
    with pytest.raises(DataError) as caught:
        rules(math={}, chart={}).assign(rows_of("math", "x", "x"), "training")
    assert caught.value.code == "D310"
    assert "2 of 3 training rows" in caught.value.what
    assert caught.value.fix == "teachers.chart.others=true"  # it has no row yet
    with pytest.raises(DataError) as caught:
        rules(math={}).assign(rows_of("x"), "evaluation")
    assert "eval.advantage=false" in caught.value.fix


def test_a_teacher_without_a_row_is_refused():
    two = rules(math={}, chart={})
    with pytest.raises(DataError) as caught:
        two.check_used(two.assign(rows_of("math"), "training"), rows_of("math"))
    assert (caught.value.code, caught.value.fix) == ("D311", "teachers.chart=null")


# runs


RECIPE = """\
run: {run}
method: va_opd
student: {{model: 'vistill:student'}}
teachers:
  large: {{model: 'vistill:teacher', rows: [even]}}
  small: {{model: 'vistill:student', others: true}}
data:
  train: {train}
  holdout: 4
  columns: {{teacher: kind}}
rollout: {{per_prompt: 2, max_new_tokens: 6, all_truncated: go_on}}
train: {{prompts_per_step: 4, steps: 2, lr: 1.0e-4}}
save: {{every: 1}}
eval: {{every: 2, max_new_tokens: 6, blind: false, greedy: false}}
"""


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """A file of rows with a column `kind`."""
    from vistill.data.diagrams import diagrams

    folder = tmp_path_factory.mktemp("rows")
    lines = []
    for number, item in enumerate(diagrams("train", 20, 5)):
        prompt = item.prompt(str(number))
        prompt.images[0].load().save(folder / f"{number}.png")
        row = {"question": prompt.text, "images": f"{number}.png", "answer": prompt.golds[0]}
        lines.append(json.dumps({**row, "kind": "odd" if number % 2 else "even"}))
    file = folder / "rows.jsonl"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def recipe(rows, folder, *words):
    file = folder / "r.yaml"
    file.write_text(RECIPE.format(run=folder / "run", train=rows), encoding="utf-8")
    return load_recipe(file, words)


def test_a_run_that_stops_and_continues_is_the_same_to_the_bit(rows, tmp_path):
    ends = []
    for name, stops in (("whole", ()), ("cut", (1,))):
        (tmp_path / name).mkdir()
        settings = recipe(rows, tmp_path / name)
        folder = RunFolder(tmp_path / name / "run")
        for stop in (*stops, None):
            plan = build(make_setup(settings, folder))
            state = run(replace(plan, stop_after=stop), folder)
        assert state.step == 2
        weights = [p.detach().clone() for p in plan.models.student.model.parameters()]
        ends.append((weights, folder.read(folder.metrics), folder.read(folder.evaluations)))
    (weights, metrics, evaluations), (again, resumed, evaluated) = ends
    assert all(map(torch.equal, weights, again))
    assert [{**a, "step": 0} for a in metrics] == [{**a, "step": 0} for a in resumed]
    assert evaluations == evaluated
    assert {key for key in evaluations[-1] if key.startswith("teacher/")} >= {
        "teacher/large/kl/mean", "teacher/small/kl/mean", "teacher/large/va/mean",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["teachers.small.others=false"], "D310"),
        (["teachers.third.model=vistill:teacher"], "D311"),
        (["data.columns.teacher=knd"], "D101"),
        (["teacher.model=vistill:teacher"], "C101"),
        (["teachers.small.rows=[even]"], "C101"),
        (["teachers.large.others=true"], "C101"),
        (["teachers.small.model="], "C002"),
        (["teachers.small.model=vistill:base"], "M101"),
    ],
)
def test_the_fix_of_a_wrong_rule_works_when_pasted(words, code, rows, tmp_path):
    def start(words):
        settings = recipe(rows, tmp_path, *words)
        setup = make_setup(settings, RunFolder(tmp_path / "run"), "check")
        from vistill.training.build import START_CHECKS, run_start_checks

        names = ("data", "tokenizers")
        run_start_checks(setup, [check for check in START_CHECKS if check.name in names])

    codes = []
    for _ in range(3):  # a fix may lead to the next mistake, never to the same one again
        try:
            start(words)
            break
        except (ConfigError, DataError, ModelError) as error:
            codes.append(error.code)
            fix = error.fix.split("   ")[0].replace("FOLDER_OR_HUB_ID", "vistill:teacher")
            words = [*words, fix.strip("'")]
    else:
        pytest.fail(f"{words} still fails: {codes}")
    assert codes[0] == code
    assert len(set(codes)) == len(codes)


def test_distill_takes_several_teachers_by_name(student, two, prompts, tmp_path):
    named = [
        replace(p, labels={**p.labels, "teacher": name})
        for p, name in zip(prompts, ["wide", "narrow"] * 6, strict=True)
    ]
    options = {
        "train": TrainSettings(prompts_per_step=4, steps=2, lr=1e-3),
        "rollout": RolloutSettings(per_prompt=2, max_new_tokens=6, all_truncated="go_on"),
    }
    run = vistill.distill(student, two, named, OPD(), tmp_path / "run", **options)
    assert all(f"teacher/{name}/loss/reverse_kl" in run.metrics[-1] for name in two)
    stored = json.loads((tmp_path / "run/recipe.json").read_text())
    assert set(stored["teachers"]) == set(two)
    assert (tmp_path / "run/start/teachers.wide/config.json").is_file()
    lock = json.loads((tmp_path / "run/run.lock.json").read_text())
    assert set(lock["models"]) == {"student", "teachers.wide", "teachers.narrow"}


def test_distill_refuses_what_is_no_teacher(student, prompts, tmp_path):
    for wrong in ({}, {"math": "vistill:teacher"}, {"a b": student}):
        with pytest.raises(ConfigError) as caught:
            vistill.distill(student, wrong, prompts, OPD(), tmp_path / "run")
        assert caught.value.code == "C002"


def test_an_evaluation_measures_each_row_with_its_teacher(tokenizer, two, prompts):
    from vistill.evaluation.runner import evaluate
    from vistill.evaluation.settings import EvalSettings

    rows = list(prompts[:4])
    names = split(rows, *two)
    settings = EvalSettings(max_new_tokens=4, greedy=False, blind=False, reading=False)
    several = evaluate(models_of(tokenizer, two, names), rows, settings)
    by_id = {t.prompt.id: t for t in several.tokens}
    for name, teacher in two.items():
        alone = evaluate(single(tokenizer, teacher), rows, settings)
        own = [t for t in alone.tokens if names[t.prompt.id] == name]
        assert len(own) == 2
        for measured in own:
            # a batch of other rows gives the same values up to the rounding of its products
            assert torch.allclose(by_id[measured.prompt.id].kl, measured.kl, atol=1e-5)
    assert Counter(key.split("/")[1] for key in several.summary if key.startswith("teacher/")) == {
        "wide": 3, "narrow": 3,
    }  # fmt: skip
    assert several.summary["tokens"] == sum(len(t.ids) for t in several.tokens)


def test_the_view_of_every_reader_is_encoded_for_its_own_teacher(tokenizer, two, prompts):
    models = models_of(tokenizer, two, split(prompts[:2], *two))
    for prompt in prompts[:2]:
        encoded = models.encode(prompt, View.FULL, Reader.TEACHER)
        assert encoded.ids == models.teacher_of(prompt).encode(prompt).ids


@pytest.mark.parametrize("kind", ["several teachers", "a bias"])
def test_merged_terms_of_vgs_are_refused_before_step_1(tokenizer, teacher, kind):
    student = build_model(tokenizer, 0)
    several = {"a": teacher, "b": build_model(tokenizer, 1)}
    models = Models(student, teacher, student.vocabulary_size)
    check_heads(SimpleNamespace(objective=METHODS["vgs"](merged=True), models=models))
    if kind == "several teachers":
        models = replace(models, teacher=None, teachers=several)
    else:
        head = student.model.get_output_embeddings()
        head.bias = torch.nn.Parameter(torch.zeros(len(head.weight)))
    setup = SimpleNamespace(objective=METHODS["vgs"](merged=True), models=models)
    with pytest.raises(ConfigError) as caught:
        check_views(setup)
    assert (caught.value.code, caught.value.fix) == ("C002", "vgs.merged=false")
    check_heads(SimpleNamespace(objective=METHODS["vgs"](), models=models))
