"""TRL 1.16 as oracle: our standard OPD equals `DistillationTrainer`'s own loss on the same ids and images."""

import inspect

import pytest
import torch
from conftest import build

from vistill.batch import reduce_terms
from vistill.data.diagrams import diagram_prompts
from vistill.functional.heads import Head
from vistill.functional.rows import Target, reverse_kl_from_hidden
from vistill.models.scoring import EncodedGroup, score, to_rows
from vistill.objectives import OPD
from vistill.training.reading import Cast, lay_out, prepare, read_with_gradient, read_without_gradient
from vistill.types import Finish, Rollout, RolloutGroup

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]
trl = pytest.importorskip("trl", reason="the extra `oracle` is not installed")


def trl_trainer(teacher):
    """A trainer with only what `_compute_loss` reads: the loss code is TRL's own, unchanged."""
    from accelerate import Accelerator
    from trl import DistillationTrainer

    trainer = object.__new__(DistillationTrainer)
    trainer.accelerator = Accelerator(cpu=True)
    trainer.teacher_model = teacher.model
    trainer.beta, trainer.temperature = 1.0, 1.0
    trainer._is_vlm = True
    trainer.model_kwarg_keys = set(inspect.signature(teacher.model.forward).parameters)
    trainer._forward_redirection = lambda wrapper, inner, method, *args, **kwargs: method(*args, **kwargs)
    return trainer


def trl_inputs(vlm, groups):
    """The same rows as TRL lays them out: left-padded prompts, right-padded completions, one image a row."""
    rows = [(g.prompt, r) for g in groups for r in g.responses]
    prompt_width, width = max(len(p.ids) for p, _ in rows), max(len(r) for _, r in rows)
    pad = lambda n: [vlm.pad_id] * n
    prompt_ids = torch.tensor([pad(prompt_width - len(p.ids)) + list(p.ids) for p, _ in rows])
    prompt_mask = torch.tensor([[0] * (prompt_width - len(p.ids)) + [1] * len(p.ids) for p, _ in rows])
    completion_ids = torch.tensor([list(r) + pad(width - len(r)) for _, r in rows])
    completion_mask = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for _, r in rows])
    types = torch.cat(
        [(prompt_ids == vlm.family.image_id).int() * prompt_mask.int(), torch.zeros_like(completion_ids).int()], 1
    )
    return {
        "prompt_ids": prompt_ids, "prompt_mask": prompt_mask, "completion_ids": completion_ids, "completion_mask": completion_mask,
        "pixel_values": torch.cat([p.pixels["pixel_values"] for p, _ in rows]),
        "image_grid_thw": torch.cat([p.pixels["image_grid_thw"] for p, _ in rows]),
        "mm_token_type_ids": types,
    }  # fmt: skip


def make_groups(vlm, lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    prompts = diagram_prompts("train", len(lengths), seed)
    draw = lambda n: tuple(int(i) for i in torch.randint(20, 300, (n,), generator=generator))
    groups = [
        RolloutGroup(p, tuple(Rollout(draw(n), k, Finish.LENGTH) for k, n in enumerate(ns)))
        for p, ns in zip(prompts, lengths, strict=True)
    ]
    encoded = [EncodedGroup(vlm.encode(g.prompt), tuple(r.ids for r in g.rollouts)) for g in groups]
    return groups, encoded


def gradients(vlm):
    return {n: p.grad.clone() for n, p in vlm.model.named_parameters() if p.grad is not None}


def close(ours, theirs):
    assert set(ours) == set(theirs)
    top = max(float(g.abs().max()) for g in theirs.values())
    for name, gradient in theirs.items():
        assert float((ours[name] - gradient).abs().max()) <= 1e-5 * max(1.0, top), name


def test_opd_loss_and_gradient_equal_trl_on_responses_of_equal_length(tokenizer, teacher):
    student = build(tokenizer, 0)
    groups, encoded = make_groups(student, [[9, 9, 9], [9, 9, 9]])
    cast, objective = Cast(student, teacher, student.vocabulary_size), OPD()
    responses = lay_out(groups, 0, 0, student.device)
    reading = prepare(cast, groups, objective.passes(), responses, "auto")
    batch = read_without_gradient(cast, reading, objective.passes())
    micro, cut = read_with_gradient(cast, reading, batch, objective.passes(), objective.signals(batch), [0, 1])
    loss, _ = reduce_terms(objective.terms(micro, cut), responses.counts())
    loss.backward()
    ours = gradients(student)

    student.model.zero_grad()
    num_tokens = torch.tensor(responses.num_tokens)
    theirs, _, _ = trl_trainer(teacher)._compute_loss(student.model, trl_inputs(student, encoded), num_tokens)
    theirs.backward()
    assert loss.item() == pytest.approx(theirs.item(), abs=1e-5)
    close(ours, gradients(student))


def test_per_token_reverse_kl_equals_trl_on_responses_of_unequal_length(tokenizer, teacher):
    """TRL averages over all tokens; ours per response. Per token both are the same numbers."""
    student = build(tokenizer, 0)
    _, encoded = make_groups(student, [[3, 11], [7, 5], [12, 2]], seed=1)
    ids = torch.tensor([i for g in encoded for r in g.responses for i in r])
    with torch.no_grad():
        target = score(teacher, encoded, ids, student.vocabulary_size)
    own = score(student, encoded, ids, student.vocabulary_size)
    targets = [Target(1.0, target.states(), target.projection())]
    loss = reverse_kl_from_hidden(own.states(), own.projection(), targets).mean()
    loss.backward()
    ours = gradients(student)
    student.model.zero_grad()
    theirs, _, _ = trl_trainer(teacher)._compute_loss(
        student.model, trl_inputs(student, encoded), torch.tensor(len(ids))
    )
    theirs.backward()
    assert loss.item() == pytest.approx(theirs.item(), abs=1e-5)
    close(ours, gradients(student))
    assert to_rows(encoded, 0).mask.sum() == sum(len(g.prompt.ids) * 2 + sum(map(len, g.responses)) for g in encoded)


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
    ours = reverse_kl_from_hidden(student[0], Head(heads[0]), [Target(1.0, teacher[0], Head(heads[1]))]).mean()
    ours.backward()
    assert ours.item() == pytest.approx(theirs, rel=1e-5)
    assert torch.allclose(student.grad, student_grad, atol=1e-5)
