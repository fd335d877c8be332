"""Rows of `make bench` that compare with TRL 1.16.

TRL runs twice: its own trainer as shipped, and its kernels in a layout of one row per rollout.
Both sides have the same models, images, number of rollouts and lengths; float32, one thread,
processor seconds, in turn.
"""

import copy
import dataclasses
import tempfile
import time
import warnings

import vistill.models  # isort: skip  # noqa: F401  torchvision, before transformers is imported

import torch
from limits import alternate, our_step
from transformers import ProcessorMixin, TrainerCallback
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from trl import DistillationConfig, DistillationTrainer
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

from vistill.data.diagrams import diagram_prompts
from vistill.models.chat import chat_messages, load_images
from vistill.models.tiny import TinySize, build_tiny
from vistill.objectives import OPD, VAOPD
from vistill.rollouts.settings import RolloutSettings
from vistill.rollouts.shared import SharedEngine
from vistill.studies.make_tiny_models import tiny_tokenizer
from vistill.training.context import StepContext
from vistill.training.models_of_run import Models
from vistill.training.optim import make_optimizer
from vistill.training.response_source import ResponseSource
from vistill.training.run_state import RunState
from vistill.training.settings import TrainSettings
from vistill.training.step import train_step
from vistill.types import Finish, Rollout, RolloutGroup, View
from vistill.views import apply_view


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes of a step."""

    prompts: int = 2
    siblings: int = 4
    tokens: int = 256
    vocabulary: int = 32_768
    image: int = 288
    """Side in pixels; patches of 8, merged 2 x 2."""

    def __str__(self):
        return f"G={self.prompts}, K={self.siblings}, T={self.tokens}, V={self.vocabulary:,}, fp32"


def make_models(sizes):
    """Build a student of hidden size 256 and a teacher of 384; the tokenizer fills their heads."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"<extra_{i}>" for i in range(sizes.vocabulary - len(tokenizer))])
    pixels = sizes.image**2
    numbers = {"side": sizes.image, "min_pixels": pixels, "max_pixels": pixels, "init": 0.02}
    student = TinySize(256, 3, 4, 768, 192, 3, 4, 576, **numbers)
    teacher = TinySize(384, 4, 6, 1152, 256, 4, 4, 768, **numbers)
    return build_tiny(student, tokenizer, 0), build_tiny(teacher, tokenizer, 1).freeze()


def fixed_groups(student, sizes):
    """Make prompts with random responses of one length."""
    g = torch.Generator().manual_seed(0)

    def draw():
        return tuple(torch.randint(20, sizes.vocabulary, (sizes.tokens,), generator=g).tolist())

    prompts = diagram_prompts("train", sizes.prompts, 0)
    return [
        RolloutGroup(p, tuple(Rollout(draw(), k, Finish.LENGTH) for k in range(sizes.siblings)))
        for p in prompts
    ]


def rows_of(vlm, groups, view):
    """Make one row per rollout, each with its own image.

    All prompts and responses here have one length, so nothing is padded.
    """
    rows, pixels, grids = [], [], []
    for group in groups:
        encoded = vlm.encode(apply_view(group.prompt, view))
        for rollout in group.rollouts:
            rows.append([*encoded.ids, *rollout.ids])
            pixels.append(encoded.pixels["pixel_values"])
            grids.append(encoded.pixels["image_grid_thw"])
    width = max(map(len, rows))
    ids = torch.tensor([[vlm.pad_id] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    types = (ids == vlm.family.image_id).int() * mask.int()
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "mm_token_type_ids": types,
        "use_cache": False,
        "pixel_values": torch.cat(pixels),
        "image_grid_thw": torch.cat(grids),
    }


def states(vlm, groups, view):
    """Compute the hidden states [N T, H] of the response rows."""
    tokens = len(groups[0].rollouts[0].ids)
    return (
        vlm.model.model(**rows_of(vlm, groups, view))
        .last_hidden_state[:, -1 - tokens : -1]
        .flatten(0, 1)
    )


def divergence(h, w, other, v):
    """Compute reverse KL and entropy of each row with TRL's kernel."""
    return ChunkedDivergenceFunction.apply(
        h, w, None, other, v, None, 1.0, 1.0, 1.0, None, 1.0, None
    )[0]


@torch.no_grad()
def advantage_weights(teacher, groups, full, pixelated):
    """Compute VA-OPD's weights from two passes of the teacher, for responses of one length."""
    ids = torch.tensor([i for g in groups for r in g.rollouts for i in r.ids])
    weight, tokens = teacher.model.get_output_embeddings().weight, len(groups[0].rollouts[0].ids)

    def log_probs(states):
        """Log-probabilities of the sampled tokens."""
        parts = zip(states.split(256), ids.split(256), strict=True)
        return torch.cat(
            [torch.log_softmax(h @ weight.T, -1).gather(1, i[:, None])[:, 0] for h, i in parts]
        )

    advantage = (log_probs(full) - log_probs(pixelated)).clamp_min(0).view(len(groups), -1, tokens)
    means = advantage.mean(-1)
    spread = means.std(1, correction=0, keepdim=True)
    rollout = torch.softmax((means - means.mean(1, keepdim=True)) / (spread + 1e-6), 1)
    size = max(1, -(-tokens // 5))
    high = torch.zeros_like(advantage, dtype=torch.bool)
    high.scatter_(
        -1, torch.sort(advantage, dim=-1, descending=True, stable=True).indices[..., :size], True
    )
    within = torch.where(high, 0.5 / size, 0.5 / (tokens - size))
    return (rollout[..., None] * within).flatten() / len(groups)


def reference_step(student, teacher, groups, va):
    """Run a step with one row per rollout and TRL's kernels, after the rollouts."""
    student.model.zero_grad()
    with torch.no_grad():
        full = states(teacher, groups, View.FULL)
        weights = (
            advantage_weights(teacher, groups, full, states(teacher, groups, View.PIXELATED))
            if va
            else None
        )
    student_states = states(student, groups, View.FULL)
    values = divergence(
        student_states,
        student.model.get_output_embeddings().weight,
        full,
        teacher.model.get_output_embeddings().weight,
    )
    ((values * weights).sum() if va else values.mean()).backward()


def gradient_difference(student, teacher, groups):
    """Return the largest relative difference of the student's gradient, over both methods."""
    models, worst = Models(student, teacher, student.vocabulary_size), 0.0

    def gradient():
        grads = (p.grad for p in student.model.parameters())
        return torch.cat([grad.flatten() for grad in grads if grad is not None])

    for va, objective in ((False, OPD()), (True, VAOPD())):
        our_step(models, objective, groups)
        ours = gradient().clone()
        reference_step(student, teacher, groups, va)
        worst = max(worst, float((ours - gradient()).norm() / gradient().norm()))
    return worst


class Processor(Qwen3VLProcessor):
    """Qwen's processor without its video part, which needs torchvision."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None):
        self.image_token, self.image_token_id = (
            "<|image_pad|>",
            tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        )
        self.video_token, self.video_token_id = (
            "<|video_pad|>",
            tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        )
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


class StepTimer(TrainerCallback):
    """Time every optimizer step of TRL's trainer with its rollouts; run our sides after it."""

    def __init__(self, run_others, steps):
        self.run_others, self.steps, self.times = run_others, steps, []

    def on_step_begin(self, *args, **kwargs):
        self.start = time.process_time()

    def on_step_end(self, *args, **kwargs):
        self.times.append(time.process_time() - self.start)
        self.run_others()


def trl_rows_of(sizes):
    """Repeat each prompt once per rollout: TRL has no siblings."""
    repeated = [
        p for p in diagram_prompts("train", sizes.prompts, 0) for _ in range(sizes.siblings)
    ]

    def text(message):
        return "".join(part.get("text", "") for part in message["content"])

    return [
        {
            "prompt": [{"role": m["role"], "content": text(m)} for m in chat_messages(p)],
            "images": load_images(p),
        }
        for p in repeated
    ]


def trl_trainer(models, sizes, folder, checkpointing, callback):
    """Build `DistillationTrainer`: defaults except precision, batch and lengths."""
    from datasets import Dataset

    (student, teacher), rows, steps = models, trl_rows_of(sizes), callback.steps
    config = DistillationConfig(
        output_dir=folder,
        per_device_train_batch_size=len(rows),
        gradient_accumulation_steps=1,
        max_steps=steps,
        max_completion_length=sizes.tokens,
        generation_kwargs={"min_new_tokens": sizes.tokens},
        bf16=False,
        gradient_checkpointing=checkpointing,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        shuffle_dataset=False,
    )
    tokenizer = copy.deepcopy(student.tokenizer)
    tokenizer.padding_side = "left"
    processor = Processor(student.family.processor, tokenizer, tokenizer.chat_template)
    return DistillationTrainer(
        model=copy.deepcopy(student.model),
        teacher_model=teacher.model,
        args=config,
        processing_class=processor,
        train_dataset=Dataset.from_list(rows * steps),
        callbacks=[callback],
    )


def our_update(student, teacher, sizes, objective):
    """Return a function for one full step of ours, and the list of response lengths."""
    own = dataclasses.replace(student, model=copy.deepcopy(student.model))
    # This token is never sampled, so every response has the full length.
    own.model.generation_config.eos_token_id = own.family.banned_ids()[0]
    train = TrainSettings(prompts_per_step=sizes.prompts)
    rollout = RolloutSettings(max_new_tokens=sizes.tokens, temperature=1.0, top_p=1.0)
    context = StepContext(
        models=Models(own, teacher, student.vocabulary_size),
        response_source=ResponseSource(SharedEngine(own), objective, sizes.siblings),
        optimizer=make_optimizer(own.model, train),
        train=train,
        rollout=rollout,
        seed=0,
        num_steps=100,
    )
    prompts, state, lengths = diagram_prompts("train", sizes.prompts, 0), RunState(), []

    def step():
        result = train_step(context, prompts, state)
        state.step += 1
        lengths.extend(len(r.ids) for g in result.groups for r in g.rollouts)

    return step, lengths


def trl_rows(row, repeats, sizes=Sizes()):
    """Measure all rows of this file."""
    warnings.filterwarnings("ignore")
    student, teacher = make_models(sizes)
    groups = fixed_groups(student, sizes)
    difference = gradient_difference(student, teacher, groups)
    models = Models(student, teacher, student.vocabulary_size)
    after = alternate(
        {
            "reference_opd": lambda: reference_step(student, teacher, groups, va=False),
            "reference_va": lambda: reference_step(student, teacher, groups, va=True),
            "opd": lambda: our_step(models, OPD(), groups),
            "va": lambda: our_step(models, VAOPD(), groups),
        },
        repeats,
    )
    student.model.zero_grad()
    whole = whole_steps(student, teacher, sizes, min(repeats, 3))
    length = len(student.encode(groups[0].prompt).ids)
    size = f"{str(sizes).replace('T=', f'P={length}, T=')}"
    reference = f"row-per-rollout OPD with TRL's kernels, after the rollouts; {size}"
    shipped, lean = (
        "TRL DistillationTrainer step as shipped, rollouts included",
        "the same, gradient checkpointing off",
    )
    return [
        row("va_step_over_reference_opd", after["va"] / after["reference_opd"], "ratio", reference),
        row(
            "opd_step_over_reference_opd", after["opd"] / after["reference_opd"], "ratio", reference
        ),
        row(
            "reference_va_over_opd",
            after["reference_va"] / after["reference_opd"],
            "ratio",
            "the same layout's OPD",
        ),
        row("va_step_over_trl_step", whole["va"] / whole["shipped"], "ratio", f"{shipped}; {size}"),
        row(
            "opd_step_over_trl_step", whole["opd"] / whole["shipped"], "ratio", f"{shipped}; {size}"
        ),
        row("va_step_over_trl_lean_step", whole["va"] / whole["lean"], "ratio", lean),
        row("opd_step_over_trl_lean_step", whole["opd"] / whole["lean"], "ratio", lean),
        row(
            "va_over_opd_whole_step",
            whole["va"] / whole["opd"],
            "ratio",
            f"our OPD, rollouts included; {size}",
        ),
        row(
            "gradient_difference",
            difference,
            "relative",
            f"row-per-rollout reference, OPD and VA-OPD; {size}",
        ),
    ]


def whole_steps(student, teacher, sizes, repeats):
    """Return the best processor seconds of complete steps.

    TRL as shipped and without gradient checkpointing; our OPD and VA-OPD.
    """
    times = {"opd": [], "va": []}
    steps = {}
    lengths = []
    for name, objective in (("opd", OPD()), ("va", VAOPD())):
        steps[name], step_lengths = our_update(student, teacher, sizes, objective)
        lengths.append(step_lengths)

    def run_others():
        for name, step in steps.items():
            start = time.process_time()
            step()
            times[name].append(time.process_time() - start)

    for name, checkpointing in (("shipped", True), ("lean", False)):
        with tempfile.TemporaryDirectory() as folder:
            callback = StepTimer(run_others, repeats)
            trl_trainer((student, teacher), sizes, folder, checkpointing, callback).train()
            times[name] = callback.times
    for step_lengths in lengths:
        differing = sorted(set(step_lengths))
        assert differing == [sizes.tokens], f"lengths differ: {differing}"
    return {name: min(seconds) for name, seconds in times.items()}
