"""Tokens, operations, seconds, disk and money of a run. Needs no torch.

Operations are those of the matrix products, counted as `profile: true` counts them. Seconds are an
estimate: operations over an assumed share of the GPU's peak, and a fixed time per decoded position.
"""

from dataclasses import dataclass, replace

from vistill.data.keys import num_steps
from vistill.planning.benchmarks import planned_benchmarks
from vistill.planning.lora import BITS
from vistill.planning.memory import Memory
from vistill.planning.shapes import ModelShape
from vistill.training.checks.disk import disk_needs
from vistill.training.disk_needs import DiskNeeds
from vistill.types import Reader, Writer

#: Seconds per decoded position of a 28-layer decoder: measured for 64 rows, float32, T = 0.7 on an
#: H100 (0.090 s, 2026-11-27). Starting kernels and drawing noise take it, not the GPU's products.
SECONDS_PER_POSITION = 0.090
POSITION_LAYERS = 28
#: Share of the memory's bandwidth that decoding reaches where it is bound by it.
BANDWIDTH_SHARE = 0.6
#: The longest response of a call over their mean.
LONGEST_OVER_MEAN = 2.0
#: Seconds to encode a prompt under a view (measured on 16 cores, 2026-11-27).
SECONDS_PER_ENCODING = 0.028
#: Bytes per second of a checkpoint to disk, fsync and hash included (measured: 8.5 GB in 11 s).
SAVE_RATE = 0.77e9
#: Views of an evaluation without the image: pixelated, removed, swapped.
BLIND_VIEWS = 3


@dataclass(frozen=True)
class PassCost:
    """Tokens and operations of one pass over the responses of a step."""

    name: str
    prompt_tokens: float
    response_tokens: float
    flops: float


def reading_flops(shape: ModelShape, prompt: int, response: int, siblings: int) -> float:
    """Operations of the decoder for a prompt, read once, and its responses."""
    per_score = 4.0 * shape.heads * shape.head_dim * shape.layers
    scores = prompt * prompt + siblings * response * (prompt + response)
    return 2.0 * shape.linear_weights * (prompt + siblings * response) + per_score * scores


def vision_flops(shape: ModelShape, patches: int) -> float:
    """Operations of the vision tower and its projector for one image of so many patches."""
    vision = shape.vision
    if vision is None or not patches:
        return 0.0
    mergers = 2.0 * vision.merger_weights * patches / vision.merge**2
    pairs = 4.0 * vision.width * vision.depth * patches**2
    return 2.0 * vision.tower_weights * patches + mergers + pairs


@dataclass(frozen=True)
class Cost:
    """Counts the work of a run."""

    memory: Memory
    rows: int | None
    """Training rows, if they are known."""
    price: float | None = None
    """Money per GPU and hour."""
    gpus: int = 1
    teachers: tuple[tuple[ModelShape, float], ...] = ()
    """Several teachers, each with its share of the prompts."""

    @property
    def steps(self) -> int | None:
        """Steps of the run, if the number of rows is known."""
        train = self.memory.work.recipe.train
        if train.steps is not None:
            return train.steps
        if self.rows is None:
            return None
        return num_steps(self.rows, train.prompts_per_step, train.epochs)

    # A step.

    def one_pass(self, reader: Reader, view: str, head_uses: float) -> PassCost:
        """A pass of a step. `head_uses` counts projections of its response rows."""
        work = self.memory.work
        prompt, response = work.prompt_tokens_under(view), work.response_tokens
        shapes = ((self.memory.shape_of(reader), 1.0),)
        if reader is Reader.TEACHER and self.teachers:
            shapes = self.teachers
        flops = 0.0
        for shape, share in shapes:
            per_prompt = reading_flops(shape, prompt, response, work.siblings)
            per_prompt += vision_flops(shape, work.patches(shape, view))
            head = 2.0 * head_uses * shape.head_weights * response * work.siblings
            flops += share * work.prompts * (per_prompt + head)
        return PassCost(
            f"{reader}.{view}",
            float(work.prompts * prompt),
            float(work.responses * response),
            flops,
        )

    def passes(self) -> list[PassCost]:
        """Every pass of a step: responses first, then those without gradient, then with."""
        work = self.memory.work
        costs = []
        if work.writer is Writer.STUDENT:
            costs.append(replace(self.one_pass(Reader.STUDENT, "full", 1.0), name="rollout"))
        for p in work.scored_passes:
            uses = {"hidden": 1.0, "log_prob": 1.0, "both": 2.0}[p.keep]
            costs.append(self.one_pass(p.reader, str(p.view), uses))
        for p in work.gradient_passes:
            forward = self.one_pass(p.reader, str(p.view), 0.0)
            head = self.one_pass(p.reader, str(p.view), 3.0).flops - forward.flops
            again = float(work.recipe.train.gradient_checkpointing)  # each layer once more
            with_backward = (1.0 + again + self.backward_share()) * forward.flops + head
            costs.append(replace(forward, name=f"{forward.name}, backward", flops=with_backward))
        return costs

    def backward_share(self) -> float:
        """Operations of a backward pass over those of the forward pass."""
        if self.memory.work.lora is not None:
            return 1.0 + self.memory.trained / max(1, self.memory.student.linear_weights)
        return 2.0 if "language" not in self.memory.work.recipe.train.freeze else 1.0

    # Seconds.

    def product_seconds(self, flops: float, share: float) -> float:
        """Seconds of matrix products at a share of the GPU's peak."""
        return flops / (1e12 * self.memory.gpu.peak_tflops * share)

    def decoding_seconds(self, responses: int, rows: int, tokens: float, limit: int) -> float:
        """Seconds to write responses, `rows` at a time.

        Args:
            responses: number of responses.
            rows: most rows at a time.
            tokens: mean length.
            limit: most tokens of a response.
        """
        shape = self.memory.student
        calls = -(-responses // max(1, rows))
        positions = min(float(limit), LONGEST_OVER_MEAN * tokens)
        alive = min(rows, responses) * tokens / max(1.0, positions)
        context = self.memory.work.prompt_tokens + positions / 2
        size, precision = self.memory.of_student.size, self.memory.work.recipe.student.precision
        read = shape.linear_weights * BITS.get(precision, 8.0 * size) / 8
        read += size * (shape.head_weights + shape.kv_values * alive * context)
        by_memory = read / (BANDWIDTH_SHARE * self.memory.gpu.bandwidth)
        fixed = SECONDS_PER_POSITION * shape.layers / POSITION_LAYERS
        return calls * positions * max(fixed, by_memory)

    def step_seconds(self) -> dict[str, float]:
        """Seconds of a step by phase."""
        work, costs = self.memory.work, self.passes()
        seconds = {}
        if work.writer is Writer.STUDENT:
            limit = work.recipe.rollout.max_new_tokens
            rows = self.memory.rollout().rows
            seconds["rollout"] = self.decoding_seconds(
                work.responses, rows, work.response_tokens, limit
            )
        views = {p.view for p in work.passes}
        seconds["encode"] = work.prompts * len(views) * SECONDS_PER_ENCODING
        gpu, names = self.memory.gpu, {p.name for p in work.scored_passes}
        scored = sum(c.flops for c in costs if c.name in names)
        learnt = sum(c.flops for c in costs if c.name.endswith("backward"))
        seconds["score"] = self.product_seconds(scored, gpu.reading_share)
        seconds["learn"] = self.product_seconds(learnt, gpu.learning_share)
        return seconds

    def evaluation_seconds(self) -> float:
        """Seconds of one evaluation."""
        settings = self.memory.work.recipe.eval
        rows = settings.limit or settings.rows_per_call
        fewer = min(rows, settings.extra_limit or rows)
        responses = rows * settings.samples
        responses += fewer * (settings.greedy + BLIND_VIEWS * settings.blind * settings.samples)
        tokens = min(self.memory.work.response_tokens, settings.max_new_tokens)
        at_a_time = self.memory.evaluate().rows
        own = self.decoding_seconds(responses, at_a_time, tokens, settings.max_new_tokens)
        return own + self.benchmark_seconds()

    def benchmark_seconds(self) -> float:
        """Seconds of the benchmarks of one evaluation (`eval.tasks`), their signals included."""
        work, student, seconds = self.memory.work, self.memory.student, 0.0
        for one in planned_benchmarks(work.recipe.eval):
            tokens, rows = min(work.response_tokens, one.limit), self.memory.evaluate().rows
            seconds += self.decoding_seconds(one.responses, rows, tokens, one.limit)
            flops = reading_flops(student, work.prompt_tokens, int(tokens), 1)
            flops += 4.0 * student.head_weights * tokens
            flops += vision_flops(student, work.patches(student, "full"))
            reading = self.product_seconds(flops, self.memory.gpu.reading_share)
            seconds += one.readings * (reading + SECONDS_PER_ENCODING)
        return seconds

    @property
    def evaluations(self) -> int | None:
        """Evaluations of the run, if the number of rows is known."""
        every, steps = self.memory.work.recipe.eval.every, self.steps
        if not every:
            return 0
        return None if steps is None else 2 + (steps - 1) // every

    def total_seconds(self) -> dict[str, float] | None:
        """Seconds of the run: steps, evaluations, checkpoints."""
        steps, recipe = self.steps, self.memory.work.recipe
        if steps is None:
            return None
        save, evaluations = recipe.save.every, self.evaluations
        checkpoints = 1 + ((steps - 1) // save if save else 0)
        return {
            "steps": steps * sum(self.step_seconds().values()),
            "evaluations": evaluations * self.evaluation_seconds() if evaluations else 0.0,
            "checkpoints": checkpoints * self.memory.checkpoint_bytes() / SAVE_RATE,
        }

    def money(self) -> float | None:
        """Price of the run on all GPUs that are paid for."""
        seconds = self.total_seconds()
        if seconds is None or self.price is None:
            return None
        return self.price * self.gpus * sum(seconds.values()) / 3600

    # Disk.

    def disk_bytes(self) -> dict[str, float]:
        """Bytes of the run folder: checkpoints that are kept, the next one, and the journal."""
        needs = self.disk_needs()
        return {
            "checkpoint": needs.checkpoint,
            "checkpoints": needs.checkpoints,
            "journal": needs.journal,
            "all": needs.total,
        }

    def disk_needs(self) -> DiskNeeds:
        """What the run needs of its disk, as a run counts it before step 1."""
        work = self.memory.work
        return disk_needs(work.recipe, self.memory.checkpoint_bytes(), self.steps, work.siblings)
