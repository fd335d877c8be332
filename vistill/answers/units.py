"""Units of measurement behind a number: which unit, to which power, by any of its spellings."""

import re

SPELLINGS = {
    "mm": "mm millimeter millimeters millimetre millimetres 毫米",
    "cm": "cm centimeter centimeters centimetre centimetres 厘米",
    "dm": "dm decimeter decimeters decimetre decimetres 分米",
    "m": "m meter meters metre metres 米",
    "km": "km kilometer kilometers kilometre kilometres 千米 公里",
    "in": "in inch inches",
    "ft": "ft foot feet",
    "yd": "yd yard yards",
    "mi": "mi mile miles",
    "mg": "mg milligram milligrams",
    "g": "g gram grams gramme grammes 克",
    "kg": "kg kilogram kilograms kilo kilos 千克 公斤",
    "t": "tonne tonnes ton tons",
    "lb": "lb lbs pound pounds",
    "oz": "oz ounce ounces",
    "ms": "ms millisecond milliseconds msec",
    "s": "s sec secs second seconds 秒",
    "min": "min mins minute minutes 分钟",
    "h": "h hr hrs hour hours 小时",
    "d": "day days 天",
    "week": "week weeks",
    "month": "month months",
    "year": "year years yr yrs 年",
    "ml": "ml milliliter milliliters millilitre millilitres mL",
    "cl": "cl cL centiliter centiliters",
    "l": "l L liter liters litre litres 升",
    "°": "° deg degree degrees 度",
    "°C": "°C °c",
    "°F": "°F °f",
    "K": "K kelvin",
    "rad": "rad radian radians",
    "%": "% percent percents pct",
    "$": "$ usd USD dollar dollars 美元",
    "€": "€ eur EUR euro euros",
    "£": "£ gbp GBP",
    "¥": "¥ ￥ yuan cny CNY rmb RMB jpy yen 元",
    "cent": "cent cents ¢",
    "J": "J joule joules",
    "kJ": "kJ",
    "N": "N newton newtons",
    "W": "W watt watts",
    "kW": "kW kilowatt kilowatts",
    "V": "V volt volts",
    "A": "A amp amps ampere amperes",
    "mA": "mA",
    "Ω": "Ω ohm ohms \\Omega \\omega",
    "Hz": "Hz hertz",
    "kHz": "kHz",
    "MHz": "MHz",
    "Pa": "Pa pascal pascals",
    "kPa": "kPa",
    "MPa": "MPa",
    "mol": "mol mole moles",
    "mph": "mph",
    "kmph": "kmph kph",
    "Mbps": "Mbps mbps",
}
#: Spelling -> unit. Case counts only where two units differ by it.
UNITS = {word: unit for unit, words in SPELLINGS.items() for word in words.split()}
LOWER: dict[str, str] = {}
for _word, _unit in UNITS.items():
    LOWER.setdefault(_word.lower(), _unit)
#: Words that count but measure nothing.
NO_UNIT = frozenset(["unit", "units", "个", "个单位"])
POWERS = {"square": "2", "sq": "2", "squared": "2", "cubic": "3", "cu": "3", "cubed": "3"}
POWERS |= {"平方": "2", "立方": "3"}
POWER = re.compile(r"\^?\s?\{?\s?(-?[1-4])\s?\}?$")
RAISED = str.maketrans({"²": "^2", "³": "^3", "⁻": "^-", "¹": "1"})
PART = re.compile(r"\\?[A-Za-zµΩ°%$€£¥￥¢\u4e00-\u9fff]{1,20}\.?(?:\s?\^\s?\{?\s?-?\d\s?\}?)?")
CURRENCY = re.compile(
    r"^(-?)\s?(?:(US|C|A)?([$€£¥￥])|(USD|EUR|GBP|RMB))\s?(-?[\d.].*)$", re.DOTALL
)


def unit_of(word: str) -> str | None:
    """The unit that a word spells, or None."""
    if word in UNITS:
        return UNITS[word]
    lower = word.lower().rstrip(".")
    return UNITS.get(lower) or (LOWER.get(lower) if len(lower) > 2 else None)


def parse_unit(text: str) -> str | None:
    """The normal form of a unit: `cm^2` for `square centimetres`, `m/s`; "" for none.

    None where the text is no unit.
    """
    rest = text.strip().translate(RAISED).replace("~", " ").strip(" .")
    if not rest:
        return ""
    if rest.casefold() in NO_UNIT:
        return ""
    sides = re.split(r"\s?(?:/|\bper\b)\s?", rest, maxsplit=2)
    named = [parse_product(side) for side in sides if side]
    if not named or len(named) != len(sides) or None in named:
        return None
    return "/".join(str(name) for name in named)


def parse_product(text: str) -> str | None:
    """The normal form of units side by side, with their powers; None where a word is no unit."""
    names: list[str] = []
    ahead = ""
    for word in re.split(r"[\s*·⋅]+", text.strip()):
        if not word:
            continue
        if word.casefold() in POWERS and not (names and word.casefold().endswith("ed")):
            ahead = POWERS[word.casefold()]
            continue
        if word.casefold() in POWERS:
            names[-1] += "^" + POWERS[word.casefold()]
            continue
        chinese = next((p for p in ("平方", "立方") if word.startswith(p)), "")
        word, ahead = word[len(chinese) :], POWERS.get(chinese, ahead)
        if word.startswith("^") and names:
            names[-1] += word
            continue
        power = (
            POWER.search(word) if len(word) > 1 and ("^" in word or word[-1].isdigit()) else None
        )
        unit = unit_of(word[: power.start()] if power else word)
        if word.casefold() in NO_UNIT:
            unit = "unit"
        if unit is None:
            return None
        exponent = power.group(1) if power else ahead
        names.append(unit + (f"^{exponent}" if exponent not in ("", "1") else ""))
        ahead = ""
    if names and all(name.startswith("unit") for name in names):
        return ""
    return " ".join(names) if names and not ahead else None


def split_currency(text: str) -> tuple[str, str]:
    """A currency before a number, and the rest: `$12` gives `$` and `12`."""
    match = CURRENCY.match(text)
    if not match:
        return "", text
    return UNITS[match.group(3) or match.group(4)], match.group(1) + match.group(5)
