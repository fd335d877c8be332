"""Bytes of a run by kind and phase, on the device and on the host. Needs no torch."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from vistill.errors import ConfigError
from vistill.planning.activations import FLOAT, HALF, Activations
from vistill.planning.gpus import Gpu
from vistill.planning.half_copies import rounded_head, writes_in_half, writing_copy
from vistill.planning.lora import weight_bytes
from vistill.planning.phase_bytes import DecodingCall, PhaseBytes, cache_capacity
from vistill.planning.shapes import ModelShape
from vistill.planning.student_bytes import StudentBytes
from vistill.planning.workload import Workload
from vistill.training.held_bytes import GIB, SHARE, MemoryMeasurement
from vistill.training.micro_batches import AUTO_TOKENS, BatchSplit
from vistill.types import Reader, Writer

#: Memory of a device that no tensor can have: its context, and gaps between blocks.
RESERVE_GIB = 1.0
#: Logits of a chunk of rows, for each pass (`functional/row_chunks.py`).
CHUNK_BYTES = 1 << 29
#: Copies of a row of logits while a token is chosen: noise, sorted values, their sums.
SAMPLING_COPIES = 6
#: The phase in which the teacher writes responses, before step 1.
TEACHER_WRITES = "teacher writes"


@dataclass(frozen=True)
class Memory:
    """Counts the bytes of a run on one device."""

    work: Workload
    student: ModelShape
    teacher: ModelShape | None
    """The teacher; of several the largest."""
    gpu: Gpu
    teachers: tuple[tuple[ModelShape, str], ...] = ()
    """Every teacher with the precision of its weights, the largest first, each model once."""

    @property
    def is_half(self) -> bool:
        """Whether a step runs under bf16 autocast, as `auto` does on a CUDA device."""
        return self.work.recipe.train.precision != "fp32"

    @property
    def capacity(self) -> float:
        """Bytes that tensors can have."""
        return (self.gpu.memory_gib - RESERVE_GIB) * GIB

    @cached_property
    def of_student(self) -> StudentBytes:
        """Weights, gradients and optimizer of the student."""
        return StudentBytes(self.student, self.work.recipe, self.work.lora, self.is_half)

    @property
    def trained(self) -> int:
        """Parameters that the optimizer updates."""
        return self.of_student.trained

    def value_size(self, precision: str) -> int:
        """Bytes of a weight that is not quantised, of a teacher with this precision."""
        own = precision if precision in ("fp32", "bf16") else self.work.recipe.train.precision
        return FLOAT if own == "fp32" else HALF

    def models_of(self, reader: Reader) -> list[tuple[ModelShape, int]]:
        """The models of a role, each with the bytes of a value that is not quantised."""
        if reader is Reader.TEACHER:
            return [(shape, self.value_size(own)) for shape, own in self.teachers]
        return [(self.student, self.of_student.size)]

    def all_weights(self) -> list[float]:
        """Bytes of the weights of each teacher."""
        return [weight_bytes(s, self.value_size(own), own) for s, own in self.teachers]

    @property
    def is_offloaded(self) -> bool:
        """Whether the teacher is in host memory while it does not read."""
        return self.work.recipe.train.keeps_teacher_on_host

    @cached_property
    def activations(self) -> Activations:
        """What readings save with gradient."""
        train = self.work.recipe.train
        return Activations(
            self.student,
            self.is_half,
            True,
            train.freeze,
            self.work.lora,
            recomputes=train.gradient_checkpointing,
            half_weights=self.of_student.is_half,
        )

    def teacher_bytes(self, reads: bool) -> float:
        """The teachers on the device. Offloaded, one of them at a time; all heads stay there."""
        if self.teacher is None:
            return 0.0
        if not self.is_offloaded:
            return sum(self.all_weights())
        heads = [shape.head_weights * self.value_size(own) for shape, own in self.teachers]
        moved = [w - head for w, head in zip(self.all_weights(), heads, strict=True)]
        return sum(heads) + (max(moved) if reads else 0.0)

    def resident(self, teacher_reads: bool = False) -> dict[str, float]:
        """What every phase after the first step holds."""
        return {
            "weights": self.of_student.weights(),
            "moments": self.of_student.state(),
            "teacher": self.teacher_bytes(teacher_reads),
            "reference and EMA": float(self.work.student_copies * self.of_student.gradients()),
        }

    # Writing responses and evaluating.

    @property
    def writing_copy(self) -> float:
        """The copy of the student in bf16 that writes."""
        return writing_copy(self.of_student)

    def decoding(self, name: str, call: DecodingCall) -> PhaseBytes:
        """As many rows at a time as fit; a run halves `rows_per_call` by itself."""
        per_call = call.rows_per_call
        phase = self.decoding_rows(name, call, per_call)
        while per_call > call.siblings and phase.total > self.capacity:
            per_call = max(call.siblings, per_call // 2)
            phase = self.decoding_rows(name, call, per_call)
        first = min(call.rows_per_call, call.responses)
        note = "" if phase.rows == first else f"{phase.rows} rows at a time, not {first}"
        return replace(phase, note=note)

    def decoding_rows(self, name: str, call: DecodingCall, per_call: int) -> PhaseBytes:
        """So many responses of full length at a time, in the precision that writes."""
        rows = min(per_call, call.responses)
        is_teacher = name == TEACHER_WRITES and self.teacher is not None
        of_prompts = -(-rows // call.siblings) * self.work.prompt_tokens
        cached = rows * cache_capacity(call.tokens) + of_prompts
        in_half = writes_in_half(self.of_student)
        writers = [(self.student, HALF if in_half else self.of_student.size)]
        own = [
            {
                "copy for writing": 0.0 if is_teacher else self.writing_copy,
                "rollout cache": float(size * shape.kv_values * cached),
                "logits tile": float(SAMPLING_COPIES * FLOAT * rows * shape.vocabulary),
                "working memory": of_prompts * self.layer_bytes(shape, size, 1.0),
            }
            for shape, size in (self.models_of(Reader.TEACHER) if is_teacher else writers)
        ]
        largest = max(own, key=lambda kinds: sum(kinds.values()))
        return PhaseBytes(name, self.resident(is_teacher) | largest, rows=rows)

    def rollout(self) -> PhaseBytes:
        """Writing the responses of a step."""
        settings, siblings = self.work.recipe.rollout, self.work.siblings
        per_call = max(siblings, min(settings.rows_per_call, self.work.responses))
        call = DecodingCall(self.work.responses, per_call, settings.max_new_tokens, siblings)
        return self.decoding("rollout", call)

    def teacher_writes(self) -> PhaseBytes:
        """The responses of the teacher, before step 1."""
        settings, siblings = self.work.recipe.rollout, self.work.recipe.rollout.per_prompt
        per_call = max(siblings, settings.rows_per_call)
        call = DecodingCall(per_call, per_call, settings.max_new_tokens, siblings)
        return self.decoding(TEACHER_WRITES, call)

    def evaluate(self) -> PhaseBytes:
        """An evaluation."""
        settings = self.work.recipe.eval
        rows = settings.limit or settings.rows_per_call
        call = DecodingCall(
            rows * settings.samples,
            max(settings.samples, settings.rows_per_call),
            settings.max_new_tokens,
            settings.samples,
        )
        return self.decoding("evaluate", call)

    # Reading responses.

    def layer_bytes(self, shape: ModelShape, size: int, keys: float) -> float:
        """Bytes per token that one layer of a reading without gradient needs at a time.

        Args:
            shape: of the reader.
            size: bytes of a value.
            keys: keys that attention gets per token.
        """
        attention = 3 * shape.heads * shape.head_dim + 2 * keys * shape.heads * shape.head_dim
        return size * (attention + 3 * shape.feed_forward) + FLOAT * 4 * shape.hidden

    def score(self) -> PhaseBytes:
        """The passes without gradient. Their states stay until the update."""
        work = self.work
        if not work.scored_passes:
            return PhaseBytes("score", self.resident())
        reads_teacher = Reader.TEACHER in work.readers
        working = [self.reading_bytes(p.reader, p.view) for p in work.scored_passes]
        copies = self.activations.weight_copies() if Reader.OLD in work.readers else 0
        vocabulary = self.student.vocabulary
        kinds = self.resident(reads_teacher) | {
            "weight copies": float(copies),
            "scored states": self.scored_states(),
            "logits tile": float(min(CHUNK_BYTES, FLOAT * self.rows_to_score * vocabulary)),
            "working memory": max(working),
        }
        return PhaseBytes("score", kinds)

    def reading_bytes(self, reader: Reader, view: str) -> float:
        """Bytes of one micro-batch of a pass without gradient."""
        if reader is Reader.TEACHER:
            models = self.models_of(reader)
        else:
            models = [(self.student, HALF if self.is_half else FLOAT)]
        return max(self.bytes_of_model(shape, size, view) for shape, size in models)

    def bytes_of_model(self, shape: ModelShape, size: int, view: str) -> float:
        """The same for a model with values of this size."""
        work = self.work
        prompt, longest = work.prompt_tokens_under(str(view)), work.longest_response
        group = prompt + work.siblings * longest
        groups = max(1, min(work.prompts, AUTO_TOKENS // group))
        responses = groups * work.siblings * longest
        keys = 1 + prompt / longest
        cache = groups * prompt * shape.kv_values * size
        mask = size * longest * (prompt + longest)
        return cache + mask + responses * self.layer_bytes(shape, size, keys)

    def shape_of(self, reader: Reader) -> ModelShape:
        """The shape of a reader."""
        if reader is Reader.TEACHER:
            assert self.teacher is not None
            return self.teacher
        return self.student

    @property
    def rows_to_score(self) -> int:
        """Response tokens of a step, if every response is as long as it may be."""
        return self.work.responses * self.work.longest_response

    def scored_states(self) -> float:
        """Hidden states and log-probabilities that stay until the update."""
        total, rows = 0.0, self.rows_to_score
        for p in self.work.scored_passes:
            if p.keep in ("hidden", "both"):
                total += rows * max(size * s.hidden for s, size in self.models_of(p.reader))
            if p.keep in ("log_prob", "both"):
                total += rows * FLOAT
        return total

    # Learning.

    @cached_property
    def measurement(self) -> MemoryMeasurement:
        """What the measurement of the run finds (`training/memory_budget.py`)."""
        work = self.work
        parts = [
            self.activations.held(
                work.prompt_tokens_under(str(p.view)), work.patches(self.student, str(p.view))
            )
            for p in work.gradient_passes
        ]
        longest = max(work.prompt_tokens_under(str(p.view)) for p in work.gradient_passes)
        prompts = sum(
            held.prompt_token * work.prompt_tokens_under(str(p.view))
            for held, p in zip(parts, work.gradient_passes, strict=True)
        )
        again = max(
            held.recomputed * work.prompt_tokens_under(str(p.view))
            for held, p in zip(parts, work.gradient_passes, strict=True)
        )
        held = self.activations.held(longest, 0, len(parts))
        held = replace(held, prompt_token=prompts / longest, recomputed=again / longest)
        return MemoryMeasurement(held, longest)

    def budget(self) -> float:
        """`train.memory`, or the share of the memory that a run takes by itself."""
        memory = self.work.recipe.train.memory
        return SHARE["cuda"] * self.free_for_step() if memory is None else memory * GIB

    def free_for_step(self) -> float:
        """Bytes that are free after the first step."""
        resident = sum(self.resident().values()) + self.of_student.gradients()
        return max(0.0, self.capacity - resident)

    def limit(self) -> float | None:
        """Bytes that a backward pass can hold at all, as `memory_limit` of a run counts them."""
        if self.work.recipe.train.memory is not None:
            return None
        return max(0.0, self.free_for_step() - sum(self.loss_bytes(CHUNK_BYTES).values()))

    def loss_bytes(self, chunk: float) -> dict[str, float]:
        """What the loss needs besides saved tensors, with chunks of logits of this size."""
        others = 1 + len(self.work.scored_passes)
        return {
            "scored states": self.scored_states(),
            "logits tile": float(others * chunk),
            "head gradient": self.head_gradient(),
            "rounded head": rounded_head(self.of_student),
        }

    def split(self) -> BatchSplit:
        """The micro-batches of a step (C104: one prompt with one response does not fit)."""
        train, response = self.work.recipe.train, self.work.longest_response
        if train.micro_batch != "auto":
            return BatchSplit(train.micro_batch)
        return self.measurement.choose_split(self.budget(), response, Path(), self.limit())

    def learn(self) -> PhaseBytes:
        """The backward passes. A part holds at least one response of full length."""
        work, held = self.work, self.measurement.held
        note = ""
        try:
            split = self.split()
        except ConfigError:
            split = BatchSplit(1, part_tokens=1)
            note = "one prompt with one response exceeds the budget"
        longest, response = self.measurement.longest, work.longest_response
        prompts = self.prompts_at_a_time(split)
        responses = max(1, split.part_tokens // (response + split.overhead))
        responses = min(responses, prompts * work.siblings)
        of_part = responses * (longest * held.response + response * held.response_token)
        of_part += len(work.gradient_passes) * self.activations.mask(longest, response)
        rows = responses * response
        activations = longest * prompts * held.prompt_token
        activations += max(of_part, longest * prompts * held.recomputed)
        kinds = self.resident() | {
            "gradients": float(self.of_student.gradients()),
            "weight copies": held.weights,
            "held activations": activations,
            **self.loss_bytes(min(CHUNK_BYTES, FLOAT * rows * self.student.vocabulary)),
            "working memory": rows * self.layer_bytes(self.student, FLOAT, 1 + longest / response),
        }
        return PhaseBytes("learn", kinds, note)

    def head_gradient(self) -> float:
        """The buffer that collects the gradient of a trained head in one backward pass."""
        kept = {"head", "language"} if self.student.is_tied else {"head"}
        is_frozen = self.work.lora is not None or kept & set(self.work.recipe.train.freeze)
        return 0.0 if is_frozen else float(FLOAT * self.student.head_weights)

    def prompts_at_a_time(self, split: BatchSplit) -> int:
        """Prompts of a micro-batch."""
        work = self.work
        if split.micro_batch != "auto":
            return min(split.micro_batch, work.prompts)
        group = self.measurement.longest + work.siblings * work.longest_response
        return max(1, min(work.prompts, split.tokens // group))

    def update(self) -> PhaseBytes:
        """AdamW of torch on all weights at once needs one more tensor per weight.

        The fused one needs none, nor does that of bitsandbytes. bf16 weights are updated one by
        one.
        """
        working = FLOAT * self.trained * (self.work.recipe.train.optimizer == "adamw")
        if self.of_student.is_half:  # the largest weight, its gradient and its update in float32
            working = 3 * FLOAT * self.student.head_weights
        kinds = self.resident() | {
            "gradients": float(self.of_student.gradients()),
            "scored states": self.scored_states(),
            "working memory": float(working),
        }
        return PhaseBytes("update", kinds)

    def save(self) -> PhaseBytes:
        """A checkpoint: nothing but what is there."""
        return PhaseBytes("save", self.resident())

    def phases(self) -> list[PhaseBytes]:
        """All phases in order."""
        makers: list[Callable[[], PhaseBytes]] = [self.score, self.learn, self.update, self.save]
        if self.work.writer is Writer.STUDENT:
            makers.insert(0, self.rollout)
        if self.work.recipe.eval.every:
            makers.insert(0, self.evaluate)
        if self.work.teacher_share:
            makers.insert(0, self.teacher_writes)
        return [make() for make in makers]

    # Disk.

    def checkpoint_bytes(self) -> float:
        """A checkpoint: weights or adapters, moments, and the moving average."""
        copies = 1 + (Reader.EMA in self.work.readers)
        return self.of_student.saved(copies)
