"""How responses are sampled. Needs no torch."""

from dataclasses import dataclass, field, replace
from typing import Literal

from vistill.errors import ConfigError
from vistill.python_fixes import with_python_fixes
from vistill.ranges import check_ranges, fits, misfit, ranged
from vistill.registry import engines

NoiseName = Literal["generator", "counter"]
#: Engines that never use our decoding loop. (A run with `server` evaluates with `shared`.)
WITHOUT_OUR_DECODER = ("hf", "vllm")
#: Below this a logit over the temperature is infinite in float32, and the choice is arbitrary.
SMALLEST_TEMPERATURE = 1e-30


def check_temperature(value: float) -> None:
    """C002 for a sampling temperature above 0 by which float32 logits cannot be divided."""
    schema = {"anyOf": [{"enum": [0]}, {"type": "number", "minimum": SMALLEST_TEMPERATURE}]}
    if not fits(schema, value):
        raise misfit("temperature", value, schema, 0)


@with_python_fixes
@dataclass(frozen=True)
class VLLMSettings:
    """The process of `rollout.engine: vllm`. No key changes a response."""

    cache_gb: float = ranged(4.0, 0, above=True)
    """Memory for keys and values of prompts and responses, in GiB. More lets vLLM write more
    responses together."""
    max_length: int | None = ranged(None, 1)
    """Most tokens of a prompt and its response together. null takes a power of two that is enough
    for `rollout.max_new_tokens`, and starts vLLM again with more where a call needs it."""
    images: int = ranged(4, 1)
    """Most images of a prompt."""
    timeout: float = ranged(600.0, 0, above=True)
    """Seconds without a sign of life after which the process is ended (R410). Loading a model is
    silent, so it must be longer than that."""

    def __post_init__(self) -> None:
        check_ranges(self)


@with_python_fixes
@dataclass(frozen=True)
class ServerSettings:
    """A vLLM server that writes (`rollout.engine: server`) or scores (`train.teacher_scorer`).

    The variable `VISTILL_SERVER_KEY` has its API key.
    """

    url: str = ""
    """Address of a vLLM server: `http://127.0.0.1:8000`."""
    model: str = ""
    """The name under which the server serves it; needed where it serves several."""
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    """Precision in which the server computes: how close its log-probabilities must be to those of
    the model (a mean of 0.15 nats per token, or 0.001)."""
    timeout: float = ranged(600.0, 0, above=True)
    """Seconds without an answer to a request after which it is an error (R417)."""

    def __post_init__(self) -> None:
        check_ranges(self)


@with_python_fixes
@dataclass(frozen=True)
class RolloutSettings:
    """Sampling of responses. The defaults of K, temperature and nucleus are VA-OPD's."""

    engine: str = "shared"
    """What writes the responses: `shared` reads a prompt once for all its rollouts and drops
    finished rows; `hf` is transformers' `generate`, slower, with the same responses; `vllm` is vLLM
    in a process and an environment of its own; `server` is a vLLM server by its address, for
    models that are not trained; or an engine of a plug-in."""
    per_prompt: int = ranged(4, 1)
    """Rollouts of each prompt in a step (K). More compare siblings better; time and memory grow in
    proportion."""
    temperature: float = ranged(0.7, 0)
    """Sampling temperature. Larger is more random; 0 is greedy, so all rollouts of a prompt agree.
    Log-probabilities are always taken at temperature 1."""
    top_p: float = ranged(0.95, 0, 1, above=True)
    """Nucleus: sample from the smallest set of tokens with this probability. Smaller is less
    random; 1 keeps all tokens."""
    noise: NoiseName = "generator"
    """Where sampling noise comes from: `generator` draws it for the whole vocabulary on the CPU,
    one generator per rollout; `counter` computes it on the device from seed, position and token id,
    only where it is needed, which is faster. Both give samples of the same distribution, but other
    responses."""
    weights: Literal["auto", "own", "bf16"] = "auto"
    """Weights that `shared` writes with: the student's `own`, or a copy in `bf16`, renewed before
    every use, with adapters merged. `auto` copies where a CUDA device trains in bf16."""
    cuda_graph: bool = False
    """Replay a decoding step of `shared` as a CUDA graph. Elsewhere the step only has static
    shapes. Not measured on a GPU yet; a step that cannot be captured is an error (R416)."""
    max_new_tokens: int = ranged(1024, 1)
    """Most tokens of a response; a longer one is cut off and kept. Larger needs more memory and
    time."""
    all_truncated: Literal["stop", "go_on"] = "stop"
    """What to do when in three steps in a row every response is cut off: `stop` (R401), or `go_on`
    (short responses on purpose)."""
    rows_per_call: int = ranged(256, 1)
    """Most responses decoded together. Larger is faster and needs more memory; responses stay the
    same."""
    image_skips: int = ranged(0, 0)
    """How often a response that starts to draw a picture is continued as text instead; 0 turns it
    off."""
    image_marker: str = "<image_start>"
    """Text by which a model announces a drawing, for `rollout.image_skips`."""
    reopen: str = "\n<|im_start|>assistant\n"
    """Text that opens the next turn after `rollout.image_skips` closed one."""
    vllm: VLLMSettings = field(default_factory=VLLMSettings)
    server: ServerSettings = field(default_factory=ServerSettings)

    def __post_init__(self) -> None:
        check_ranges(self)
        check_temperature(self.temperature)
        engines.require("engine", self.engine)
        if self.engine in WITHOUT_OUR_DECODER:
            self.refuse_decoder_settings(f"rollout.engine = {self.engine}", "rollout.engine=shared")

    def refuse_decoder_settings(self, because: str, way_out: str = "") -> None:
        """C101 for settings of our decoding loop where something else decodes."""
        given = (
            (self.weights == "bf16", "rollout.weights = bf16", "rollout.weights=auto"),
            (self.cuda_graph, "rollout.cuda_graph = true", "rollout.cuda_graph=false"),
        )
        wrong = [(what, fix) for is_set, what, fix in given if is_set]
        if wrong:
            fix = " ".join(fix for _, fix in wrong)
            raise ConfigError(
                "C101",
                f"{' and '.join(what for what, _ in wrong)}, but {because}",
                why="only the decoding loop of rollout.engine = shared has it: without effect here",
                fix=f"{fix}   or   {way_out}" if way_out else fix,
            )

    def of_trained_student(self) -> "RolloutSettings":
        """The settings by which a run's own student writes.

        A server does not get new weights (R419 where the student's responses are trained on), so
        evaluations of a run use `shared`.
        """
        return replace(self, engine="shared") if self.engine == "server" else self

    def without_image_skips(self) -> "RolloutSettings":
        """The settings for evaluation and for the teacher's responses: no turn is reopened."""
        return replace(self, image_skips=0)
