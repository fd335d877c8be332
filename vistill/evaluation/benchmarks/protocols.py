"""How the papers ask: decoding, samples, length, and which answer of a reply counts.

A number belongs to one protocol. What a paper leaves open is ours and is written here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vistill.answers.extract import Take
from vistill.errors import ConfigError, closest
from vistill.types import View

GREEDY, SAMPLED = "greedy", "sampled"
#: Views of `--blind`: the picture of VA-OPD's teacher, and no picture (VGS).
BLIND = (View.PIXELATED, View.TEXT_ONLY)
#: VGS publishes what its system message asks for, not its words; these are ours.
VGS_SYSTEM = (
    "A conversation between a user and an assistant. The user asks a question about a picture."
    " The assistant first thinks about it inside <reason></reason>, and then gives the final"
    " answer in \\boxed{}."
)


@dataclass(frozen=True)
class Protocol:
    """A named way to ask a benchmark."""

    name: str
    samples: Mapping[str, int]
    """Responses per question by mode: `greedy`, `sampled`, and blind ones (`greedy/text_only`)."""
    max_new_tokens: int
    take: Take
    """Which committed answer of a reply counts."""
    temperature: float = 1.0
    """Of the mode `sampled`."""
    top_p: float = 1.0
    system: str = ""
    source: str = ""


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "official",
            {GREEDY: 1},
            4096,
            "last",
            source="the benchmark's own prompt; greedy; rules and 4,096 tokens are ours",
        ),
        Protocol(
            "va_opd",
            {SAMPLED: 8},
            4096,
            "first",
            source="arXiv 2605.21924, 4.1 and appendix A: avg@8 at temperature 1, the benchmark's"
            " prompt, the first committed answer; the paper states no length for evaluation:"
            " 4,096 tokens are those of its training",
        ),
        Protocol(
            "vgs",
            {GREEDY: 1, SAMPLED: 16},
            2048,
            "last",
            system=VGS_SYSTEM,
            source="arXiv 2606.00564, table 1: Acc@1 greedy, Acc@16 at temperature 1; the words of"
            " the system message and 2,048 tokens are ours",
        ),
        Protocol(
            "visual_opsd",
            {GREEDY: 1},
            1024,
            "last",
            source="arXiv 2606.18974, 3.3: greedy, 1,024 tokens, on parts of the benchmarks; its"
            " ids are not published, so our parts are other rows",
        ),
    )
}


def find_protocol(name: str) -> Protocol:
    """The protocol of a name.

    Raises:
        ConfigError: C105, there is none.
    """
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    near = next(iter(closest(name, PROTOCOLS)), "official")
    raise ConfigError(
        "C105",
        f"there is no protocol {name!r:.40}",
        why=f"protocols: {', '.join(PROTOCOLS)}",
        fix=f"--protocol {near}",
    )


def decoding_of(mode: str) -> str:
    """`greedy` or `sampled`, of a mode that may name a view too."""
    return mode.partition("/")[0]


def view_of(mode: str) -> str:
    """The view of a mode: `full`, or that of a blind mode."""
    return mode.partition("/")[2] or View.FULL


def with_blind(protocol: Protocol) -> Protocol:
    """The protocol with the blind modes: the same questions, samples and noise under other views.

    They are modes of their own, such as `sampled/text_only`.
    """
    blind = {f"{mode}/{view}": count for mode, count in protocol.samples.items() for view in BLIND}
    return replace(protocol, samples={**protocol.samples, **blind})


def with_changes(protocol: Protocol, samples: int | None, changes: Mapping[str, Any]) -> Protocol:
    """The protocol with what the user changed.

    Args:
        protocol: as published.
        samples: sampled responses per question.
        changes: `max_new_tokens`, `temperature`, `top_p`, `answer`, `system`.

    Raises:
        ConfigError: C101, the protocol samples nothing, and `samples` or a `temperature` above 0 is
            given, or it samples, and the temperature is 0.
    """
    temperature = changes.get("temperature")
    if SAMPLED in protocol.samples and temperature == 0:
        raise ConfigError(
            "C101",
            f"eval.temperature=0 contradicts the protocol {protocol.name}, which samples",
            why="the same response several times would look like a mean over samples",
            fix="eval.temperature=1",
        )
    if SAMPLED not in protocol.samples and (samples is not None or temperature):
        given = "--samples" if samples is not None else "eval.temperature"
        raise ConfigError(
            "C101",
            f"{given} contradicts the protocol {protocol.name}, which is greedy",
            why="the same response several times would look like a mean over samples",
            fix="--protocol va_opd",
        )
    counts = dict(protocol.samples)
    if samples is not None:
        counts[SAMPLED] = samples
    renamed = {("take" if name == "answer" else name): value for name, value in changes.items()}
    return replace(protocol, samples=counts, **renamed)
