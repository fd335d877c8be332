"""What the GPU benchmark takes from vistill. Only this file and `gpu_switches.py` import it.

Models have the shapes of Qwen3-VL 8B (teacher) and 2B (student) and random weights. Their tokenizer
has as many entries as the released one, so that the head is cut as in a real run.
"""

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import vistill.models  # isort: skip  # noqa: F401  torchvision, before transformers is imported

import torch
from gpu_runner import PhaseClock
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from vistill import __version__ as VERSION
from vistill.batch import reduce_terms
from vistill.data.diagrams import diagram_prompts
from vistill.flops_counter import counting as count_work
from vistill.functional.divergences import reverse_kl
from vistill.functional.heads import Head
from vistill.functional.rows import States, per_row
from vistill.models.backends import backend_failure as why_no_triton
from vistill.models.backends import with_kernels
from vistill.models.families.qwen3_vl import Qwen3VLFamily
from vistill.models.loading import VLM
from vistill.models.selftest import run_selftest
from vistill.models.tiny import SPECIAL_TOKENS, TinySize, tiny_processor, train_tokenizer
from vistill.objectives import OPD, VAOPD
from vistill.rollouts.engine import RolloutRequest, Sampling
from vistill.rollouts.hf import HFEngine
from vistill.rollouts.settings import NoiseName
from vistill.rollouts.shared import SharedEngine
from vistill.runs.storage import file_hash
from vistill.training.clock import measure_rate as matrix_rate
from vistill.training.micro_batches import BatchSplit
from vistill.training.models_of_run import Models
from vistill.training.optim import make_optimizer
from vistill.training.precision import autocast
from vistill.training.settings import TrainSettings
from vistill.training.step_inputs import (
    encode_step,
    flatten_responses,
    parts_with_gradient,
    score_without_gradient,
)
from vistill.types import Finish, Rollout, RolloutGroup

__all__ = [
    "VERSION",
    "build_model",
    "build_optimizer",
    "build_step",
    "count_work",
    "encode_prompts",
    "file_hash",
    "loss_inputs",
    "loss_of_rows",
    "make_rollouts",
    "matrix_rate",
    "transformers_step",
    "why_no_triton",
]

METHODS = {"opd": OPD, "va_opd": VAOPD}
ENGINES = {
    "shared": SharedEngine,
    "copy": partial(SharedEngine, uses_copy=True),
    "graph": partial(SharedEngine, uses_copy=True, uses_graph=True),
    "generate": HFEngine,
}


@dataclass(frozen=True)
class Shape:
    """A Qwen3-VL of one size: the numbers of its published configuration."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    feed_forward: int
    tied: bool
    vision_hidden: int
    vision_depth: int
    vision_feed_forward: int
    deepstack: tuple[int, ...]
    head_dim: int = 128
    vocabulary: int = 151_936
    """Rows of the head."""
    tokens: int = 151_669
    """Entries of the tokenizer: the head is cut to them."""


STUDENT = Shape(2048, 28, 16, 8, 6144, True, 1024, 24, 4096, (5, 11, 17))
TEACHER = Shape(4096, 36, 32, 8, 12_288, False, 1152, 27, 4304, (8, 16, 24))
TOY = Shape(64, 2, 4, 2, 96, True, 64, 2, 96, (1,), 32, 2048, 1999)
TOY_TEACHER = Shape(96, 3, 4, 2, 128, False, 64, 2, 96, (1,), 32, 2048, 1999)


@dataclass(frozen=True)
class Sizes:
    """A step: G prompts, K siblings, T response tokens each, and its split to fit into memory."""

    prompts: int
    siblings: int
    tokens: int
    micro_batch_tokens: int = 4096
    """Tokens of complete prompts with their responses that are read together."""
    part_tokens: int = 2048
    """Response tokens whose activations exist together."""
    spread: int = 0
    """Responses are shorter than T by up to this many tokens, each by its own number."""
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.prompts}x{self.siblings}x{self.tokens}"


# Models


def tokenizer_of(size: int) -> PreTrainedTokenizerFast:
    """Build a tokenizer of `size` entries; a prompt uses only the words of the diagrams."""
    questions = [
        part for p in diagram_prompts("train", 400, 0) for part in p.parts if isinstance(part, str)
    ]
    small = train_tokenizer(questions)
    state = json.loads(small.backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    vocabulary |= {f"<unused {i}>": i for i in range(len(vocabulary), size)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        eos_token=small.eos_token,
        pad_token=small.pad_token,
        model_max_length=small.model_max_length,
    )
    tokenizer.chat_template = small.chat_template
    assert len(tokenizer) == size
    return tokenizer


def config_of(shape: Shape, ids: dict[str, int]) -> Qwen3VLConfig:
    """Return the published configuration with our token ids; patches of 16 are merged 2 x 2."""
    third = shape.head_dim // 2 // 3
    section = (
        [24, 20, 20] if shape.head_dim == 128 else [shape.head_dim // 2 - 2 * third, third, third]
    )
    return Qwen3VLConfig(
        text_config={
            "vocab_size": shape.vocabulary,
            "hidden_size": shape.hidden,
            "intermediate_size": shape.feed_forward,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "head_dim": shape.head_dim,
            "max_position_embeddings": 262_144,
            "tie_word_embeddings": shape.tied,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": section,
                "mrope_interleaved": True,
            },
            "pad_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "bos_token_id": None,
        },
        vision_config={
            "depth": shape.vision_depth,
            "hidden_size": shape.vision_hidden,
            "intermediate_size": shape.vision_feed_forward,
            "num_heads": 16,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": shape.hidden,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": list(shape.deepstack),
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=shape.tied,
    )


def build_model(
    shape: Shape, side: int, device: torch.device, dtype: torch.dtype, attention: str = "blocks"
) -> VLM:
    """Build a model of random weights and run its self-test.

    Images are scaled to `side` x `side` pixels. Student and teacher get the same tokenizer and the
    same image grid.
    """
    tokenizer = tokenizer_of(shape.tokens)
    ids = {token: int(tokenizer.convert_tokens_to_ids(token)) for token in SPECIAL_TOKENS}
    config = config_of(shape, ids)
    with torch.device(device):
        torch.manual_seed(0)
        model = Qwen3VLForConditionalGeneration(config).to(dtype)
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    processor = tiny_processor(TinySize(patch=16, min_pixels=side**2, max_pixels=side**2))
    family = Qwen3VLFamily(config, tokenizer, processor)
    vlm = VLM(model, tokenizer, family, "random weights", attention=attention)
    return with_kernels(run_selftest(vlm), "auto")


def build_optimizer(vlm: VLM) -> torch.optim.Optimizer:
    """Build the optimizer of a run."""
    return make_optimizer(vlm.model, TrainSettings())


def random_groups(sizes: Sizes) -> list[RolloutGroup]:
    """Make prompts with random responses."""
    g = torch.Generator().manual_seed(sizes.seed)

    def random_ids():
        shorter = int(torch.randint(sizes.spread + 1, (), generator=g))
        return tuple(torch.randint(20, 500, (sizes.tokens - shorter,), generator=g).tolist())

    return [
        RolloutGroup(
            p, tuple(Rollout(random_ids(), k, Finish.LENGTH) for k in range(sizes.siblings))
        )
        for p in diagram_prompts("train", sizes.prompts, 0)
    ]


def build_step(
    student: VLM, teacher: VLM, method: str, sizes: Sizes, separate: bool = False
) -> Callable[[], dict[str, float]]:
    """Return a function for one step after the rollouts, up to the gradient.

    It returns the seconds per phase. With `separate` every rollout is one row with its own image,
    as in most trainers.
    """
    groups, objective, device = random_groups(sizes), METHODS[method](), student.device
    if separate:
        groups = [RolloutGroup(group.prompt, (r,)) for group in groups for r in group.rollouts]
        student, teacher = (replace(m, share_prompts=False) for m in (student, teacher))
    models = Models(student, teacher, student.vocabulary_size)
    split = BatchSplit(tokens=sizes.micro_batch_tokens, part_tokens=sizes.part_tokens)
    precision = partial(autocast, TrainSettings(), device)

    def step() -> dict[str, float]:
        clock = PhaseClock(device)
        student.model.zero_grad()
        responses = flatten_responses(groups, 0, 0, device)
        inputs = encode_step(models, groups, objective.passes(), responses, split)
        clock.lap("encode")
        with precision():
            batch = score_without_gradient(models, inputs, objective.passes())
        clock.lap("score")
        signals = objective.signals(batch)
        clock.lap("signals")
        for micro, cut in parts_with_gradient(
            models, inputs, batch, objective.passes(), signals, precision
        ):
            reduce_terms(objective.terms(micro, cut), responses.counts())[0].backward()
        clock.lap("learn")
        return clock.seconds

    return step


def transformers_step(student: VLM, teacher: VLM, sizes: Sizes) -> Callable[[], None]:
    """Return a function for OPD with transformers alone: one row per rollout, all logits.

    It averages over tokens, then over rollouts: the same gradient as `build_step` up to a factor.
    """
    device, vocabulary = student.device, student.vocabulary_size
    rows = []
    for group in random_groups(sizes):
        prompt = student.encode(group.prompt)
        rows += [replace(prompt, ids=(*prompt.ids, *r.ids)) for r in group.rollouts]
    inputs = student.family.generation_inputs(rows, student.pad_id)
    inputs = {name: x.to(device) for name, x in inputs.items()}

    def log_probs(vlm: VLM) -> torch.Tensor:
        with autocast(TrainSettings(), device):
            logits = vlm.model(**inputs, logits_to_keep=sizes.tokens + 1, use_cache=False).logits
        return logits[:, :-1, :vocabulary].float().log_softmax(-1)

    def step() -> None:
        student.model.zero_grad()
        with torch.no_grad():
            target = log_probs(teacher)
        log_p = log_probs(student)
        (log_p.exp() * (log_p - target)).sum(-1).mean().backward()

    return step


# Rollouts


def encode_prompts(student: VLM, number: int, seed: int = 0) -> list[RolloutRequest]:
    """Make requests for one response to each of some prompts."""
    prompts = diagram_prompts("train", number, seed)
    return [RolloutRequest(p.id, student.encode(p), (0,)) for p in prompts]


def make_rollouts(
    student: VLM,
    sizes: Sizes,
    engine: str,
    temperature: float,
    half: bool = False,
    noise: NoiseName = "generator",
) -> Callable[[], list[tuple[int, ...]]]:
    """Return a function that generates the responses of a step and returns their token ids.

    `half` turns on bf16 autocast; `noise` as `rollout.noise`.
    """
    requests = [
        replace(r, siblings=tuple(range(sizes.siblings)))
        for r in encode_prompts(student, sizes.prompts)
    ]
    # No nucleus: with the flat distribution of random weights it is most of the vocabulary.
    rows = sizes.prompts * sizes.siblings
    sampling = Sampling(0, 0, temperature, 1.0, sizes.tokens, rows, noise=noise)
    rollout_engine = ENGINES[engine](student)

    def generate() -> list[tuple[int, ...]]:
        with torch.autocast(student.device.type, torch.bfloat16) if half else nullcontext():
            return [r.ids for group in rollout_engine.generate(requests, sampling) for r in group]

    return generate


@dataclass(frozen=True)
class LossInputs:
    """Hidden states and heads of student and teacher, and the weights of the rows."""

    student: torch.Tensor
    teacher: torch.Tensor
    student_head: torch.Tensor
    teacher_head: torch.Tensor
    weights: torch.Tensor
    student_uncut: torch.Tensor | None = None
    teacher_uncut: torch.Tensor | None = None

    def to(
        self, dtype: torch.dtype, rows: int | None = None, head: torch.dtype | None = None
    ) -> "LossInputs":
        """Return the first rows in one precision, the student's head optionally in another."""
        return LossInputs(
            self.student[:rows].to(dtype),
            self.teacher[:rows].to(dtype),
            self.student_head.to(head or dtype),
            self.teacher_head.to(dtype),
            self.weights[:rows],
            None if self.student_uncut is None else self.student_uncut.to(head or dtype),
            None if self.teacher_uncut is None else self.teacher_uncut.to(dtype),
        )

    def cut(self, vocabulary: int, keeps_uncut: bool = False) -> "LossInputs":
        """Keep the first entries of the vocabulary, and optionally the heads with all of them."""
        return replace(
            self,
            student_uncut=self.student_head if keeps_uncut else None,
            teacher_uncut=self.teacher_head if keeps_uncut else None,
            student_head=self.student_head[:vocabulary],
            teacher_head=self.teacher_head[:vocabulary],
        )


def loss_inputs(
    shapes: tuple[Shape, Shape], rows: int, device: torch.device, dtype: torch.dtype
) -> LossInputs:
    """Make random states of student and teacher; the logits have standard deviation 1."""
    g = torch.Generator(device).manual_seed(0)
    random = partial(torch.randn, generator=g, device=device)
    student, teacher = shapes
    heads = [random(student.vocabulary, s.hidden) * s.hidden**-0.5 for s in shapes]
    states = random(rows, student.hidden), random(rows, teacher.hidden)
    return LossInputs(*states, *heads, torch.rand(rows, generator=g, device=device)).to(dtype)


def loss_of_rows(
    inputs: LossInputs, kernels: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute reverse KL of each row, and the gradients of the weighted sum by states and head."""
    states = inputs.student.detach().requires_grad_()
    weight = inputs.student_head.detach().requires_grad_()
    target = States(inputs.teacher, Head(inputs.teacher_head, uncut=inputs.teacher_uncut))
    head = Head(weight, kernels=kernels, uncut=inputs.student_uncut)
    values = per_row(reverse_kl, states, head, [target], inputs.weights)
    (inputs.weights * values).sum().backward()
    assert states.grad is not None
    assert weight.grad is not None
    return values.detach(), states.grad, weight.grad
