"""Small scored batches for tests of objectives and signals."""

import torch

from vistill.batch import Responses, ScoredBatch, ScoredPass
from vistill.functional.heads import Head
from vistill.training.step_inputs import cut_gradient, cut_signal


def responses(lengths, group, vocabulary=5, has_image=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    length = torch.tensor(lengths)
    total = int(length.sum())
    return Responses(
        ids=torch.randint(vocabulary, (total,), generator=generator),
        rollout=torch.repeat_interleave(torch.arange(len(lengths)), length),
        group=torch.tensor(group),
        lengths=length,
        has_image=torch.ones(max(group) + 1, dtype=torch.bool)
        if has_image is None
        else torch.tensor(has_image),
        tie_noise=torch.rand(total, generator=generator),
        reward=torch.rand(len(lengths), generator=generator).round(),
    )


def identity_head(vocabulary):
    """A head that returns the hidden states as logits."""
    return Head(torch.eye(vocabulary))


def logits_pass(logits, ids=None):
    log_prob = (
        None
        if ids is None
        else torch.log_softmax(logits.detach(), -1).gather(-1, ids[:, None])[:, 0]
    )
    return ScoredPass(log_prob, logits, identity_head(logits.shape[-1]))


def random_batch(lengths, group, vocabulary=5, seed=0, has_image=None):
    """Random logits of student, teacher and degraded teacher. The student's carry gradient."""
    r = responses(lengths, group, vocabulary, has_image, seed)
    generator = torch.Generator().manual_seed(seed + 1)

    def draw():
        return torch.randn(r.num_tokens, vocabulary, generator=generator)

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


def method_batch(method, lengths, group, vocabulary=7, seed=0, has_image=None, spread=1.0):
    """Random logits of every pass of a method. Each is a leaf, so that stray gradient shows."""
    r = responses(lengths, group, vocabulary, has_image, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    leaves = {
        p.name: (
            spread * torch.randn(r.num_tokens, vocabulary, generator=generator)
        ).requires_grad_()
        for p in method.passes()
    }
    return ScoredBatch(r, {name: logits_pass(leaf, r.ids) for name, leaf in leaves.items()}), leaves


def passes_without_gradient(method, batch):
    """The batch that signals see: only the passes without gradient."""
    names = {p.name for p in method.passes() if not p.gradient}
    passes = {
        name: ScoredPass(s.log_prob.detach(), s.hidden.detach(), s.head)
        for name, s in batch.passes.items()
        if name in names
    }
    return ScoredBatch(batch.responses, passes, batch.memory, batch.progress)


def cut_like_loop(method, batch, signals):
    """The batch that the loop gives to `terms`: gradient is cut outside the `rows` of a pass."""
    passes = dict(batch.passes)
    for p in method.passes():
        if p.gradient:
            scored = ScoredPass(None, passes[p.name].hidden, passes[p.name].head)
            passes[p.name] = cut_gradient(scored, signals[p.rows]) if p.rows else scored
    return ScoredBatch(batch.responses, passes, batch.memory, batch.progress)


def terms_of(method, batch, signals=None):
    signals = method.signals(passes_without_gradient(method, batch)) if signals is None else signals
    return method.terms(cut_like_loop(method, batch, signals), signals)


def loss_of(objective, batch):
    from vistill.batch import reduce_terms

    return reduce_terms(terms_of(objective, batch), batch.responses.counts())[0]


def cut_signals(signals, batch, rows, keep):
    return {name: cut_signal(value, batch.responses, rows, keep) for name, value in signals.items()}
