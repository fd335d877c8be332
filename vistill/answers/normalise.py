r"""Normal forms of an answer: without wrappers, as text, and as mathematics.

`strip_markup` is one pass from left to right with a stack of braces.
"""

import re
import unicodedata
from functools import lru_cache

from vistill.answers.characters import plain_characters
from vistill.answers.units import CASED

#: Longest answer that is read; a longer one is no answer.
MOST_CHARACTERS = 2000
#: LaTeX commands that only change how their argument looks.
WRAPPERS = frozenset(
    [
        "text",
        "textbf",
        "textit",
        "textrm",
        "textsf",
        "texttt",
        "textnormal",
        "mathrm",
        "mathbf",
        "mathit",
        "mathsf",
        "mathtt",
        "mathbb",
        "boldsymbol",
        "bm",
        "operatorname",
        "mbox",
        "hbox",
        "underline",
        "emph",
        "boxed",
        "fbox",
        "framebox",
        "ensuremath",
    ]
)
#: LaTeX commands that stand for nothing.
EMPTY = frozenset(
    [
        "left",
        "right",
        "displaystyle",
        "textstyle",
        "scriptstyle",
        "big",
        "Big",
        "bigg",
        "Bigg",
        "bigl",
        "bigr",
        "Bigl",
        "Bigr",
        "limits",
        "bf",
        "rm",
        "it",
        "tt",
        "sf",
        "tiny",
        "scriptsize",
        "footnotesize",
        "small",
        "normalsize",
        "large",
        "Large",
        "LARGE",
        "huge",
        "Huge",
        "boldmath",
    ]
)
SPACES = frozenset(["quad", "qquad", "space", "enspace", "thinspace", "hspace", "hfill"])
RENAMED = {"dfrac": r"\frac", "tfrac": r"\frac", "cfrac": r"\frac", "degree": "°", "dots": "..."}
RENAMED |= {"colon": ":", "lt": "<", "gt": ">"}
TOKEN = re.compile(
    r"(?P<color>\\(?:text)?color\s?\{[A-Za-z0-9!]{1,30}\})"
    r"|(?P<degree>(?<=\d)\s?\^\s?(?:o(?![A-Za-z])|\{\s?(?:o|\\(?:text|mathrm)\s?\{o\})\s?\}))"
    r"|\\(?P<command>[A-Za-z]{1,20})\*?(?P<argument>\s{0,4}\{)?"
    r"|\\(?P<sign>.)|(?P<circle>\^\s?\{?\s?\\circ\s?\}?)|(?P<brace>[{}])|(?P<dollar>\$)|(?P<stars>\*{1,3}|`{1,3})"
    r"|(?P<tag></?(?:b|i|u|p|em|strong|sub|sup|br|span|code|center|answer|final)\s?/?>)|(?P<tie>~)",
    re.DOTALL | re.IGNORECASE,
)
#: Characters without which there is no token; a space may stand before the first one.
MARKUP = re.compile(r"[\\^{}$*`<~]")
#: Characters that look like another one and mean the same.
ALIASES = str.maketrans("⁄∕º˚µ⟂", "//°°μ⊥")
#: Units in one character.
SIGN_OF_UNIT = re.compile("[℃℉\u2126\u212a\u3371-\u33df\u33ff]")
#: Marks and arrows around an answer: `✅ B`, `→ 12`.
CHECK_MARKS = "\u2705\u2714\u2611\u2713\ufe0f\U0001f449\u27a1\u2192\u21d2\u25ba\u25b6"
QUOTES = "\"'\u2018\u2019\u201c\u201d\u00ab\u00bb"
#: `5!`, `n!` and `(n+1)!` are mathematics, `Yes!` and `It's 12!` are not.
FACTORIAL = re.compile(r"(?:(?<![A-Za-z0-9])(?:\d{1,20}|[A-Za-z])|\))!$")
SENTENCE = re.compile(r"(?<![\\A-Za-z])[A-Za-z']{2,20}\s")
ARTICLE = re.compile(r"^(?:the|an?)\s+(?=\S)", re.IGNORECASE)
#: Superscripts, subscripts and vulgar fractions.
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
RAISED = re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]{1,20}")
LOWERED = re.compile(r"[₀₁₂₃₄₅₆₇₈₉]{1,20}")
VULGAR = re.compile(r"[¼-¾⅐-⅞]")
ONE_SCRIPT = re.compile(r"([_^])\{(\w)\}")
#: The subscript of a formula: `_2` in `H_2O`.
FORMULA_INDEX = re.compile(r"(?<=[A-Za-z)])_(?:(\d)|\{(\d{1,3})\})")
#: `①、③` and `①③` are the same list, but `13` is a number.
CIRCLED = re.compile(r"[、,;]?\s?([①-⑳])")
HALF_OF_DAY = re.compile(r"(?<=\d)\s?([ap])\.?\s?m\b\.?|\b([ap])\.\s?m\b\.?")
#: Where the case of letters counts: LaTeX commands, Greek letters, units such as `MW` and `mW`.
CASE_COUNTS = re.compile(
    rf"(\\[A-Za-z]{{1,20}}|[Α-Ω]|(?<=\d)\s?(?:{'|'.join(sorted(CASED))})(?![A-Za-z]))"
)
SYMBOLS = {
    "∞": r"\infty ",
    "×": "*",
    "·": "*",
    "⋅": "*",
    "∙": "*",
    "÷": "/",
    "−": "-",
    "≤": r"\le ",
    "≥": r"\ge ",
    "≠": r"\ne ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∈": r"\in ",
    "±": r"\pm ",
    "∅": r"\emptyset ",
    "∠": r"\angle ",
    "△": r"\triangle ",
    "∆": r"\triangle ",
    "∥": r"\parallel ",
    "⊥": r"\perp ",
    "<=": r"\le ",
    ">=": r"\ge ",
    "!=": r"\ne ",
    r"\leqslant": r"\le ",
    r"\geqslant": r"\ge ",
    r"\cdot": "*",
    r"\times": "*",
    r"\div": "/",
    r"\leq": r"\le ",
    r"\geq": r"\ge ",
    r"\neq": r"\ne ",
    r"\varnothing": r"\emptyset ",
    r"\lbrace": r"\{",
    r"\rbrace": r"\}",
}
GREEK = {
    "α": "alpha",
    "β": "beta",
    "γ": "gamma",
    "δ": "delta",
    "ε": "epsilon",
    "ζ": "zeta",
    "η": "eta",
    "θ": "theta",
    "κ": "kappa",
    "λ": "lambda",
    "μ": "mu",
    "ν": "nu",
    "ξ": "xi",
    "π": "pi",
    "ρ": "rho",
    "σ": "sigma",
    "τ": "tau",
    "φ": "phi",
    "χ": "chi",
    "ψ": "psi",
    "ω": "omega",
    "Γ": "Gamma",
    "Δ": "Delta",
    "Θ": "Theta",
    "Λ": "Lambda",
    "Π": "Pi",
    "Σ": "Sigma",
    "Φ": "Phi",
    "Ψ": "Psi",
    "Ω": "Omega",
}
SYMBOLS |= {letter: f"\\{name} " for letter, name in GREEK.items()}
SYMBOL = re.compile(
    r"\\(?:cdot|times|div|leq|geq|leqslant|geqslant|neq|varnothing|lbrace|rbrace)(?![A-Za-z])"
    r"|[∞×·⋅∙÷−≤≥≠∪∩∈±∅∠△∆∥⊥α-ωΓ-Ω]|(?<!<)[<>!]=(?!>)"
)
ROOT = re.compile(
    r"(?:√|\\sqrt|(?<![A-Za-z\\])sqrt)\s?(?:\(([^()]{1,60})\)|(\d{1,20}(?:\.\d{1,20})?|[A-Za-z](?![A-Za-z])))"
)
HIGHER_ROOT = re.compile(r"[∛∜]\s?(?:\(([^()]{1,60})\)|(\d{1,20}|[A-Za-z](?![A-Za-z])))")
#: Spaces count behind a command (`\pi r`) and between two digits (`1 1/2` is not `11/2`).
SPACE = re.compile(r"(\\[A-Za-z]{1,20} (?=[A-Za-z])|(?<=\d) (?=\d))|\s")
#: `\log_2 8` has a base of one digit.
CLOSE_SCRIPT = re.compile(r"([_^])(\d) (?=\d)")
#: `log 7`, `sin(x)`, `log_2 8`: a function without its backslash, before what it is applied to.
FUNCTION = re.compile(
    r"(?<![A-Za-z\\])((?:arc)?(?:sin|cos|tan)|cot|sec|csc|log|ln|lg)"
    r"(?=\s?(?:[\d({_^√\\]|[a-zθαβ](?![A-Za-z])))"
)
PI = re.compile(r"pi(?<![A-Za-z\\]pi)(?![A-Za-z])")
SHORT_FRACTION = re.compile(r"\\frac\s?(\d)\s?(\d)(?!\d)|\\frac\s?\{([^{}]{1,60})\}\s?(\d)(?!\d)")


@lru_cache(maxsize=4096)
def strip_markup(text: str) -> str:
    """An answer without LaTeX wrappers, dollars, markdown, tags and spaces at its ends."""
    text = one_meaning(text[:MOST_CHARACTERS].strip())
    first = MARKUP.search(text)
    if first is None:
        return strip_ends(" ".join(text.split()))
    # One `$` before a number is a currency, two are LaTeX.
    currency = text.replace("\\$", "").count("$") == 1 and re.search(r"\$\s?-?[\d.]", text)
    parts: list[str] = []
    dropped: list[bool] = []
    at = 0
    for token in TOKEN.finditer(text, max(0, first.start() - 1)):
        parts.append(text[at : token.start()])
        at = token.end()
        parts.append(replacement(token, dropped, text, bool(currency)))
    parts.append(text[at:])
    return strip_ends(" ".join("".join(parts).split()))


def one_meaning(text: str) -> str:
    """A text with one character for each meaning: full-width signs, `℃`, `㎡`, `⁄`, `º`."""
    if text.isascii():
        return text
    text = plain_characters(text).translate(ALIASES)
    return SIGN_OF_UNIT.sub(unit_sign, text)


def unit_sign(match: "re.Match[str]") -> str:
    """A unit in one character as letters: `㎡` as `m^2`."""
    letters = unicodedata.normalize("NFKC", match.group(0)).translate(ALIASES)
    return re.sub(r"(?<=[a-z])([23])$", r"^\1", letters)


def replacement(token: "re.Match[str]", dropped: list[bool], text: str, currency: bool) -> str:
    """What stands for a token of `strip_markup`; `dropped` is the stack of open braces."""
    if token.group("command") is not None:
        return command_form(token.group("command"), bool(token.group("argument")), dropped)
    if token.group("brace") == "{":
        dropped.append(False)
        return "{"
    if token.group("brace") == "}":
        return "" if dropped and dropped.pop() else "}"
    if token.group("stars"):
        return stars_form(token, text)
    if token.group("sign") is not None:
        return sign(token.group("sign"))
    names = {"dollar": "$" if currency else "", "circle": "°", "degree": "°", "color": ""}
    return next((form for name, form in names.items() if token.group(name)), " ")


def command_form(command: str, argument: bool, dropped: list[bool]) -> str:
    """What stands for a LaTeX command; `argument` says that a brace follows."""
    if command in WRAPPERS:
        if argument:
            dropped.append(True)
        return " " if command != "operatorname" else ""
    if argument:
        dropped.append(False)
    brace = "{" if argument else ""
    if command in EMPTY:
        return brace
    if command in SPACES:
        return " " + brace
    return RENAMED.get(command, "\\" + command) + brace


def stars_form(token: "re.Match[str]", text: str) -> str:
    """What stands for stars and backticks: `2**3` is a power, `2*3` a product, the rest nothing."""
    stars = token.group("stars")
    before, after = text[token.start() - 1 : token.start()], text[token.end() : token.end() + 1]
    if stars == "**" and before.isalnum() and (after.isalnum() or after == "("):
        return "^"
    return "*" if stars == "*" and before and after else ""


def sign(character: str) -> str:
    r"""What an escaped character stands for: `\,` a space, `\(` nothing, `\%` itself."""
    if character in ",;: \n":
        return " "
    if character in "!()[]":
        return ""
    return character if character in "$%&#_" else "\\" + character


def strip_ends(text: str) -> str:
    """Without quotes, a pair of braces, and punctuation at the ends."""
    for _ in range(6):
        before = text
        text = text.strip().strip(CHECK_MARKS).rstrip(",;:").strip()
        if text.endswith("!") and (SENTENCE.search(text) or not FACTORIAL.search(text)):
            text = text.rstrip("!")
        if text.endswith(".") and not text.endswith("..."):
            text = text[:-1].rstrip()
        if len(text) > 1 and text[0] in QUOTES and text[-1] in QUOTES:
            text = text[1:-1]
        if len(text) > 1 and text[0] == "{" and text[-1] == "}" and is_one_group(text):
            text = text[1:-1]
        if len(text) > 2 and text[0] == text[-1] == "_":
            text = text[1:-1]
        if text == before:
            break
    return text


def is_one_group(text: str) -> bool:
    """Whether the first brace closes at the last character."""
    depth = 0
    for i, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return i == len(text) - 1
    return False


def fold_case(text: str) -> str:
    r"""One case, but `\Delta` is not `\delta`, `Δ` not `δ`, and `5 MW` not `5 mW`.

    `STRASSE` is `Straße`, and the Turkish `İ` is `i`.
    """
    folded = text.casefold()
    if folded != text:
        parts = CASE_COUNTS.split(text)
        folded = "".join(part if i % 2 else part.casefold() for i, part in enumerate(parts))
    return folded.replace("i\u0307", "i")


def write_scripts(text: str) -> str:
    """Unicode superscripts, subscripts and vulgar fractions as `^{2}`, `_{2}` and ` 1/2`."""
    if text.isascii():
        return text
    text = VULGAR.sub(vulgar_fraction, text)
    text = RAISED.sub(lambda m: "^{" + m.group(0).translate(SUPERSCRIPTS) + "}", text)
    return LOWERED.sub(lambda m: "_{" + m.group(0).translate(SUBSCRIPTS) + "}", text)


@lru_cache(maxsize=4096)
def text_form(text: str) -> str:
    """Normal form of words: one case, no leading article, no punctuation at the ends.

    `H_2O` is `H2O`: a subscript behind a letter needs no sign, one behind a digit keeps it.
    """
    plain = strip_markup(text)
    if not plain.isascii():
        plain = unicodedata.normalize("NFKC", CIRCLED.sub(r" \1", write_scripts(plain)))
    if "_" in plain or "^" in plain:
        plain = FORMULA_INDEX.sub(r"\1\2", ONE_SCRIPT.sub(r"\1\2", plain))
    plain = HALF_OF_DAY.sub(r" \1\2m", fold_case(plain))
    plain = " ".join(plain.replace("\\{", "{").replace("\\}", "}").split())
    return ARTICLE.sub("", strip_ends(plain))


@lru_cache(maxsize=4096)
def math_form(plain: str) -> str:
    r"""Normal form of mathematics: LaTeX for Unicode signs, `\sqrt{2}`, `\frac{1}{2}`.

    Spaces are dropped, but not between two digits.

    Args:
        plain: an answer after `strip_markup`.
    """
    out = plain
    if not plain.isascii():
        out = HIGHER_ROOT.sub(higher_root, write_scripts(plain))
    out = SYMBOL.sub(lambda m: SYMBOLS.get(m.group(0), m.group(0)), out)
    out = ROOT.sub(lambda m: r"\sqrt{" + (m.group(1) or m.group(2)) + "}", out)
    out = out.replace("√", r"\sqrt")
    out = SHORT_FRACTION.sub(
        lambda m: r"\frac{%s}{%s}" % ((m[1], m[2]) if m[1] else (m[3], m[4])), out
    )
    out = FUNCTION.sub(r"\\\1 ", PI.sub(r"\\pi ", out))
    out = CLOSE_SCRIPT.sub(r"\1{\2}", " ".join(out.split()))
    return SPACE.sub(lambda m: m.group(1) or "", out)


def higher_root(match: "re.Match[str]") -> str:
    r"""`∛2` as `\sqrt[3]{2}`."""
    degree = 3 if match.group(0)[0] == "∛" else 4
    return rf"\sqrt[{degree}]{{{match.group(1) or match.group(2)}}}"


def vulgar_fraction(match: "re.Match[str]") -> str:
    """`½` as ` 1/2`."""
    return " " + unicodedata.normalize("NFKC", match.group(0)).replace("\u2044", "/")
