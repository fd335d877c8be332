"""From hidden states to one value per row: the one place where the language-model head runs for a loss or a signal.

The head runs on chunks of rows, whole vocabulary rows at a time, never on `[tokens, vocabulary]` at once. Where values
will be learnt from, their gradient is computed with them: student projection, target projections, gradient of the
hidden states, gradient of the head, and nothing twice. That needs the weights the values will get; they are a promise
that only saves time: backward looks whether it was kept and computes the gradient afresh where it was not.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vistill.flops_counter import count
from vistill.functional.divergences import reverse_kl
from vistill.functional.heads import Head
from vistill.functional.kernels import Block, Fused, fused_of, kernel_of, log_prob_rows
from vistill.functional.tiles import tiled_log_prob

#: Bytes of logits that exist at a time of each reading, and elements of a block that fit into a cache.
CHUNK_BYTES = {"cpu": 80 << 20, "cuda": 1 << 29}
BLOCK_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 24}

Rule = Callable[..., Tensor]
"""(student logits, logits of each other reading...) -> one value per row."""


class Target(NamedTuple):
    """One summand of a target distribution `softmax(sum of coefficient * logits)`."""

    coefficient: float
    hidden: Float[Tensor, "R H"]
    head: Head


class States(NamedTuple):
    """Another reading of the same rows. It is data: no gradient reaches it."""

    hidden: Float[Tensor, "R H"]
    head: Head


@dataclass(frozen=True)
class RowRule:
    """A rule on the rows."""

    rule: Rule
    others: tuple[int, ...] = (0,)
    """Which of the other readings it takes, in its order."""
    weights: Float[Tensor, " R"] | None = None
    """What the values will be multiplied by in the loss, up to a common factor; rows of weight 0 are not looked at."""
    ids: Int[Tensor, " R"] | None = None
    """The sampled ids, for `log_prob_rows` alone."""


def per_row(
    rule: Rule,
    hidden: Float[Tensor, "R H"],
    head: Head,
    others: Sequence[States] = (),
    weights: Float[Tensor, " R"] | None = None,
) -> Float[Tensor, " R"]:
    """`rule(student logits, other logits...)` of each row. Gradient flows through `hidden` and `head` alone.

    Args:
        rule: per row, differentiable in its first argument.
        hidden: student states.
        head: student head.
        others: the other readings.
        weights: what the values will be multiplied by in the loss, if it is known; values of weight 0 come out as 0.
    """
    return apply_row_rules(
        hidden, head, others, [RowRule(rule, tuple(range(len(others))), weights)]
    )[0]


def apply_row_rules(
    hidden: Float[Tensor, "R H"], head: Head, others: Sequence[States], asked: Sequence[RowRule]
) -> tuple[Float[Tensor, " R"], ...]:
    """Values of several rules on the same rows: every reading is projected once for all of them."""
    others = tuple(States(s.hidden.detach(), s.head.detached()) for s in others)
    work = LogitsLoss(head.detached(), others, tuple(asked))
    if not (torch.is_grad_enabled() and (hidden.requires_grad or head.weight.requires_grad)):
        return tuple(work.run(hidden.detach(), None).values)
    return tuple(RowValues.apply(hidden, head.weight, head.bias, work).unbind(0))


def reverse_kl_from_hidden(
    hidden: Float[Tensor, "R H"],
    head: Head,
    targets: Sequence[Target],
    weights: Float[Tensor, " R"] | None = None,
) -> Float[Tensor, " R"]:
    """KL(student || softmax of a linear combination of target logits) of each row, from hidden states.

    Targets that share a head are added up before it: `a h_1 W + b h_2 W = (a h_1 + b h_2) W`, one projection.
    """
    merged = merge(targets)

    def rule(own: Tensor, *logits: Tensor) -> Tensor:
        parts = [t.coefficient * z for t, z in zip(merged, logits, strict=True)]
        return reverse_kl(own, torch.stack(parts).sum(0))

    plain = len(merged) == 1 and merged[0].coefficient == 1
    others = [States(t.hidden, t.head) for t in merged]
    return per_row(reverse_kl if plain else rule, hidden, head, others, weights)


def merge(targets: Sequence[Target]) -> list[Target]:
    """Targets that share a linear head as one: its states are added up before the head instead of its logits after."""
    made: list[Target] = []
    places: dict[int, int] = {}
    for t in targets:
        if not t.head.linear:
            made.append(t)
            continue
        own = t.hidden if t.coefficient == 1 else t.coefficient * t.hidden
        place = places.setdefault(t.head.weight.data_ptr(), len(made))
        if place == len(made):
            made.append(Target(1.0, own, t.head))
        else:
            made[place] = Target(1.0, made[place].hidden + own, t.head)
    return made


class RowGradients(NamedTuple):
    """Values of each rule, and the gradients of their weighted sum where they were wanted."""

    values: Float[Tensor, "A R"]
    hidden: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None


@dataclass(frozen=True)
class LogitsLoss:
    """Everything but the student's states and the weights."""

    head: Head
    others: tuple[States, ...]
    asked: tuple[RowRule, ...]

    def promised(self) -> Tensor | None:
        """Weights [A, R], if any are known; a rule without is only watched, or the promise is not kept."""
        known = [ask.weights for ask in self.asked if ask.weights is not None]
        if not known:
            return None
        zeros = torch.zeros_like(known[0])
        return torch.stack(
            [zeros if ask.weights is None else ask.weights for ask in self.asked]
        ).detach()

    def take(self, rows: Tensor) -> "LogitsLoss":
        """The same for some rows."""
        asked = tuple(a if a.ids is None else replace(a, ids=a.ids[rows]) for a in self.asked)
        return replace(
            self, others=tuple(States(s.hidden[rows], s.head) for s in self.others), asked=asked
        )

    @torch.no_grad()
    def run(self, hidden: Tensor, weights: Tensor | None, head_learns: bool = True) -> RowGradients:
        """Values, and with weights the gradients. Rows without any weight are left out where weights are promised."""
        with torch.autocast(hidden.device.type, enabled=False):
            return self.run_some(hidden, weights, head_learns)

    def run_some(self, hidden: Tensor, weights: Tensor | None, head_learns: bool) -> RowGradients:
        """The rows that have a weight."""
        promised = self.promised() if weights is None else weights
        promised = None if any(ask.weights is None for ask in self.asked) else promised
        rows = None if promised is None else torch.nonzero((promised != 0).any(0))[:, 0]
        if rows is None or len(rows) == len(hidden):
            return self.run_all(hidden, weights, head_learns)
        part = self.take(rows).run_all(
            hidden[rows], None if weights is None else weights[:, rows], head_learns
        )
        values = part.values.new_zeros(len(self.asked), len(hidden)).index_copy_(
            1, rows, part.values
        )
        wide = (
            None
            if part.hidden is None
            else torch.zeros_like(hidden).index_copy_(0, rows, part.hidden)
        )
        return part._replace(values=values, hidden=wide)

    def run_all(self, hidden: Tensor, weights: Tensor | None, head_learns: bool) -> RowGradients:
        """Every row, chunk by chunk, in the same buffers."""
        w, wide = self.head.weight, self.head.wide
        values = torch.zeros(len(self.asked), len(hidden), dtype=wide, device=w.device)
        fused = self.fused()
        if weights is None and self.only_sampled() and fused is None:
            values[0] = tiled_log_prob(hidden, self.head, self.ids_of(self.asked[0]))
            return RowGradients(values)
        learnt = weights is not None
        self.count(len(hidden), learnt + (learnt and head_learns))
        out = torch.empty_like(hidden) if learnt else None
        dw = torch.zeros(w.shape, dtype=wide, device=w.device) if learnt and head_learns else None
        db = (
            torch.zeros(len(w), dtype=wide, device=w.device)
            if learnt and self.head.bias is not None
            else None
        )
        size = self.chunk_rows(len(hidden))
        buffers = [
            torch.empty(size, len(w), dtype=wide, device=w.device)
            for _ in range(1 + len(self.others))
        ]
        block = None if fused else Block(buffers[0], self.block_rows(size))
        for start in range(0, len(hidden), size):
            rows = slice(start, min(start + size, len(hidden)))
            num = rows.stop - start
            h = hidden[rows]
            logits = self.head.project(h, buffers[0][:num])
            seen = [
                s.head.project(s.hidden[rows], b[:num])
                for s, b in zip(self.others, buffers[1:], strict=True)
            ]
            cut = None if weights is None else weights[:, rows].to(wide)
            if block is None:
                assert fused is not None
                values[0, rows] = self.in_one_kernel(
                    fused, logits, seen, None if cut is None else cut[0], rows
                )
            else:
                values[:, rows] = self.blocks(block, logits, seen, cut, rows)
            if out is None:
                continue
            slope = logits.to(w.dtype)
            out[rows] = slope @ w
            if dw is not None:
                accumulate_head_grad(dw, slope, h)
            if db is not None:
                db += logits.sum(0)
        return RowGradients(values, out, dw, db)

    def count(self, rows: int, slopes: int) -> None:
        """Report every reading's projection, and the products that bring the gradient back."""
        heads = [self.head, *(s.head for s in self.others)]
        flops = (
            2.0 * rows * (sum(h.weight.numel() for h in heads) + slopes * self.head.weight.numel())
        )
        count(head_rows=rows * len(heads), flops=flops)

    def chunk_rows(self, num: int) -> int:
        """Rows whose logits are held together."""
        held = len(self.head.weight) * self.head.wide.itemsize
        return max(1, min(num, CHUNK_BYTES.get(self.head.weight.device.type, 1 << 29) // held))

    def block_rows(self, num: int) -> int:
        """Rows that are looked at together."""
        return max(
            1,
            min(
                num,
                BLOCK_ELEMENTS.get(self.head.weight.device.type, 1 << 24) // len(self.head.weight),
            ),
        )

    def blocks(
        self,
        buffers: Block,
        logits: Tensor,
        others: list[Tensor],
        weights: Tensor | None,
        rows: slice,
    ) -> Tensor:
        """Values [A, C] of a chunk, block by block; with weights its products become their gradient."""
        size, made = len(buffers.log_p), []
        kernels = [kernel_of(ask.rule) for ask in self.asked]
        for a in range(0, len(logits), size):
            b = min(a + size, len(logits))
            block = buffers if b - a == size else buffers.first(b - a)
            z = self.head.finish(logits[a:b])
            block.gradient.zero_()
            if any(kernels):
                block.fill(z)
            values = []
            for number, (ask, kernel) in enumerate(zip(self.asked, kernels, strict=True)):
                seen = [self.others[i].head.finish(others[i][a:b]) for i in ask.others]
                if ask.ids is not None:
                    seen = [self.ids_of(ask)[rows.start + a : rows.start + b, None]]
                weight = None if weights is None else weights[number, a:b]
                values.append((kernel or AutogradRule(ask.rule, z))(block, seen, weight))
            made.append(torch.stack(values))
            if weights is not None:
                logits[a:b] = self.head.slope(z, block.gradient)
        return torch.cat(made, 1)

    def fused(self) -> Fused | None:
        """The Triton kernel that does a chunk at once: one rule that has one, heads without softcap."""
        heads = [self.head, *(s.head for s in self.others)]
        bent = any(h.softcap is not None for h in heads)
        alone = len(self.asked) == 1
        return (
            fused_of(self.asked[0].rule)
            if alone and self.head.kernels == "triton" and not bent
            else None
        )

    def in_one_kernel(
        self,
        fused: Fused,
        logits: Tensor,
        others: list[Tensor],
        weights: Tensor | None,
        rows: slice,
    ) -> Tensor:
        """Values [C] of a chunk; with weights its products become their gradient."""
        from vistill import (
            triton_kernels as kernels,  # the extra `triton`, named by the self-test where it is missing
        )

        ask, scale = self.asked[0], self.head.scale
        if fused.kind == "log_prob":
            return kernels.log_prob_rows(logits, self.ids_of(ask)[rows], weights, scale)
        (place,) = ask.others
        scales = (scale, self.others[place].head.scale)
        return kernels.divergence_rows(
            fused.kind, fused.beta, logits, others[place], weights, scales
        )

    def only_sampled(self) -> bool:
        """Whether only the sampled token's log-probability is asked for."""
        return len(self.asked) == 1 and self.asked[0].ids is not None

    def ids_of(self, ask: RowRule) -> Tensor:
        """The ids a rule looks at."""
        assert ask.ids is not None
        return ask.ids


def accumulate_head_grad(
    dw: Float[Tensor, "V H"], slope: Float[Tensor, "R V"], hidden: Float[Tensor, "R H"]
) -> None:
    """Add `slope^T h` to the head's gradient, which is kept in the wide precision."""
    if hidden.dtype == slope.dtype == dw.dtype:
        torch.addmm(dw, slope.T, hidden, out=dw)
    elif slope.is_cuda and dw.dtype == torch.float32 and slope.dtype != torch.float32:
        torch.addmm(dw, slope.T, hidden.to(slope.dtype), out_dtype=torch.float32, out=dw)
    else:
        dw.add_(slope.T @ hidden.to(slope.dtype))


@dataclass(frozen=True)
class AutogradRule:
    """A rule without a kernel: autograd on one block."""

    rule: Rule
    logits: Tensor

    def __call__(self, block: Block, others: Sequence[Tensor], weights: Tensor | None) -> Tensor:
        """Values; with weights adds to the block's gradient."""
        if weights is None:
            return self.rule(self.logits, *others)
        with torch.enable_grad():
            leaf = self.logits.detach().requires_grad_(True)
            values = self.rule(leaf, *others)
            (slope,) = torch.autograd.grad(values, leaf, weights)
        block.gradient.add_(slope)
        return values.detach()


class RowValues(torch.autograd.Function):
    """Values whose gradient was computed with them, where the weights were promised."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, work: LogitsLoss
    ) -> Tensor:
        """`[A, R]` values. With a frozen head the unweighted gradient of the hidden states serves any weights."""
        promised, learns = work.promised(), weight.requires_grad
        if promised is None and not learns and len(work.asked) == 1:
            promised = torch.ones(1, len(hidden), device=hidden.device)
        made = work.run(hidden, promised, learns)
        ctx.work, ctx.learns, ctx.made = work, learns, made
        ctx.save_for_backward(hidden, promised)
        return made.values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Scale what was computed, in place and once, or compute it now for weights that were not the promised ones."""
        (grad,) = grads
        hidden, promised = ctx.saved_tensors
        made: RowGradients | None = ctx.made
        ctx.made = None
        if made is not None and promised is not None:
            factor = common_factor(grad, promised)
            if factor is None and not ctx.learns and len(grad) == 1 and bool((promised != 0).all()):
                factor = (grad / promised)[0, :, None] if made.bias is None else None
            if factor is not None:
                scaled = [None if x is None else x.mul_(factor) for x in made[1:]]
                return (*scaled, None)
        afresh: RowGradients = ctx.work.run(hidden, grad, ctx.learns)
        return (*afresh[1:], None)


def common_factor(grad: Float[Tensor, "A R"], promised: Float[Tensor, "A R"]) -> Tensor | None:
    """The c of `grad = c * promised`, if there is one."""
    place = promised.abs().argmax()
    largest = promised.flatten()[place]
    if float(largest) == 0:
        return torch.zeros((), device=grad.device) if not bool(grad.any()) else None
    factor = grad.flatten()[place] / largest
    kept = (grad - factor * promised).abs().max() <= 1e-6 * (factor * largest).abs()
    return factor if bool(kept) else None


def log_prob_from_hidden(
    hidden: Float[Tensor, "R H"],
    head: Head,
    ids: Int[Tensor, " R"],
    weights: Float[Tensor, " R"] | None = None,
) -> Float[Tensor, " R"]:
    """`log softmax(head(h))[id]` of each row at temperature 1, whatever the sampling temperature was.

    Without gradient, or before its weights are known, tile by tile over rows and vocabulary: nothing grows with either.
    """
    ask = RowRule(log_prob_rows, (), weights, ids)  # pyright: ignore[reportArgumentType]
    return apply_row_rules(hidden, head, (), [ask])[0]
