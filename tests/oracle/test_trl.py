"""TRL 1.16 as oracle: our losses equal TRL's own loss code on the same ids and images."""

import inspect

import pytest
import torch
from conftest import build_model

from vistill.batch import reduce_terms
from vistill.data.diagrams import diagram_prompts
from vistill.functional.heads import Head
from vistill.functional.rows import Target, reverse_kl_from_hidden
from vistill.models.scoring import EncodedGroup, pad_rows, score
from vistill.objectives import OPD
from vistill.training.models_of_run import Models
from vistill.training.step_inputs import (
    encode_step,
    flatten_responses,
    parts_with_gradient,
    score_without_gradient,
)
from vistill.types import Finish, Rollout, RolloutGroup

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]
trl = pytest.importorskip("trl", reason="the extra `oracle` is not installed")


def trl_trainer(teacher):
    """A trainer with only the attributes that `_compute_loss` reads. The loss code is TRL's own."""
    from accelerate import Accelerator
    from trl import DistillationTrainer

    trainer = object.__new__(DistillationTrainer)
    trainer.accelerator = Accelerator(cpu=True)
    trainer.teacher_model = teacher.model
    trainer.beta, trainer.temperature = 1.0, 1.0
    trainer._is_vlm = True
    trainer.model_kwarg_keys = set(inspect.signature(teacher.model.forward).parameters)
    trainer._forward_redirection = lambda wrapper, inner, method, *args, **kwargs: method(
        *args, **kwargs
    )
    return trainer


def trl_inputs(vlm, groups):
    """The same rows in TRL's layout: left-padded prompts, right-padded completions, one image."""
    rows = [(g.prompt, r) for g in groups for r in g.responses]
    prompt_width, width = max(len(p.ids) for p, _ in rows), max(len(r) for _, r in rows)

    def pad(n):
        return [vlm.pad_id] * n

    prompt_ids = torch.tensor([pad(prompt_width - len(p.ids)) + list(p.ids) for p, _ in rows])
    prompt_mask = torch.tensor(
        [[0] * (prompt_width - len(p.ids)) + [1] * len(p.ids) for p, _ in rows]
    )
    completion_ids = torch.tensor([list(r) + pad(width - len(r)) for _, r in rows])
    completion_mask = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for _, r in rows])
    types = torch.cat(
        [
            (prompt_ids == vlm.family.image_id).int() * prompt_mask.int(),
            torch.zeros_like(completion_ids).int(),
        ],
        1,
    )
    return {
        "prompt_ids": prompt_ids, "prompt_mask": prompt_mask,
        "completion_ids": completion_ids, "completion_mask": completion_mask,
        "pixel_values": torch.cat([p.pixels["pixel_values"] for p, _ in rows]),
        "image_grid_thw": torch.cat([p.pixels["image_grid_thw"] for p, _ in rows]),
        "mm_token_type_ids": types,
    }  # fmt: skip


def make_groups(vlm, lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    prompts = diagram_prompts("train", len(lengths), seed)

    def draw(n):
        return tuple(int(i) for i in torch.randint(20, 300, (n,), generator=generator))

    groups = [
        RolloutGroup(p, tuple(Rollout(draw(n), k, Finish.LENGTH) for k, n in enumerate(ns)))
        for p, ns in zip(prompts, lengths, strict=True)
    ]
    encoded = [EncodedGroup(vlm.encode(g.prompt), tuple(r.ids for r in g.rollouts)) for g in groups]
    return groups, encoded


def gradients(vlm):
    return {n: p.grad.clone() for n, p in vlm.model.named_parameters() if p.grad is not None}


def assert_close(ours, theirs):
    assert set(ours) == set(theirs)
    top = max(float(g.abs().max()) for g in theirs.values())
    for name, gradient in theirs.items():
        assert float((ours[name] - gradient).abs().max()) <= 1e-5 * max(1.0, top), name


def test_opd_loss_and_gradient_equal_trl_on_responses_of_equal_length(tokenizer, teacher):
    student = build_model(tokenizer, 0)
    groups, encoded = make_groups(student, [[9, 9, 9], [9, 9, 9]])
    models, objective = Models(student, teacher, student.vocabulary_size), OPD()
    responses = flatten_responses(groups, 0, 0, student.device)
    reading = encode_step(models, groups, objective.passes(), responses)
    batch = score_without_gradient(models, reading, objective.passes())
    for micro, cut in parts_with_gradient(
        models, reading, batch, objective.passes(), objective.signals(batch)
    ):
        loss, _ = reduce_terms(objective.terms(micro, cut), responses.counts())
        loss.backward()
    ours = gradients(student)

    student.model.zero_grad()
    num_tokens = torch.tensor(responses.num_tokens)
    theirs, _, _ = trl_trainer(teacher)._compute_loss(
        student.model, trl_inputs(student, encoded), num_tokens
    )
    theirs.backward()
    assert loss.item() == pytest.approx(theirs.item(), abs=1e-5)
    assert_close(ours, gradients(student))


def test_per_token_reverse_kl_equals_trl_on_responses_of_unequal_length(tokenizer, teacher):
    """TRL averages over all tokens, we average per response. Per token the numbers are equal."""
    student = build_model(tokenizer, 0)
    _, encoded = make_groups(student, [[3, 11], [7, 5], [12, 2]], seed=1)
    ids = torch.tensor([i for g in encoded for r in g.responses for i in r])
    with torch.no_grad():
        target = score(teacher, encoded, ids, student.vocabulary_size)
    scored = score(student, encoded, ids, student.vocabulary_size)
    targets = [Target(1.0, target.states(), target.projection())]
    loss = reverse_kl_from_hidden(scored.states(), scored.projection(), targets).mean()
    loss.backward()
    ours = gradients(student)
    student.model.zero_grad()
    theirs, _, _ = trl_trainer(teacher)._compute_loss(
        student.model, trl_inputs(student, encoded), torch.tensor(len(ids))
    )
    theirs.backward()
    assert loss.item() == pytest.approx(theirs.item(), abs=1e-5)
    assert_close(ours, gradients(student))
    assert pad_rows(encoded, 0).mask.sum() == sum(
        len(g.prompt.ids) * 2 + sum(map(len, g.responses)) for g in encoded
    )


def test_our_reverse_kl_equals_trls_tiled_kernel():
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    g = torch.Generator().manual_seed(0)
    rows, vocabulary = 23, 301
    student = torch.randn(1, rows, 16, generator=g).requires_grad_()
    teacher = torch.randn(1, rows, 24, generator=g)
    heads = torch.randn(vocabulary, 16, generator=g), torch.randn(vocabulary, 24, generator=g)
    out = _chunked_divergence_loss(
        student, teacher, *heads, torch.ones(1, rows), 1.0, num_items_in_batch=torch.tensor(rows)
    )
    out[0].backward()
    theirs, student_grad = out[0].item(), student.grad.clone()
    student.grad = None
    ours = reverse_kl_from_hidden(
        student[0], Head(heads[0]), [Target(1.0, teacher[0], Head(heads[1]))]
    ).mean()
    ours.backward()
    assert ours.item() == pytest.approx(theirs, rel=1e-5)
    assert torch.allclose(student.grad, student_grad, atol=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_our_jensen_shannon_equals_trls_gkd_loss_in_value_and_gradient(beta):
    from trl.experimental.gkd.gkd_trainer import GKDTrainer

    from vistill.functional.divergences import jensen_shannon

    g = torch.Generator().manual_seed(0)
    student, teacher = (
        torch.randn(19, 53, generator=g).requires_grad_(),
        torch.randn(19, 53, generator=g),
    )
    theirs = GKDTrainer.generalized_jsd_loss(
        student[None], teacher[None], beta=beta, reduction="sum"
    )
    (expected,) = torch.autograd.grad(theirs, student)
    ours = jensen_shannon(student, teacher, beta).sum()
    (grad,) = torch.autograd.grad(ours, student)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert torch.allclose(grad, expected, atol=1e-6)


@pytest.mark.parametrize(("loss_type", "averaging"), [("bnpo", "token"), ("grpo", "response")])
def test_our_grpo_equals_trls_loss_in_value_and_gradient(loss_type, averaging):
    """The log-probabilities reach every branch of TRL's loss: both clips, the dual clip and k3."""
    from collections import defaultdict
    from types import SimpleNamespace

    from accelerate import Accelerator
    from batches import logits_pass, responses
    from trl import GRPOTrainer

    from vistill.batch import ScoredBatch
    from vistill.objectives import METHODS

    lengths = [5, 5, 5, 5]
    r = responses(lengths, [0, 0, 0, 0], vocabulary=11)
    g = torch.Generator().manual_seed(1)

    def draw():
        return 2 * torch.randn(20, 11, generator=g)

    student = draw().requires_grad_()
    passes = {"student.full": logits_pass(student, r.ids), "old.full": logits_pass(draw(), r.ids)}
    # Keep k3 below 10, where ours is clamped.
    passes["reference.full"] = logits_pass(student.detach() + 0.3 * draw(), r.ids)
    batch = ScoredBatch(r, passes)
    method = METHODS["grpo"](updates=2, reference_weight=0.04, averaging=averaging)
    signals = method.signals(batch)
    ours = reduce_terms(method.terms(batch, signals), r.counts())[0]
    (grad,) = torch.autograd.grad(ours, student)

    log_prob = torch.log_softmax(student, -1).gather(-1, r.ids[:, None]).reshape(4, 5)
    trainer = object.__new__(GRPOTrainer)
    trainer.__dict__ |= {
        "accelerator": Accelerator(cpu=True),
        "model": SimpleNamespace(training=True),
        "aux_loss_enabled": False,
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "importance_sampling_level": "token",
        "beta": 0.04,
        "loss_type": loss_type,
        "epsilon_low": 0.2,
        "epsilon_high": 0.3,
        "use_vllm": False,
        "args": SimpleNamespace(delta=3.0, use_bias_correction_kl=False),
        "_entropy_bonus_enabled": False,
        "current_gradient_accumulation_steps": 1,
        "_metrics": {"train": defaultdict(list)},
        "_get_per_token_logps_and_entropies": lambda *a, **k: (log_prob, torch.zeros(4, 5), None),
    }
    blank = torch.zeros(4, 1, dtype=torch.long)
    inputs = {
        "prompt_ids": blank,
        "prompt_mask": blank,
        "completion_ids": r.ids.reshape(4, 5),
        "completion_mask": torch.ones(4, 5, dtype=torch.long),
        "advantages": signals["group_advantage"],
        "old_per_token_logps": batch["old.full"].sampled().reshape(4, 5),
        "ref_per_token_logps": batch["reference.full"].sampled().reshape(4, 5),
    }
    theirs = trainer._compute_loss(None, inputs)
    (expected,) = torch.autograd.grad(theirs, student)
    metrics = trainer._metrics["train"]
    assert metrics["clip_ratio/low_mean"][0] > 0
    assert metrics["clip_ratio/high_mean"][0] > 0
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert torch.allclose(grad, expected, atol=1e-6)
    watched = {t.name: t for t in method.terms(batch, signals)}
    for side in ("low", "high"):
        share = watched[f"clip_{side}_share"].values.mean().item()
        assert share == pytest.approx(metrics[f"clip_ratio/{side}_mean"][0])


def test_our_position_weights_equal_trls_iw_opd_loss():
    from collections import defaultdict
    from types import SimpleNamespace

    from batches import logits_pass, responses
    from trl.experimental.iw_opd.iw_opd_trainer import IWOPDTrainer

    from vistill.batch import ScoredBatch
    from vistill.objectives import METHODS

    r = responses([6, 6], [0, 0], vocabulary=9)
    g = torch.Generator().manual_seed(2)
    student, teacher = (
        torch.randn(12, 9, generator=g).requires_grad_(),
        torch.randn(12, 9, generator=g),
    )
    passes = {
        "student.full": logits_pass(student, r.ids),
        "old.full": logits_pass(student.detach(), r.ids),
    }
    batch = ScoredBatch(r, passes | {"teacher.full": logits_pass(teacher, r.ids)})
    method = METHODS["iw_opd"]()
    ours = reduce_terms(method.terms(batch, method.signals(batch)), r.counts())[0]
    (grad,) = torch.autograd.grad(ours, student)
    trainer = object.__new__(IWOPDTrainer)
    trainer.__dict__ |= {
        "temperature": 1.0,
        "iw_opd_gamma": 0.5,
        "iw_opd_epsilon": 1e-8,
        "model": SimpleNamespace(training=True),
        "_metrics": {"train": defaultdict(list)},
    }
    ids = r.ids.reshape(2, 6)
    theirs = trainer._compute_iw_opd_loss(
        student.reshape(2, 6, 9),
        ids,
        ids,
        batch["teacher.full"].sampled().reshape(2, 6),
        num_items_in_batch=12,
    )
    (expected,) = torch.autograd.grad(theirs, student)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert torch.allclose(grad, expected, atol=1e-6)
