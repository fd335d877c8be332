"""Characters and marks of a reply that carry no meaning. Positions in the reply stay the same."""

import re

#: Full-width and typographic characters and their plain forms, one character for one.
PLAIN = str.maketrans(
    {
        **{chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},
        **dict.fromkeys("\u00a0\u2002\u2003\u2005\u2007\u2008\u2009\u200a\u202f\u3000\t", " "),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\r\u2028\u2029", "\n"),
        **dict.fromkeys("\u2018\u2019\u201a\u2032", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u300c\u300d\u300e\u300f", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2212", "-"),
        "\u3002": ".",
        "\u3010": "[",
        "\u3011": "]",
        "\u2236": ":",
    }
)
#: Invisible characters: between two letters they are nothing, so they become a space.
INVISIBLE = str.maketrans(dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\r", " "))
VISIBLE_AND_PLAIN = PLAIN | INVISIBLE
#: Runs of characters that have a plain form: most texts have few of them, and `re` skips to one.
TYPOGRAPHIC = re.compile("[{0}][{0}]*".format(re.escape("".join(map(chr, VISIBLE_AND_PLAIN)))))
#: Opening and closing marks of thoughts.
THOUGHT = re.compile(
    r"<\s?/?\s?(?:think|thinking|thoughts?|reason|reasoning|analysis|seed:think|summary|caption)\s?>"
    r"|\u25c1/?think\u25b7|\[/?THINK\]|<\|(?:begin|end)_of_thought\|>"
    r"|<\|channel\|>(?:analysis|commentary|final)|<unused94>thought|<unused95>",
    re.IGNORECASE,
)
#: What a closing mark has: gpt-oss closes its analysis with the channel `final`.
CLOSES = re.compile(r"/|end_of|final|unused95", re.IGNORECASE)
#: Tokens that open or close a text or a turn.
SPECIAL = re.compile(r"</?s>|<\|[a-zA-Z_0-9]{1,30}\|>|<(?:eos|bos|pad|end_of_turn)>", re.IGNORECASE)
#: A greeting before a reply, and an offer or a line behind it.
OPENING = re.compile(
    r"(?:sure(?: thing)?|certainly|of course|absolutely|ok(?:ay)?|great question|got it"
    r"|assistant|\u7b54)\s?[!,.:]\s{1,9}(?=\S)|\u7b54:",
    re.IGNORECASE,
)
CLOSING = re.compile(
    r"\n\s{0,9}(?:(?:i )?hope (?:this|that) helps|(?:please )?let me know if|feel free to"
    r"|if you (?:have|need) any|is there anything else)[^\n]{0,200}\s{0,9}$"
    r"|\n\s{0,9}[-*_]{3,9}\s{0,9}$",
    re.IGNORECASE,
)
#: Special tokens that wrap an answer (GLM-V) stay.
KEPT = {"<|begin_of_box|>", "<|end_of_box|>"}


def plain_characters(text: str) -> str:
    """The text with plain forms of typographic characters; every character keeps its place."""
    if text.isascii():
        return text.replace("\t", " ").replace("\r", "\n")
    return TYPOGRAPHIC.sub(lambda run: run.group().translate(VISIBLE_AND_PLAIN), text)


def lower_case(text: str) -> str:
    """A text in lower case, character for character."""
    lower = text.lower()
    if len(lower) == len(text):
        return lower
    # A few letters have a lower case of two characters.
    return "".join(c.lower() if len(c.lower()) == 1 else c for c in text)


def outside_thoughts(text: str) -> list[tuple[int, int]]:
    """The parts of a reply outside its thoughts.

    A closing mark without an opening one ends a thought that the prompt opened. A thought without
    its closing mark was cut off: nothing after its beginning is an answer.
    """
    if not any(mark in text for mark in "<\u25c1["):
        return [(0, len(text))]
    parts: list[tuple[int, int]] = []
    start, inside, closed = 0, False, False
    for mark in THOUGHT.finditer(text):
        closes = CLOSES.search(mark.group(0)) is not None
        if not closes:
            if not inside:
                parts.append((start, mark.start()))
            inside = True
            continue
        if not inside:
            rest_is_empty = closed and not text[mark.end() : mark.end() + 200].strip()
            parts = [*parts, (start, mark.start())] if rest_is_empty else []
        start, inside, closed = mark.end(), False, True
    if not inside:
        parts.append((start, len(text)))
    return [(a, b) for a, b in parts if b > a]


def readable(reply: str) -> str:
    """The reply with thoughts and special tokens blanked; every character keeps its place."""
    text = plain_characters(reply)
    parts = outside_thoughts(text)
    if parts != [(0, len(text))]:
        kept, at = [], 0
        for start, end in parts:
            kept += ["\n" * (start - at), text[start:end]]
            at = end
        text = "".join([*kept, "\n" * (len(text) - at)])
    if "<" in text:
        text = SPECIAL.sub(
            lambda m: m.group(0) if m.group(0) in KEPT else "\n" * len(m.group(0)), text
        )
    return without_politeness(text)


def without_politeness(text: str) -> str:
    """The text with a greeting at its beginning and an offer at its end blanked."""
    start = len(text) - len(text.lstrip())
    if opening := OPENING.match(text, start):
        text = "\n" * opening.end() + text[opening.end() :]
    if closing := CLOSING.search(text, max(0, len(text) - 300)):
        text = text[: closing.start()] + "\n" * (len(text) - closing.start())
    return text
