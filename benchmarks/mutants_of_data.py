"""Small defects in what is read of replies, gold answers and pictures.

Every mutant is one edit: a text that occurs exactly once in its file, its replacement, and what
goes wrong. The tests of its group must detect it.
"""

from mutant import group

ANSWERS = "answers/test_pairs.py answers/test_docs.py"

MUTANTS = [
    *group(
        "answers/boxes.py",
        ANSWERS,
        (
            'spans if take == "first" else spans[::-1]',
            "spans",
            "the first box counts where the last one should",
        ),
        (
            "if trimmed.end > trimmed.start and not is_echo(text, trimmed):",
            "if trimmed.end > trimmed.start:",
            "a repeated instruction is an answer",
        ),
        ("if not AND_BOX.fullmatch(between):", "if True:", "one of two joined boxes is an answer"),
    ),
    *group(
        "answers/corrections.py",
        ANSWERS,
        (
            "return None if retracted else explicit",
            "return explicit",
            "an answer that the reply takes back counts",
        ),
    ),
    *group(
        "answers/extract.py",
        ANSWERS,
        (
            "if DOUBT.search(text, max(0, at - LONGEST_DOUBT), at):",
            "if False:",
            "a question or a condition is an answer",
        ),
        (
            'if "\\\\boxed" in text[span.start : span.end]:',
            "if False:",
            "a box that was cut off is an answer",
        ),
        ('if best is not None and span.rule != "line":', "if False:", "prose overrides a box"),
    ),
    *group(
        "answers/compare.py",
        ANSWERS,
        ("return answer.unit == gold.unit or (", "return True or (", "12 km equals 12 m"),
        ("if not gold.unit:", "if False:", "a unit is wrong where the gold answer has none"),
        (
            "if answer.number == gold.number and same_units(answer, gold):",
            "if abs(answer.number - gold.number) < 1 and same_units(answer, gold):",
            "numbers that are near count as equal",
        ),
        (
            "percent.number == 100 * (other.number or 0)",
            "percent.number == (other.number or 0)",
            "50 % is 50",
        ),
        ("variables(value.form) == variables(gold.form)", "True", "y=3m equals y=3"),
    ),
    *group(
        "answers/choice_reader.py",
        ANSWERS,
        (
            "if self.contradicts(letters):",
            "if False:",
            "a letter with the text of another option counts",
        ),
        (
            "if letters.hedged and len(letters.letters) > 1:",
            "if False:",
            "A or B is an answer",
        ),
    ),
    *group(
        "answers/units.py",
        ANSWERS,
        (
            "exponent = int(power.group(1)) if power else ahead",
            "exponent = 1",
            "an area is a length",
        ),
    ),
    *group(
        "data/gold.py",
        "data/test_gold.py",
        (
            "boxes[-1].end].strip()",
            "boxes[-1].end - 1].strip()",
            "a gold answer in a box loses its last character",
        ),
        ("math.isnan(value)", "False", "NaN is the text nan"),
    ),
    *group(
        "data/decoding.py",
        "data/test_pictures.py",
        (
            'Image.new("RGBA", rgba.size, "white")',
            'Image.new("RGBA", rgba.size)',
            "transparent is black",
        ),
        ("image = ImageOps.exif_transpose(image)", "pass", "photographs lie on their side"),
        (
            "top = 65535 if is_declared else",
            "top = 255 if is_declared else",
            "pictures of 16 bits are one colour",
        ),
        (
            "(self.max_pixels, lambda pixels, bound: pixels > bound)",
            "(self.max_pixels, lambda pixels, bound: pixels < bound)",
            "small pictures are enlarged to the largest size",
        ),
    ),
]
