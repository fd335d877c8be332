"""Hand-made scored batches for tests of objectives and signals."""

import torch

from vistill.batch import Responses, ScoredBatch, ScoredPass
from vistill.functional.heads import Head


def responses(lengths, group, vocabulary=5, has_image=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    length = torch.tensor(lengths)
    total = int(length.sum())
    return Responses(
        ids=torch.randint(vocabulary, (total,), generator=generator),
        rollout=torch.repeat_interleave(torch.arange(len(lengths)), length),
        group=torch.tensor(group),
        lengths=length,
        has_image=torch.ones(max(group) + 1, dtype=torch.bool) if has_image is None else torch.tensor(has_image),
        tie_noise=torch.rand(total, generator=generator),
    )


def identity_head(vocabulary):
    """Hidden states are the logits."""
    return Head(torch.eye(vocabulary))


def logits_pass(logits, ids=None):
    log_prob = None if ids is None else torch.log_softmax(logits, -1).gather(-1, ids[:, None])[:, 0]
    return ScoredPass(log_prob, logits, identity_head(logits.shape[-1]))


def random_batch(lengths, group, vocabulary=5, seed=0, has_image=None):
    """Student, teacher and degraded teacher with random logits; the student's carry gradient."""
    r = responses(lengths, group, vocabulary, has_image, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    draw = lambda: torch.randn(r.num_tokens, vocabulary, generator=generator)
    student, full, blurred = draw().requires_grad_(), draw(), draw()
    batch = ScoredBatch(
        r,
        {
            "student.full": logits_pass(student),
            "teacher.full": logits_pass(full, r.ids),
            "teacher.pixelated": logits_pass(blurred, r.ids),
        },
    )
    return batch, student


def loss_of(objective, batch):
    from vistill.batch import reduce_terms

    signals = objective.signals(batch)
    return reduce_terms(objective.terms(batch, signals), batch.responses.counts())[0]
