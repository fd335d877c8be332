"""Situations that raise an error, and what is done with each printed fix."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

from conftest import REPO
from fix_shell import PLACEHOLDER, Place, alternatives, filled, paste
from fix_sites import COMMAND_LIKE
from PIL import Image

ASSETS = REPO / "vistill" / "assets"
ROWS = 6
RECIPE_FILE, DATA_FILE, IMAGE_FOLDER = "rezept ä.yaml", "daten 1/zeilen ü.jsonl", "bilder é"
RECIPE = """\
run: läufe/erster lauf
student: {model: 'vistill:student'}
teacher: {model: 'vistill:teacher'}
method: va_opd
data:
  train: daten 1/zeilen ü.jsonl
  images: bilder é
rollout: {per_prompt: 2, max_new_tokens: 8}
train: {prompts_per_step: 2, steps: 1, lr: 1e-4}
save: {keep_best: none}
eval: {every: 0}
"""


@dataclass(frozen=True)
class Situation:
    """A mistake of a user."""

    plant: Callable[[Place], None]
    code: str
    fill: dict = field(default_factory=dict)
    """What the user puts for words in capitals."""
    ends: str = ""
    """The code of the error that is left, where the fix leads to a later one."""
    is_first_tier: bool = False

    @property
    def name(self):
        return self.plant.__name__.replace("_", " ")


SITUATIONS: list[Situation] = []


def situation(code, ends="", first=False, **fill):
    """Register a function that plants a mistake; `FILE_jsonl` stands for `FILE.jsonl`."""
    forms = {"_jsonl": ".jsonl", "_yaml": ".yaml", "_py": ".py", "OWNER_NAME": "OWNER/NAME"}
    values = {}
    for name, value in fill.items():
        key = name
        for old, new in forms.items():
            key = key.replace(old, new)
        values[key] = value

    def register(plant):
        SITUATIONS.append(Situation(plant, code, values, ends, first))
        return plant

    return register


@cache
def picture(number):
    """A PNG."""
    import io

    image = Image.new("RGB", (64, 64), (30 * number, 120, 200))
    image.paste((255, 255, 255), (8, 8 + 4 * number, 40, 24 + 4 * number))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def good_rows():
    return [
        {"question": f"How many bars has figure {n}?", "images": [f"bild {n}.png"],
         "answer": str(n), "response": f"{n} bars"}
        for n in range(ROWS)
    ]  # fmt: skip


def write_rows(place, rows, name=DATA_FILE):
    place.write(name, "".join(json.dumps(row) + "\n" for row in rows))


def start(place, rest="", verb="check", recipe=RECIPE, rows=None):
    """A folder with everything in order; the line is the command with the rest behind it."""
    place.write(RECIPE_FILE, recipe)
    for number in range(ROWS):
        place.write(f"{IMAGE_FOLDER}/bild {number}.png", picture(number))
    write_rows(place, good_rows() if rows is None else rows)
    fast = " --fast" if verb == "check" else ""
    place.line = f"vistill {verb} '{RECIPE_FILE}'{fast}{f' {rest}' if rest else ''}"


@dataclass
class Result:
    """What a situation showed."""

    covered: set = field(default_factory=set)
    pasted: int = 0
    skipped: int = 0


def texts_shown(outcome):
    """The texts of fixes that an error shows."""
    return {
        text for site in outcome.sites for text in site.texts if text.matches(outcome.error.fix)
    }


def planted(case, folder):
    """A fresh folder with the mistake, and the error that the command ends with."""
    place = Place(folder)
    case.plant(place)
    return place, place.type(place.line)


def try_fixes(case, folder):
    """Paste every alternative of the fix; the error must not come back, at once or later."""
    place, first = planted(case, folder / "0")
    assert first.code == case.code, f"{place.line}\n{first.shown}{first.error}"
    fix = first.error.fix
    result = Result(texts_shown(first))
    choices = alternatives(fix)
    for index, steps in enumerate(choices):
        if index:
            place, first = planted(case, folder / str(index))
        outcome = paste(place, steps, case.fill)
        if outcome is None:
            result.skipped += 1
            continue
        result.pasted += 1
        follow(place, [first, outcome], case)
    assert result.pasted or not choices, f"nothing of it was pasted: {fix}"
    if not choices:
        assert not COMMAND_LIKE.search(PLACEHOLDER.sub("", filled(fix, case.fill))), fix
    return result


def follow(place, outcomes, case):
    """Paste the first alternative of whatever comes next, until the command passes."""
    while outcomes[-1].error is not None:
        last = outcomes[-1]
        history = "\n\n".join(str(o.error) for o in outcomes)
        seen = [o.identity for o in outcomes[:-1]]
        assert last.identity not in seen, f"{last.identity} {seen} {place.line}\n{history}"
        if last.code == case.ends:
            return
        choices = alternatives(last.error.fix)
        outcome = paste(place, choices[0], case.fill) if choices else None
        assert outcome is not None, f"{place.line}\n{history}"
        outcomes.append(outcome)
        assert len(outcomes) < 6, history
