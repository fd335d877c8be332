"""Check that no text of a row contains a special token of the model's own tokenizer."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vistill.data.rows import special_token_error
from vistill.errors import DataError
from vistill.training.checks.check import ALL_PURPOSES, StartCheck
from vistill.training.checks.set_aside import set_aside_rows
from vistill.types import Prompt

if TYPE_CHECKING:
    from vistill.training.setup import RunSetup

#: An added word that stands for an image or for a place in one.
IMAGE_WORD = re.compile(r"im(g|age)|row_\d|(loc|seg)\d|vision|video|patch", re.IGNORECASE)
#: The texts that a model reads and does not write.
PROMPT_TEXTS = ("question", "system message")


def special_tokens(tokenizer: Any) -> list[str]:
    """The control tokens of a tokenizer, as texts."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    marked = [str(token) for token in added if getattr(token, "special", False)]
    return sorted({*map(str, tokenizer.all_special_tokens), *marked} - {""})


def image_words(tokenizer: Any) -> list[str]:
    """Added words about images that are not marked as special, such as `<loc0001>`.

    A tokenizer makes one token of them wherever they stand. Other added words, such as `<think>`,
    belong into prompts.
    """
    added = map(str, getattr(tokenizer, "added_tokens_decoder", {}).values())
    return sorted({word for word in added if IMAGE_WORD.search(word)})


def check_special_tokens_of_models(setup: "RunSetup") -> str:
    """D103 for the first text with a special token of the student's or teacher's tokenizer."""
    assert setup.encoders is not None, "the check `tokenizers` has not run yet"
    tokenizers = [one.tokenizer for one in (setup.student, *setup.teacher_encoders.values())]
    tokens = sorted({token for one in tokenizers for token in special_tokens(one)})
    words = sorted({word for one in tokenizers for word in image_words(one)} - {*tokens})
    if not tokens:
        return "the models have none"
    pattern, of_prompts = any_of(tokens), any_of([*tokens, *words])
    for prompt in setup.eval_prompts:
        error = token_error(prompt, pattern, of_prompts)
        if error is not None:
            raise error
    errors = ((p.id, token_error(p, pattern, of_prompts)) for p in setup.train_prompts)
    bad = {name: error for name, error in errors if error is not None}
    if bad:
        set_aside_rows(setup, {name: error.what for name, error in bad.items()}, first_of(bad))
    return f"none of {len(tokens):,} in any question, answer, response or system message"


def first_of(errors: Mapping[str, DataError]) -> DataError:
    """The first error, with the number of all."""
    error = next(iter(errors.values()))
    if len(errors) > 1:
        error.what = f"{error.what} ({len(errors)} rows have one)"
    return error


def any_of(tokens: Sequence[str]) -> "re.Pattern[str]":
    """A pattern of all tokens, the longest first."""
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))))


def token_error(
    prompt: Prompt, pattern: "re.Pattern[str]", of_prompts: "re.Pattern[str]"
) -> DataError | None:
    """D103 for the first text of a row in which the pattern for its kind occurs."""
    for name, texts in texts_of(prompt):
        search = (of_prompts if name in PROMPT_TEXTS else pattern).search
        match = next(filter(None, map(search, texts)), None)
        if match is not None:
            where = prompt.labels.get("row", prompt.id)
            return special_token_error(match.group(0), where, name)
    return None


def texts_of(prompt: Prompt) -> Iterable[tuple[str, Sequence[str]]]:
    """The texts of a prompt by their names."""
    yield "question", (prompt.text, *prompt.choices)
    yield "answer", prompt.golds
    yield "response", () if prompt.response is None else (prompt.response,)
    yield "system message", () if prompt.system is None else (prompt.system,)


SPECIAL_TOKENS_CHECK = StartCheck(
    "special tokens",
    "no text of a row contains a control token of the models",
    check_special_tokens_of_models,
    ALL_PURPOSES,
)
