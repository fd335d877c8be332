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


def special_tokens(tokenizer: Any) -> list[str]:
    """The control tokens of a tokenizer, as texts."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    marked = [str(token) for token in added if getattr(token, "special", False)]
    return sorted({*map(str, tokenizer.all_special_tokens), *marked} - {""})


def check_special_tokens_of_models(setup: "RunSetup") -> str:
    """D103 for the first text with a special token of the student's or teacher's tokenizer."""
    assert setup.encoders is not None, "the check `tokenizers` has not run yet"
    tokens = sorted({t for one in setup.encoders if one for t in special_tokens(one.tokenizer)})
    pattern = re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))))
    if not tokens:
        return "the models have none"
    for prompt in setup.eval_prompts:
        error = token_error(prompt, pattern)
        if error is not None:
            raise error
    bad = {p.id: error for p in setup.train_prompts if (error := token_error(p, pattern))}
    if bad:
        set_aside_rows(setup, {name: error.what for name, error in bad.items()}, first_of(bad))
    return f"none of {len(tokens):,} in any question, answer, response or system message"


def first_of(errors: Mapping[str, DataError]) -> DataError:
    """The first error, with the number of all."""
    error = next(iter(errors.values()))
    if len(errors) > 1:
        error.what = f"{error.what} ({len(errors)} rows have one)"
    return error


def token_error(prompt: Prompt, pattern: "re.Pattern[str]") -> DataError | None:
    """D103 for the first text of a row in which the pattern occurs."""
    for name, texts in texts_of(prompt):
        match = next(filter(None, map(pattern.search, texts)), None)
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
