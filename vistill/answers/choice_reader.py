"""Read the letters of options from an answer to one row."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vistill.answers.compare import Mathematics
from vistill.answers.denials import (
    CHINESE_AGAINST,
    DENIED,
    IFS,
    affirmed_letter,
    is_no_statement,
    is_taken_back,
    is_unreal,
)
from vistill.answers.letters import Letters, in_range, parse_letters
from vistill.answers.normalise import strip_markup, text_form
from vistill.answers.options import (
    Options,
    marked_letters,
    option_in,
    option_of,
    same_option,
)
from vistill.answers.reading import after_negation, cut_clause, right_side
from vistill.answers.values import parse_value

#: Nouns before a letter that name an option where the options show only their letters.
NOUNS = (
    r"(?:point|box|picture|image|figure|option|choice|diagram|graph|shape|object|panel|statement"
    r"|answer)"
)
NO_LIST = r"(?![A-Za-z0-9])(?!\s?(?:,|/|and|or|或|和|与|、)\s?[(\[]?[A-Z]\b)"
LABEL = re.compile(rf"(?i:\b{NOUNS}s?)\s[\"'(\[]{{0,2}}([A-Z]){NO_LIST}")
OPTION = re.compile(r"(?i:\b(?:option|choice|选项|选))\s?[\"'(\[]{0,2}([A-Za-z])" + NO_LIST)
IS_CORRECT = re.compile(
    r"(?<![A-Za-z0-9])[(\[\"']?([A-Z])[)\]\"']?\.?\s(?:is|would be|seems|appears) (?:the |my )?"
    r"(?:most |more |final )?(?:one(?=\W{0,3}$)|correct|right(?! (?:angle|side|triangle|hand|one))"
    r"|best|answer|appropriate|accurate|likely|suitable|true)"
)
#: `only B fits`, and `A is close but B is closer`.
ONLY = re.compile(
    r"(?i:\bonly (?:option )?)[(\[]?([A-Z])[)\]]? (?:fits?|works?"
    r"|matche?s?|remains|satisfies|holds|makes sense"
    r"|is (?:left|possible|consistent|correct|right))\b"
)
#: `Image B matches.`, and no other letter behind it.
MATCHES = re.compile(
    rf"(?i:\b{NOUNS})\s[\"'(\[]?([A-Z])[)\]\"']?\s(?:best |exactly |clearly )?"
    r"(?:matche?s|fits|works|applies)\b(?![^.\n]{0,80}\b[A-HJ-Z]\b)"
)
#: `B it is.`
IT_IS = re.compile(
    r"(?:^|\b(?:[Ss]o|[Tt]hen),?\s)(?i:option )?[(\[\"']?([A-Z])[)\]\"']? it is(?: then)?"
    r"(?=\W{0,3}$|[,;]\s?(?:because|since|as)\b)"
)
#: `the second one`: an option by its place.
PLACES = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth"]
ORDINAL = re.compile(
    r"(?:(?:so|therefore|thus|hence),?\s)?"
    r"(?:(?:it is|it's|i(?:'d| would)? (?:choose|pick|say))\s)?(?:the\s)?"
    rf"({'|'.join(PLACES)}|last)\s(one|option|choice|answer|alternative|image|picture|figure)"
    r"(?:\s(?:is|looks)\s(?:the\s)?(?:correct|right|best)(?:\s(?:one|answer|option|choice))?)?",
    re.IGNORECASE,
)
PLACE_WORD = re.compile(rf"\b(?:{'|'.join(PLACES)}|last|\d(?:st|nd|rd|th))\b", re.IGNORECASE)
BETTER = re.compile(
    r"\bbut (?:option )?[(\[]?([A-Z])[)\]]? (?:is|fits|seems|looks|matches)"
    r" (?:closer|closest|better|best)\W{0,3}$"
)
#: Behind denied options: `I rule out A, so it must be B`.
CONCLUDED = re.compile(r"[,;]\s(?:and )?(?:so|therefore|thus|hence|leaving|which leaves)\b")
#: A bare letter at the end of a sentence.
ENDS = re.compile(
    r"\b(?:get|gives|choose|select|pick|say|guess|answer|[Gg]o(?:ing)? with|so|[Mm]ust be"
    r"|leaves(?: only| us with)?|leaving(?: only)?|(?:final|left) is"
    r"|should be|(?:it|It)(?:'s| is))"
    r"\s([A-Z])\W{0,3}$"
)
ENDS_CHINESE = re.compile(r"(?:应该?[是选为]|[是选为])\s?([A-Z])\W{0,3}$")
ENDS_ONE = re.compile(
    r"\b(?:one|guess|option|choice|answer|match|statement|solution)\b[^.\n]{0,60}\bis\s([A-Z])\W{0,3}$"
)
ENDS_ONLY = re.compile(
    r"\b(?:is|(?:indicated|marked|shown|represented|labell?ed|denoted|given) (?:by|as|with|in))"
    r"\s([A-Z])\W{0,3}$"
)
#: A second option behind `or`: `(C) the third image or (D) the fourth image`.
OR_ANOTHER = re.compile(r"\b(?i:or(?: option| choice)?) (?:[(\[]([A-Z])[)\]]|([A-Z])[.)](?:\s|$))")
THAN = re.compile(
    r"\b(?:than|compared (?:to|with)|rather than|as opposed to|unlike)\b", re.IGNORECASE
)
#: A letter without which a sentence names no option, except behind `option`.
LONE_CAPITAL = re.compile(r"[A-Z](?<![A-Za-z0-9].)(?![A-Za-z0-9])")
OF_CAPITALS = [IS_CORRECT, ONLY, BETTER, ENDS, ENDS_ONE, MATCHES, IT_IS]
#: `All of the above` and `none of the above` are different options.
OF_ABOVE = re.compile(r"(?:all|none|both|neither|any|some) of (?:the above|these|them)")
#: The other half of a reply about another opinion: `..., but the image shows B`.
SHOWS = re.compile(
    r"\s{0,2}(?:the|this|my) \w{1,12} (?:clearly )?(?:shows|indicates|is|says|gives)"
    r" ([A-Z])\W{0,3}$"
)
#: `no` behind a letter, as a word of its own.
NO = re.compile(r"(?:no|nope)(?=$|[,.;:!])")
#: `A: I cannot tell` is no option A.
REFUSES = re.compile(
    r"^\W{0,3}(?:sorry|i(?:'m| am) (?:sorry|not|unable)"
    r"|i (?:can't|cannot|don't|do not|could not))\b",
    re.IGNORECASE,
)
#: What says something about an option and does not choose it: `Option A is too small`.
ABOUT = re.compile(
    r"(?:is|are|was|has|have|does|would|could|can|seems|appears|looks|states|says|shows|represents)"
    r"\b(?![^.;,]{0,40}\b(?:correct|right|best|answer|true|most|likely|one|choice|option|solution)\b)"
)
#: What tells the text of an option: `Option B says 40`.
TELLS = re.compile(r"(?:says|states|reads|lists|mentions|claims)\b")
ALL_BUT = re.compile(r"\b(?:any\w{0,5}|every\w{0,5}|nothing|all|none)$", re.IGNORECASE)
#: Between a letter and its text: `C, which is 60`, `C (60)`.
JOINT = re.compile(
    r"^(?:[\s,:;.-]|\((?=[^()]{1,200}\)$)){0,3}"
    r"(?:(?:which|that) (?:is|equals|means)|也?就是|即|等于|with|i\.e\.,?|namely|=)?\s?",
    re.I,
)
#: A letter behind the text of an option: `60 (option B)`.
LETTER_BEHIND = re.compile(
    r"(?:\s\(|,\s(?:which is |that is |i\.e\.,? |so )?)(?i:option|choice|answer)?\s?([A-Z])\)?$"
)


def before_comparison(raw: str) -> str:
    """A sentence before what it compares with: `(A) is a closer match` of `... than (B)`."""
    match = THAN.search(raw)
    return raw[: match.start()] if match else raw


@dataclass(frozen=True)
class ChoiceReader:
    """Reads option letters from answers to one row."""

    options: Options
    math: Mathematics | None

    def read(self, plain: str, rule: str) -> frozenset[str] | None:
        """The letters that an answer names; an empty set for a value that is no option."""
        if len(plain) > 1 and len(named := self.options.by_text(text_form(plain))) == 1:
            return self.letters_of(named)
        stated = after_negation(plain)
        if not stated:
            return self.read_denial(plain)
        plain = stated
        letters = parse_letters(plain, len(self.options))
        if letters is not None:
            return self.read_letters(letters)
        if not len(self.options):
            return self.read_label(plain, rule)
        behind = LETTER_BEHIND.search(plain)
        head = plain[: behind.start()] if behind else ""
        for part in (plain, head, cut_clause(plain), right_side(plain)):
            short = part and len(part) <= self.options.longest() + 60
            named = option_of(part, self.options, self.math) if short else []
            if len(named) == 1:
                letters = self.letters_of(named)
                return letters if behind is None or behind.group(1) in letters else frozenset()
        return self.by_place(plain) or self.read_sentence(plain, rule)

    def read_denial(self, plain: str) -> frozenset[str] | None:
        """The option whose text begins a denied answer: `not enough information to tell`."""
        form = text_form(plain)
        named = [i for i, own in enumerate(self.options.forms) if own and form.startswith(own)]
        return self.letters_of(named) if len(named) == 1 else None

    def read_letters(self, letters: Letters) -> frozenset[str] | None:
        """The letters at the beginning of an answer; None for a hedge."""
        if letters.hedged and len(letters.letters) > 1:
            return None
        if self.contradicts(letters):
            return frozenset()
        return None if self.offers_another(letters) or self.takes_back(letters) else letters.letters

    def offers_another(self, letters: Letters) -> bool:
        """Whether another option follows the text of the first behind `or`."""
        rest = before_comparison(cut_clause(letters.rest))
        if DENIED.search(rest):
            return False
        others = {m.group(1) or m.group(2) for m in OR_ANOTHER.finditer(rest)}
        return any(in_range(o, len(self.options)) for o in others - letters.letters)

    def takes_back(self, letters: Letters) -> bool:
        """Whether the text behind a letter does not choose it: `(A) No`, `Option A is too small`.

        The text of its own option chooses it.
        """
        rest = text_form(letters.rest)
        index = [ord(letter) - ord("A") for letter in letters.letters]
        own = self.options.forms[index[0]] if index[0] < len(self.options) else ""
        if own and rest.startswith(own):
            return is_taken_back(rest[len(own) :])
        if TELLS.match(rest) and not self.options.only_letters:
            return True
        if ABOUT.match(rest) and not (self.options.only_letters or own in rest):
            return True
        if NO.match(rest) and not (self.options.only_letters or NO.match(own) or own in rest):
            return True
        against = is_taken_back(letters.rest) or CHINESE_AGAINST.match(letters.rest)
        return bool(against or REFUSES.match(letters.rest))

    def contradicts(  # noqa: PLR0911 - one return per form
        self, letters: Letters
    ) -> bool:
        """Whether a letter and the text behind it disagree.

        The text is that of another option, or a value that is not the one of its own.
        """
        index = [ord(letter) - ord("A") for letter in letters.letters]
        rest = cut_clause(JOINT.sub("", letters.rest)).rstrip(" ).")
        if len(index) != 1 or not rest or index[0] >= len(self.options):
            return False
        if named := self.options.by_text(text_form(rest)):
            return index[0] not in named
        form, own_form = text_form(rest), self.options.forms[index[0]]
        if form.startswith(own_form) or own_form.startswith(form):
            return False
        if OF_ABOVE.fullmatch(form) and OF_ABOVE.fullmatch(own_form):
            return True
        value = parse_value(rest)
        own = parse_value(strip_markup(self.options.texts[index[0]]))
        if value.number is not None and own.number is not None:
            return abs(value.number - own.number) * 50 > abs(own.number)
        if not (value.is_mathematics() and own.is_mathematics()):
            return False
        return not same_option(rest, self.options.texts[index[0]], self.math)

    def has_own_text(self, letters: Letters) -> bool:
        """Whether the brackets behind a letter hold the text of its option: `B (y)`."""
        own = [ord(letter) - ord("A") for letter in letters.letters]
        inner = letters.rest[1:-1] if letters.rest[:1] + letters.rest[-1:] == "()" else ""
        return bool(inner) and self.options.by_text(text_form(inner)) == own

    def read_text_and_letter(self, plain: str) -> frozenset[str]:
        """The option whose text and letter agree: `None of the above. (E)`."""
        behind = LETTER_BEHIND.search(plain)
        named = self.options.by_text(text_form(plain[: behind.start()])) if behind else []
        letters = self.letters_of(named)
        return letters if behind and letters == frozenset(behind.group(1)) else frozenset()

    def read_sentence(self, plain: str, rule: str) -> frozenset[str] | None:
        """The one option that a sentence names inside it; a number that is no option is none."""
        if labelled := self.read_label(plain, rule):
            return labelled
        if rule != "box" and len(named := option_in(plain, self.options)) == 1:
            return self.letters_of(named)
        if parse_value(cut_clause(plain)).number is not None:
            return frozenset()
        return None

    def read_label(self, plain: str, rule: str) -> frozenset[str] | None:
        """The one letter in brackets, or behind `option` or `point`, of a sentence."""
        letters = set(self.mentions(plain))
        return frozenset(letters) if len(letters) == 1 else None

    def by_value(self, value: str) -> frozenset[str]:
        """The one option with this value; empty if there is none, or several."""
        named = option_of(value, self.options, self.math) if value and len(self.options) else []
        return self.letters_of(named) if len(named) == 1 else frozenset()

    def by_place(self, plain: str) -> frozenset[str]:
        """The option that a whole answer names by its place: `the second one`; else empty.

        Not where an option has a place in its own text. Pictures have places only where the
        options show nothing but letters.
        """
        match = ORDINAL.fullmatch(plain) if len(plain) <= 300 else None
        count = len(self.options)
        if match is None or count < 2 or any(map(PLACE_WORD.search, self.options.texts)):
            return frozenset()
        is_picture = match.group(2).lower() in ("image", "picture", "figure")
        if is_picture and not self.options.only_letters:
            return frozenset()
        place = match.group(1).lower()
        index = count - 1 if place == "last" else PLACES.index(place)
        return frozenset(self.options.letter(index) if index < count else "")

    def denies(self, sentence: str) -> bool:
        """Whether a sentence denies or doubts what it names: `A is wrong`, `(A) No`."""
        if is_no_statement(sentence):
            return True
        letters = parse_letters(strip_markup(sentence), len(self.options))
        return letters is not None and self.takes_back(letters)

    def affirmed(self, sentence: str) -> frozenset[str]:
        """The option that a sentence affirms next to denied ones, or behind `but`; else empty."""
        letter = affirmed_letter(sentence)
        if letter and in_range(letter, len(self.options)):
            return frozenset(letter)
        head, but, clause = sentence.rpartition(" but ")
        stated = but and not ALL_BUT.search(head) and not self.denies(clause)
        so = list(CONCLUDED.finditer(sentence))
        if not stated and so and not IFS.search(sentence) and not is_unreal(sentence):
            clause = sentence[so[-1].start() :]
            stated = not self.denies(clause)
        letters = set(self.mentions(clause)) if stated else set()
        if stated and (shown := SHOWS.match(clause)):
            letters |= {x for x in shown.groups() if in_range(x, len(self.options))}
        return frozenset(letters if len(letters) == 1 else "")

    def letters_of(self, named: Sequence[int]) -> frozenset[str]:
        """The letters of options."""
        return frozenset(self.options.letter(i) for i in named)

    def mentions(self, text: str) -> list[str]:
        """The letters that a sentence names as options, in order of the patterns."""
        patterns = [OPTION]
        if LONE_CAPITAL.search(text):
            patterns += OF_CAPITALS
            if not text.isascii():
                patterns.append(ENDS_CHINESE)
            if self.options.only_letters:
                patterns += [LABEL, ENDS_ONLY]
        named = [letter.upper() for pattern in patterns for letter in pattern.findall(text)]
        letters = [*marked_letters(text, len(self.options)), *named]
        return [letter for letter in letters if in_range(letter, len(self.options))]
