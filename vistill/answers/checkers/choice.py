r"""`choice`: the letter, the text or the value of an option.

A reply commits by a box, a tag, `answer is`, by being short, by its first words, or by the last
sentence that names one option. Two options with `or` between them are no commitment.
"""

import re
from collections.abc import Sequence

from vistill.answers.checkers.math import only_number
from vistill.answers.choice_forms import commitment, ends_in_option, read_special, read_turn
from vistill.answers.choice_reader import NOUNS, ChoiceReader, before_comparison
from vistill.answers.compare import Mathematics
from vistill.answers.corrections import settle
from vistill.answers.denials import is_taken_back, is_unreal
from vistill.answers.extract import (
    Commitment,
    Span,
    Take,
    find_explicit,
    first_sentence,
    is_cut_in_box,
    sentences,
    whole,
)
from vistill.answers.letters import Letters, in_range, parse_letters
from vistill.answers.normalise import strip_markup, text_form
from vistill.answers.options import (
    gold_letters,
    labelled_options,
    marked_letters,
    option_in,
    option_of,
    read_labelled,
    read_options,
)
from vistill.answers.reading import (
    COPULA,
    after_negation,
    cut_clause,
    predicate,
    right_side,
    with_gold,
)
from vistill.answers.values import parse_value
from vistill.answers.verdict import Verdict

SUBJECT = re.compile(
    rf"^[\"'(]?(?:(?i:the\s)?(?i:{NOUNS})\s)?[\"'(\[]{{0,2}}([A-Z])[)\]\"']{{0,2}}\s(?:is|has|more|on|in|also|appears|seems|looks|corresponds|was)\b"
)
#: `point A is closer than point B`: the first one.
COMPARED = re.compile(
    rf"(?i:\b{NOUNS}\s)[\"'(\[]{{0,2}}([A-Z])[)\]\"']{{0,2}}\s(?:is|appears|seems|looks)\s[^.\n]{{1,80}}\bthan\b"
)
#: A list mark, heading mark or arrow before a short reply.
DECORATION = re.compile(r"^\s{0,4}(?:#{1,6}|[->\u2022\u2192]|=>)\s{1,3}")
#: The line before a list of options that are chosen.
LIST_HEAD = re.compile(
    r"^[^\n]{0,80}\b(?:answers?|options?|choices)(?: (?:is|are):?|:)[*_]{0,2}\s{0,3}\n",
    re.IGNORECASE,
)
#: The mark of an item of a list.
BULLET = re.compile(r"(?:^|\s{0,4}\n)\s{0,4}[-*\u2022]\s{1,3}")
ARE_CORRECT = re.compile(r"are (?:both |all )?(?:the )?(?:correct|right|true)\b|都?是?(?:正确|对)")
#: What makes a letter at the beginning a choice and no pronoun.
CLAUSE_AHEAD = re.compile(r"[,;:]?\s?(?:because|since|as|so|due)\b")
OTHER_LETTER = re.compile(r"[(\[]?([A-Z])[)\].:](?![A-Za-z])")
ONLY_LETTER = re.compile(r"[(\[]?([A-Z])[)\]]?\.?")
NUMBERED = re.compile(r"^\s{0,4}\(?\d{1,2}[.):]\s{0,3}")
LINE_LETTER = re.compile(r"\s{0,4}[*\-|]{0,3}\s?(?:[Oo]ption\s)?[(\[]?([A-Z])(?:[)\].:]|\s{0,9}\|)")
EQUATION_OF_LETTERS = re.compile(r"[A-Z]\s?=")
LINE_END_LETTER = re.compile(r"(?:^|\s)[(\[]?[A-Z][)\].:]\s{0,3}$")
#: Characters that a match of `LINE_END_LETTER` has at most.
LONGEST_LABEL = 8
CONCLUDES = re.compile(
    r"^\W{0,4}(?:therefore|thus|hence|so|consequently|accordingly|in conclusion|based on|overall"
    r"|conclusion|in summary)\b",
    re.IGNORECASE,
)
#: The sentence behind a correction that states the answer.
CORRECTED = re.compile(
    r"^\W{0,4}(?:therefore|thus|hence|so|it(?:'s| is| should| must)|that(?:'s| is| gives)"
    r"|the (?:correct|right|answer|final)|option|应该?是|所以|因此|答案)",
    re.IGNORECASE,
)
#: Sentences at the end of a reply that may name its option.
LAST = 4
NONE = re.compile(
    r"\bneed(?:ed)? more (?:information|context|details)|"
    r"\bnone of the (?:labell?ed|given|options|choices|above|provided|images|points|answers)|"
    r"\bneither of|(?:cannot|can't|unable to)[^.]{0,40}\bany of",
    re.IGNORECASE,
)
UNKNOWN = re.compile(
    r"(?:cannot|can't|could not|not possible to|impossible to|unable to|difficult to) (?:be )?"
    r"(?:determine|answer|say|tell|identif|conclude)",
    re.IGNORECASE,
)


def find_choice(  # noqa: PLR0911 - one return per form
    text: str, take: Take, reader: ChoiceReader
) -> Commitment[frozenset[str]] | None:
    """The option that a reply commits to, and the rule that found it."""
    explicit = find_explicit(text, take, reader.read, is_listing=lambda at: lists_options(text, at))
    if explicit is not None:
        later = settle(text, explicit, take, lambda later: read_corrected(later, reader))
        stays = later is explicit and take == "last" and explicit.rule not in ("box", "tag")
        return (read_turn(text, explicit.end, reader) if stays else None) or later
    span = whole(text)
    raw = text[span.start : span.end]
    if not raw or is_cut_in_box(text) or lists_letters(raw, reader):
        return None
    if (special := read_special(text, span, take, reader)) is not None:
        return special
    if len(raw) <= 300:
        plain = strip_markup(BULLET.sub("; ", LIST_HEAD.sub("", raw)).removeprefix("; "))
        if (labelled := read_labelled(plain, reader.options)) is not None:
            return commitment(text, span, labelled)
        listed = parse_letters(plain, len(reader.options)) if LIST_HEAD.match(raw) else None
        if listed and not listed.rest and not listed.hedged:
            return commitment(text, span, listed.letters)
    if len(raw) <= 300 and "\n" not in raw:
        letters = read_bare(raw, reader)
        if letters is not None:
            return commitment(text, span, letters)
    lead = read_lead(text, reader)
    return lead or read_conclusion(text, reader)


def lists_letters(raw: str, reader: ChoiceReader) -> bool:
    """Whether a reply has only different letters, one a line: answers to several questions."""
    lines = [NUMBERED.sub("", line) for line in raw[:200].split("\n") if line.strip()]
    if len(raw) > 100 or len(lines) < 2 or any(len(line) > 12 for line in lines):
        return False
    letters = [parse_letters(strip_markup(line), len(reader.options)) for line in lines]
    return all(x and not x.rest for x in letters) and len({x.letters for x in letters if x}) > 1


def read_bare(  # noqa: PLR0911 - one return per form
    raw: str, reader: ChoiceReader
) -> frozenset[str] | None:
    """The option that a short reply is: its letter, its text, or its value."""
    plain = strip_markup(DECORATION.sub("", raw))
    if len(plain) > 1 and len(named := reader.options.by_text(text_form(plain))) == 1:
        return reader.letters_of(named)
    if both := reader.read_text_and_letter(plain):
        return both
    plain = after_negation(plain)
    if not plain or plain.endswith("?"):
        return None
    letters = parse_letters(plain, len(reader.options))
    if letters is not None and not (letters.hedged and len(letters.letters) > 1):
        article = letters.letters & {"A", "I"} and not CLAUSE_AHEAD.match(letters.rest)
        clause = letters.rest[:1] in tuple(",;:") or bool(CLAUSE_AHEAD.match(letters.rest))
        clause = (clause and not article) or bool(ARE_CORRECT.match(letters.rest))
        marked = letters.marked and len(letters.letters) == 1
        if not letters.rest or marked or clause or reader.has_own_text(letters):
            return None if names_another(letters, reader) else reader.read_letters(letters)
        if reader.takes_back(letters):
            return None
    if is_unreal(plain):
        return None
    if len(reader.options):
        named = option_of(plain, reader.options, reader.math)
        if len(named) == 1:
            return reader.letters_of(named)
    equation = EQUATION_OF_LETTERS.match(plain)
    side = None if equation else parse_letters(right_side(plain), len(reader.options))
    if side and not side.rest and len(side.letters) == 1:
        return side.letters
    named = reader.by_value(right_side(plain) or only_number(plain))
    stated = cut_clause(plain)
    taken_back = reader.denies(stated) or is_taken_back(plain[len(stated) :])
    if not named and len(COPULA.findall(stated)) == 1 and not taken_back:
        named = reader.by_value(predicate(stated))
    return named or reader.by_place(plain) or None


def names_another(letters: Letters, reader: ChoiceReader) -> bool:
    """Whether the text behind a letter begins or goes on with other letters: a list of options."""
    rest = letters.rest
    only = ONLY_LETTER.fullmatch(rest)
    if (
        only
        and only.group(1) not in letters.letters
        and not reader.options.by_text(text_form(rest))
    ):
        return True
    if len(rest) > 60 and not OTHER_LETTER.match(rest):
        return len(set(marked_letters(rest, len(reader.options))) - letters.letters) > 1
    following = OTHER_LETTER.match(rest)
    others = set(reader.mentions(rest)) | ({following.group(1)} if following else set())
    others |= set(labelled_options(cut_clause(before_comparison(rest)), reader.options))
    return bool(others - letters.letters)


def read_lead(text: str, reader: ChoiceReader) -> Commitment[frozenset[str]] | None:
    """The option that a reply begins with: `(B) no`, or a letter on its own line."""
    span = first_sentence(text)
    line = strip_markup(text[span.start : span.start + 400].split("\n", 1)[0])
    letters = parse_letters(line, len(reader.options))
    if letters is None or len(letters.letters) > 1 or lists_options(text, span.start):
        return None
    if text[span.end : span.end + 1] == "?" or names_another(letters, reader):
        return None
    letters_read = reader.read_letters(letters) if letters.marked or not letters.rest else None
    return None if letters_read is None else commitment(text, span, letters_read)


def read_subject(text: str, reader: ChoiceReader) -> Commitment[frozenset[str]] | None:
    """The option that the first sentence is about: `Box B encloses`, `the third image (B) is`."""
    span = first_sentence(text)
    raw = text[span.start : span.end]
    if lists_options(text, span.start) or UNKNOWN.search(raw):
        return None
    if text[span.end : span.end + 1] == "?":
        return None
    if reader.denies(raw):
        letters = reader.affirmed(raw)
        return commitment(text, span, letters) if letters else None
    letters = set(reader.mentions(before_comparison(raw)))
    subject = SUBJECT.match(raw) if reader.options.only_letters else None
    if subject and in_range(subject.group(1), len(reader.options)):
        letters = {subject.group(1)}
    elif reader.options.only_letters and (compared := COMPARED.search(raw)):
        letters = {compared.group(1)}
    return commitment(text, span, frozenset(letters)) if len(letters) == 1 else None


def lists_options(text: str, at: int) -> bool:
    """Whether the line at a position and the next or previous line begin with different letters."""
    here, _, after = text[at : at + 400].partition("\n")
    letter = LINE_LETTER.match(here)
    if letter is None:
        return False
    before = text[max(0, at - 300) : at].rstrip().rsplit("\n", 1)[-1]
    others = map(LINE_LETTER.match, (before, after.lstrip().split("\n", 1)[0]))
    return any(other and other.group(1) != letter.group(1) for other in others)


def read_conclusion(text: str, reader: ChoiceReader) -> Commitment[frozenset[str]] | None:
    """The option of the last sentence that draws a conclusion, of the first, or of the last one."""
    ordered = sentences(text, 12)
    offered = any(map(NONE.search, reader.options.forms))
    denied = [text[s.start : s.end] for s in ordered[:2] if NONE.search(text[s.start : s.end])]
    if any(not (offered and reader.mentions(sentence)) for sentence in denied):
        return None
    concluding = [s for s in ordered if CONCLUDES.match(text[s.start : s.end])]
    return (
        read_last(text, concluding, reader)
        or read_subject(text, reader)
        or read_last(text, ordered[:LAST], reader)
        or read_option_text(text, reader)
    )


def read_last(
    text: str, ordered: Sequence[Span], reader: ChoiceReader
) -> Commitment[frozenset[str]] | None:
    """The option of the last of these sentences that names any; two options are no commitment."""
    for span in ordered:
        raw = text[span.start : span.end]
        if (
            raw.endswith("?")
            or is_listed(text, span.start, reader)
            or UNKNOWN.search(raw)
            or lists_options(text, label_start(text, span.start))
        ):
            continue
        letters = named_in(raw, reader, with_texts=span in ordered[:1])
        if (letters or not raw.isascii()) and reader.denies(raw):
            letters = reader.affirmed(raw) or (letters and letters | {"?"})
        if len(letters) == 1:
            return commitment(text, Span(span.start, span.end, "conclusion"), letters)
        if letters:
            return None
    return None


def is_listed(text: str, at: int, reader: ChoiceReader) -> bool:
    """Whether a sentence is the text of an option in a list on one line: `A. 30 B. 40`."""
    line = text[max(0, at - 200) : at].rpartition("\n")[2]
    label = LINE_END_LETTER.search(line, max(0, len(line) - LONGEST_LABEL))
    return bool(label) and bool(labelled_options(line[: label.start()], reader.options))


def label_start(text: str, at: int) -> int:
    """Where the label before a sentence begins: `D. ` before `80`; else the sentence itself."""
    line = text[max(0, at - 12) : at].rpartition("\n")[2]
    return at - len(line) if LINE_LETTER.fullmatch(line.rstrip()) else at


def read_corrected(text: str, reader: ChoiceReader) -> Commitment[frozenset[str]] | None:
    """The option that a reply names behind a correction: `So it's C`, `it should be C`."""
    ordered = sentences(text, 12)
    states = [s for s in ordered if CORRECTED.match(text[s.start : s.end])]
    if corrected := read_last(text, states, reader):
        return corrected
    for span in [] if states else ordered[:LAST]:
        if letters := ends_in_option(text[span.start : span.end], reader):
            return commitment(text, Span(span.start, span.end, "conclusion"), letters)
    return None


def read_option_text(text: str, reader: ChoiceReader) -> Commitment[frozenset[str]] | None:
    """The only option whose text occurs in a reply (MMMU's rule); a number may be any number."""
    named = option_in(text[-4000:], reader.options) if len(reader.options) else []
    if (
        len(named) != 1
        or is_unreal(text[-4000:])
        or parse_value(strip_markup(reader.options.texts[named[0]])).number is not None
    ):
        return None
    span = whole(text)
    return commitment(text, Span(span.start, span.end, "text"), reader.letters_of(named))


def named_in(raw: str, reader: ChoiceReader, with_texts: bool) -> frozenset[str]:
    """The letters that a sentence names: by letter, else, if asked, by the text of options."""
    compared = COMPARED.search(raw) if reader.options.only_letters else None
    if compared and in_range(compared.group(1), len(reader.options)):
        return frozenset(compared.group(1))
    alone = parse_letters(strip_markup(raw), len(reader.options)) if len(raw) < 24 else None
    if with_texts and alone and not alone.rest and not alone.hedged and not raw.islower():
        return alone.letters
    head = before_comparison(raw)
    letters = frozenset(reader.mentions(head) or (reader.mentions(raw) if head != raw else ()))
    if letters or not with_texts or not len(reader.options):
        return letters
    named = option_in(raw, reader.options)
    if not named and (place := reader.by_place(strip_markup(raw))):
        return place
    if named or not CONCLUDES.match(raw):
        return reader.letters_of(named)
    return reader.by_value(only_number(strip_markup(raw)))


def decide(
    response: str, answer: str, choices: tuple[str, ...], take: Take, math: Mathematics | None
) -> Verdict:
    """The verdict on a reply after `readable`, with one gold answer."""
    options = read_options(tuple(choices))
    gold = gold_letters(answer, options)
    commit = find_choice(response, take, ChoiceReader(options, math))
    return verdict_of(commit, gold, answer)


@with_gold
def check(
    response: str, answer: str, choices: tuple[str, ...], take: Take, math: Mathematics | None
) -> Verdict:
    """A letter (`B`, `(B)`, `A, C`), or the text or the value of exactly one option.

    Source: the multiple-choice rules of MMMU, BLINK, MathVision and We-Math; never a random guess.
    """
    return decide(response, answer, choices, take, math)


def verdict_of(
    commit: Commitment[frozenset[str]] | None, gold: frozenset[str], answer: str
) -> Verdict:
    """The verdict on the letters of a commitment."""
    gold_form = ", ".join(sorted(gold)) or answer
    if commit is None:
        return Verdict(None, False, gold_form=gold_form, reason="the reply commits to no option")
    form = ", ".join(sorted(commit.form or ()))
    where = (commit.start, commit.end)
    if not gold:
        reason = "the gold answer names no option"
    elif not commit.form:
        reason = "the answer names no option"
    else:
        reason = "" if commit.form == gold else "another option"
    return Verdict(
        commit.text, not reason, commit.rule, where, form or commit.text, gold_form, reason
    )
