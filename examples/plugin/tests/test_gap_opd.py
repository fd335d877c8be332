"""The method on made-up logits: which tokens it learns from, and where it becomes `opd`."""

import pytest
import torch
from vistill_gap_opd import GapOPD

from vistill.batch import Responses, ScoredBatch, ScoredPass, reduce_terms
from vistill.errors import ConfigError
from vistill.functional.heads import Head
from vistill.objectives import OPD

LENGTHS, VOCABULARY = [4, 6], 5


def make_batch(seed=0):
    """Two rollouts of one prompt. The head is the identity, so hidden states are the logits."""
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(LENGTHS)
    ids = torch.randint(VOCABULARY, (tokens,), generator=generator)
    responses = Responses(
        ids=ids,
        rollout=torch.repeat_interleave(torch.arange(2), torch.tensor(LENGTHS)),
        group=torch.tensor([0, 0]),
        lengths=torch.tensor(LENGTHS),
        has_image=torch.tensor([True]),
        tie_noise=torch.rand(tokens, generator=generator),
    )

    def read(logits):
        log_prob = torch.log_softmax(logits.detach(), -1).gather(-1, ids[:, None])[:, 0]
        return ScoredPass(log_prob, logits, Head(torch.eye(VOCABULARY)))

    student = torch.randn(tokens, VOCABULARY, generator=generator).requires_grad_()
    teacher = torch.randn(tokens, VOCABULARY, generator=generator).requires_grad_()
    passes = {"student.full": read(student), "teacher.full": read(teacher)}
    passes["old.full"] = read(student.detach())
    return ScoredBatch(responses, passes), student, teacher


def loss_of(method, batch):
    terms = method.terms(batch, method.signals(batch))
    return reduce_terms(terms, batch.responses.counts())[0]


def test_with_share_1_it_is_opd():
    batch, _, _ = make_batch()
    assert float(loss_of(GapOPD(share=1.0), batch)) == pytest.approx(float(loss_of(OPD(), batch)))


def test_it_learns_from_the_tokens_with_the_largest_gap():
    batch, student, teacher = make_batch()
    signals = GapOPD(share=0.5).signals(batch)
    loss_of(GapOPD(share=0.5), batch).backward()
    learned = student.grad.abs().sum(-1) > 0
    assert torch.equal(learned, signals["top"])
    assert learned.tolist().count(True) == 2 + 3
    assert signals["gap"][:4][learned[:4]].min() >= signals["gap"][:4][~learned[:4]].max()
    assert teacher.grad is None


def test_the_weights_of_a_prompt_sum_to_1():
    batch, _, _ = make_batch()
    assert float(GapOPD(share=0.3).signals(batch)["token_weight"].sum()) == pytest.approx(1.0)


def test_a_share_out_of_range_is_refused():
    with pytest.raises(ConfigError):
        GapOPD(share=0.0)
