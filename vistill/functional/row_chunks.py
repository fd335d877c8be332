"""Rules on logits, from hidden states, chunk by chunk.

The head runs on a chunk of rows, over the whole vocabulary. A chunk goes block by block through the
kernels, or at once through one Triton kernel. With weights the products of a chunk are overwritten
by their gradient, and two matrix products carry it on to the hidden states and to the head.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vistill.flops_counter import count
from vistill.functional.heads import Head, row_width
from vistill.functional.kernels import (
    AutogradRule,
    Block,
    Rule,
    TritonKernel,
    find_kernel,
    find_triton_kernel,
)
from vistill.functional.mixed_heads import MixedHead
from vistill.functional.tiles import tiled_log_prob

#: Bytes of logits of one pass that exist at the same time.
CHUNK_BYTES = {"cpu": 80 << 20, "cuda": 1 << 29}
#: Elements of a block that fit into a cache.
BLOCK_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 24}


class States(NamedTuple):
    """Hidden states and head of another pass over the same rows. No gradient reaches them."""

    hidden: Float[Tensor, "R H"]
    head: Head


@dataclass(frozen=True)
class RowRule:
    """A rule on the rows, with its inputs."""

    rule: Rule
    others: tuple[int, ...] = (0,)
    """Indices of the other passes it takes, in its order."""
    weights: Float[Tensor, " R"] | None = None
    """Weight of each value in the loss, up to a common factor. Rows with weight 0 are skipped."""
    ids: Int[Tensor, " R"] | None = None
    """The sampled ids, for `log_prob_rows` only."""

    def sampled_ids(self) -> Tensor:
        """The sampled ids of a rule that has them."""
        assert self.ids is not None
        return self.ids


class RowGradients(NamedTuple):
    """Values of each rule, and the gradients of their weighted sum if there were weights."""

    values: Float[Tensor, "A R"]
    hidden: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None


@dataclass(frozen=True)
class LogitsLoss:
    """Some rules on the same logits: everything except the student's states and the weights."""

    head: Head
    others: tuple[States, ...]
    rules: tuple[RowRule, ...]

    def loss_weights(self) -> Tensor | None:
        """The known weights [A, R], or None.

        A rule without weights counts as watched only and gets weight 0. If it enters the loss after
        all, the backward pass computes the gradient again.
        """
        known = [rule.weights for rule in self.rules if rule.weights is not None]
        if not known:
            return None
        zeros = torch.zeros_like(known[0])
        return torch.stack(
            [zeros if rule.weights is None else rule.weights for rule in self.rules]
        ).detach()

    def with_operands(self) -> "LogitsLoss":
        """The same loss with rounded weights of the heads, made once for all chunks."""
        others = tuple(States(s.hidden, s.head.with_operands()) for s in self.others)
        return replace(self, head=self.head.with_operands(), others=others)

    def take(self, rows: Tensor) -> "LogitsLoss":
        """The same loss on some rows."""
        rules = tuple(r if r.ids is None else replace(r, ids=r.ids[rows]) for r in self.rules)
        others = tuple(States(s.hidden[rows], s.head) for s in self.others)
        return replace(self, others=others, rules=rules)

    @torch.no_grad()
    def run(
        self, hidden: Tensor, weights: Tensor | None, is_head_trainable: bool = True
    ) -> RowGradients:
        """Values, and with weights the gradients.

        If every rule has weights, rows that no rule weighs are skipped and their values are 0.
        """
        with torch.autocast(hidden.device.type, enabled=False):
            rows = self.weighted_rows(weights)
            if rows is None or len(rows) == len(hidden):
                return self.with_operands().run_all(hidden, weights, is_head_trainable)
            part = (
                self.take(rows)
                .with_operands()
                .run_all(
                    hidden[rows], None if weights is None else weights[:, rows], is_head_trainable
                )
            )
            values = part.values.new_zeros(len(self.rules), len(hidden))
            values.index_copy_(1, rows, part.values)
            if part.hidden is None:
                return part._replace(values=values)
            grad = torch.zeros_like(hidden).index_copy_(0, rows, part.hidden)
            return part._replace(values=values, hidden=grad)

    def weighted_rows(self, weights: Tensor | None) -> Tensor | None:
        """Indices of the rows that some rule weighs, or None if a rule is only watched."""
        if any(rule.weights is None for rule in self.rules):
            return None
        weights = self.loss_weights() if weights is None else weights
        return None if weights is None else torch.nonzero((weights != 0).any(0))[:, 0]

    def run_all(
        self, hidden: Tensor, weights: Tensor | None, is_head_trainable: bool
    ) -> RowGradients:
        """Values and gradients of every row, chunk by chunk, in the same buffers."""
        w, dtype, needs_grad = self.head.weight, self.head.logits_dtype, weights is not None
        values = torch.zeros(len(self.rules), len(hidden), dtype=dtype, device=w.device)
        triton = self.triton_kernel()
        if not needs_grad and triton is None and self.is_log_prob_only():
            values[0] = tiled_log_prob(hidden, self.head, self.rules[0].sampled_ids())
            return RowGradients(values)
        self.count(len(hidden), needs_grad + (needs_grad and is_head_trainable))
        gradients = HeadGradients(self.head, hidden, is_head_trainable) if needs_grad else None
        size = self.chunk_rows(len(hidden))
        buffers = [
            torch.empty(size, self.row_width, dtype=dtype, device=w.device)
            for _ in range(1 + len(self.others))
        ]
        block = None if triton else Block(buffers[0][:, : len(w)], self.block_rows(size))
        for start in range(0, len(hidden), size):
            rows = slice(start, min(start + size, len(hidden)))
            num = rows.stop - start
            products = self.head.project(hidden[rows], buffers[0][:num])
            others = [
                s.head.project(s.hidden[rows], buffer[:num])
                for s, buffer in zip(self.others, buffers[1:], strict=True)
            ]
            chunk_weights = None if weights is None else weights[:, rows].to(dtype)
            if block is None:
                assert triton is not None
                values[0, rows] = self.run_triton(triton, products, others, chunk_weights, rows)
            else:
                values[:, rows] = self.run_blocks(block, products, others, chunk_weights, rows)
            if gradients is not None:  # the kernels replaced the products by their gradient
                gradients.add(buffers[0][:num], hidden[rows], rows)
        if gradients is None:
            return RowGradients(values)
        return RowGradients(values, gradients.hidden, gradients.weight, gradients.bias)

    def count(self, rows: int, grad_products: int) -> None:
        """Report the projection of every pass, and the products that carry the gradient back."""
        heads = [self.head, *(s.head for s in self.others)]
        size, own_size = sum(h.weight.numel() for h in heads), self.head.weight.numel()
        flops = 2.0 * rows * (size + grad_products * own_size)
        count(head_rows=rows * len(heads), flops=flops)

    @property
    def row_width(self) -> int:
        """Entries from one row of logits to the next."""
        return row_width(len(self.head.weight), self.head.weight.device)

    def chunk_rows(self, num: int) -> int:
        """Rows of a chunk, whose logits exist at the same time."""
        row_bytes = self.row_width * self.head.logits_dtype.itemsize
        limit = CHUNK_BYTES.get(self.head.weight.device.type, 1 << 29)
        return max(1, min(num, limit // row_bytes))

    def block_rows(self, num: int) -> int:
        """Rows of a block, which a kernel handles together."""
        limit = BLOCK_ELEMENTS.get(self.head.weight.device.type, 1 << 24)
        return max(1, min(num, limit // len(self.head.weight)))

    def run_blocks(
        self,
        buffers: Block,
        products: Tensor,
        others: list[Tensor],
        weights: Tensor | None,
        rows: slice,
    ) -> Tensor:
        """Values [A, C] of a chunk, block by block.

        With weights replace the products by their gradient.
        """
        size, values = len(buffers.log_p), []
        kernels = [find_kernel(rule.rule) for rule in self.rules]
        for a in range(0, len(products), size):
            b = min(a + size, len(products))
            block = buffers if b - a == size else buffers.first(b - a)
            z = self.head.product_to_logits(products[a:b])
            block.grad.zero_()
            if any(kernels):
                block.fill(z)
            block_values = []
            for number, (rule, kernel) in enumerate(zip(self.rules, kernels, strict=True)):
                if rule.ids is not None:
                    inputs = [rule.ids[rows.start + a : rows.start + b, None]]
                else:
                    inputs = [
                        self.others[i].head.product_to_logits(others[i][a:b]) for i in rule.others
                    ]
                weight = None if weights is None else weights[number, a:b]
                block_values.append((kernel or AutogradRule(rule.rule, z))(block, inputs, weight))
            values.append(torch.stack(block_values))
            if weights is not None:
                products[a:b] = self.head.product_grad(z, block.grad)
        return torch.cat(values, 1)

    def triton_kernel(self) -> TritonKernel | None:
        """The Triton kernel that handles a chunk at once, or None.

        There is one for a single rule of a known kind, on heads without softcap.
        """
        heads = [self.head, *(s.head for s in self.others)]
        has_softcap = any(h.softcap is not None for h in heads)
        if len(self.rules) != 1 or self.head.kernels != "triton" or has_softcap:
            return None
        return find_triton_kernel(self.rules[0].rule)

    def run_triton(
        self,
        kernel: TritonKernel,
        products: Tensor,
        others: list[Tensor],
        weights: Tensor | None,
        rows: slice,
    ) -> Tensor:
        """Values [C] of a chunk. With weights replace the products by their gradient."""
        # `models/backends.py` has checked that the extra `triton` is installed.
        from vistill import triton_kernels

        rule, scale = self.rules[0], self.head.scale
        rule_weights = None if weights is None else weights[0]
        if kernel.kind == "log_prob":
            ids = rule.sampled_ids()[rows]
            return triton_kernels.log_prob_rows(products, ids, rule_weights, scale)
        (index,) = rule.others
        scales = (scale, self.others[index].head.scale)
        return triton_kernels.divergence_rows(
            kernel.kind, kernel.beta, products, others[index], rule_weights, scales
        )

    def is_log_prob_only(self) -> bool:
        """Whether the only rule is the log-probability of the sampled token, under one head."""
        is_mixed = isinstance(self.head, MixedHead)
        return len(self.rules) == 1 and self.rules[0].ids is not None and not is_mixed


class HeadGradients:
    """Gradients of the states and of the head, collected chunk by chunk.

    The gradient of the products comes in rows of `row_width`. The columns beyond the vocabulary
    become 0, so that they add nothing to the products of aligned size.
    """

    def __init__(self, head: Head, hidden: Float[Tensor, "N H"], is_head_trainable: bool) -> None:
        w, dtype, self.vocabulary = head.operand_weight(), head.logits_dtype, len(head.weight)
        self.head, self.product_weight, self.row_buffer = head, w, w.new_empty(0, 0)
        self.hidden = torch.empty_like(hidden)
        self.weight = self.bias = self.all_rows = None
        if is_head_trainable:
            self.all_rows = torch.zeros(w.shape, dtype=dtype, device=w.device)
            self.weight = self.all_rows[: self.vocabulary]
        if head.bias is not None:
            self.bias = torch.zeros(self.vocabulary, dtype=dtype, device=w.device)

    def add(self, grad_rows: Float[Tensor, "R W"], hidden: Tensor, rows: slice) -> None:
        """Carry the gradient of one chunk's products on to its states and to the head."""
        w = self.product_weight
        if len(w) > self.vocabulary:
            grad_rows[:, self.vocabulary :] = 0
        if self.bias is not None:
            self.bias += grad_rows[:, : self.vocabulary].sum(0)
        grad = self.in_weight_precision(grad_rows)[:, : len(w)]
        with self.head.products():
            self.hidden[rows] = grad @ w
            if self.all_rows is not None:
                h = self.head.operand(hidden) if self.head.rounds_operands else hidden
                accumulate_head_grad(self.all_rows, grad, h)

    def in_weight_precision(self, grad_rows: Float[Tensor, "R W"]) -> Float[Tensor, "R W"]:
        """The rows in the precision of the weight, in one buffer for all chunks."""
        if grad_rows.dtype == self.product_weight.dtype:  # on a CPU bf16 is rounding only
            return self.head.operand(grad_rows) if self.head.rounds_operands else grad_rows
        if len(self.row_buffer) < len(grad_rows):
            self.row_buffer = self.product_weight.new_empty(grad_rows.shape)
        return self.row_buffer[: len(grad_rows)].copy_(grad_rows)


def accumulate_head_grad(
    grad_weight: Float[Tensor, "V H"], grad: Float[Tensor, "R V"], hidden: Float[Tensor, "R H"]
) -> None:
    """Add `grad^T h` to the gradient of the head, in its accumulation precision."""
    if hidden.dtype == grad.dtype == grad_weight.dtype:
        torch.addmm(grad_weight, grad.T, hidden, out=grad_weight)
    elif grad.is_cuda and grad_weight.dtype == torch.float32 and grad.dtype != torch.float32:
        torch.addmm(
            grad_weight,
            grad.T,
            hidden.to(grad.dtype),
            out_dtype=torch.float32,
            out=grad_weight,
        )
    else:
        grad_weight.add_(grad.T @ hidden.to(grad.dtype))
