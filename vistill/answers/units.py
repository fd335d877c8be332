"""Units of measurement behind a number: which unit, to which power, by any of its spellings."""

import re
from collections import defaultdict

SPELLINGS = {
    "nm": "nm nanometer nanometers nanometre nanometres",
    "μm": "μm um micrometer micrometers micrometre micrometres micron microns",
    "mm": "mm millimeter millimeters millimetre millimetres 毫米",
    "cm": "cm centimeter centimeters centimetre centimetres 厘米",
    "dm": "dm decimeter decimeters decimetre decimetres 分米",
    "m": "m meter meters metre metres 米",
    "km": "km kilometer kilometers kilometre kilometres 千米 公里",
    "in": "in inch inches",
    "ft": "ft foot feet",
    "yd": "yd yard yards",
    "mi": "mi mile miles",
    "ha": "ha hectare hectares",
    "acre": "acre acres",
    "μg": "μg microgram micrograms",
    "mg": "mg milligram milligrams",
    "g": "g gram grams gramme grammes 克",
    "kg": "kg kgs kilogram kilograms kilo kilos 千克 公斤",
    "t": "tonne tonnes ton tons",
    "lb": "lb lbs pound pounds",
    "oz": "oz ounce ounces",
    "ns": "ns nanosecond nanoseconds",
    "μs": "μs microsecond microseconds",
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
    "°C": "°C °c celsius centigrade",
    "°F": "°F °f fahrenheit",
    "K": "K kelvin",
    "rad": "rad radian radians",
    "%": "% percent percents pct",
    "‰": "‰ permille",
    "$": "$ usd USD dollar dollars 美元",
    "€": "€ eur EUR euro euros",
    "£": "£ gbp GBP",
    "¥": "¥ ￥ yuan cny CNY rmb RMB jpy yen 元",
    "₹": "₹ Rs rs inr INR rupee rupees",
    "₩": "₩ krw KRW",
    "cent": "cent cents ¢",
    "cal": "cal calorie calories",
    "kcal": "kcal kilocalorie kilocalories",
    "J": "J joule joules",
    "kJ": "kJ",
    "N": "N newton newtons",
    "W": "W watt watts",
    "MW": "MW megawatt megawatts",
    "mW": "mW milliwatt milliwatts",
    "kW": "kW kilowatt kilowatts",
    "V": "V volt volts",
    "kV": "kV kilovolt kilovolts",
    "mV": "mV millivolt millivolts",
    "A": "A amp amps ampere amperes",
    "mA": "mA",
    "Ω": "Ω ohm ohms \\Omega",
    "Hz": "Hz hertz",
    "kHz": "kHz kilohertz",
    "MHz": "MHz megahertz",
    "mHz": "mHz millihertz",
    "GHz": "GHz gigahertz",
    "Pa": "Pa pascal pascals",
    "kPa": "kPa kilopascal kilopascals",
    "MPa": "MPa megapascal megapascals",
    "mPa": "mPa millipascal millipascals",
    "mol": "mol mole moles",
    "mi/h": "mph",
    "km/h": "kmph kph",
    "kB": "kB KB kilobyte kilobytes",
    "MB": "MB megabyte megabytes",
    "GB": "GB gigabyte gigabytes",
    "TB": "TB terabyte terabytes",
    "kb": "kb Kb kilobit kilobits",
    "Mb": "Mb megabit megabits",
    "Gb": "Gb gigabit gigabits",
    "MB/s": "MBps",
    "Mb/s": "Mbps mbps",
}
#: Spelling -> unit. Case counts only where two units differ by it.
UNITS = {word: unit for unit, words in SPELLINGS.items() for word in words.split()}
LOWER: dict[str, str] = {}
for _word, _unit in UNITS.items():
    if not _word.startswith("\\"):
        LOWER.setdefault(_word.lower(), _unit)
_SAME_LETTERS: dict[str, set[str]] = defaultdict(set)
for _word, _unit in UNITS.items():
    _SAME_LETTERS[_word.lower()].add(_unit)
#: Spellings whose case tells the unit: `MW` and `mW`.
CASED = frozenset(word for word in UNITS if len(_SAME_LETTERS[word.lower()]) > 1)
#: Words that count but measure nothing.
NO_UNIT = frozenset(["unit", "units", "个", "个单位"])
POWERS = {"square": "2", "sq": "2", "squared": "2", "cubic": "3", "cu": "3", "cubed": "3"}
POWERS |= {"平方": "2", "立方": "3"}
POWER = re.compile(r"\^?\s?\{?\s?(-?[1-4])\s?\}?$")
RAISED = str.maketrans("⁻¹²³⁴", "-1234")
RAISED_RUN = re.compile(r"[⁻¹²³⁴]{1,3}")
#: `degrees Celsius` and `° C`.
TEMPERATURE = re.compile(
    r"(?:°|\bdeg(?:ree)?s?\b)\s?(c|f)(?:elsius|entigrade|ahrenheit)?\b", re.IGNORECASE
)
MU = re.compile(r"\\mu\s?")
QUOTED = {"'": "ft", '"': "in", "''": "in"}
CURRENCY = re.compile(
    r"^(-?)\s?(?:(US|C|A)?([$€£¥￥₹₩])|(USD|EUR|GBP|RMB|INR|KRW|Rs)\.?)\s?(-?[\d.].*)$", re.DOTALL
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
    rest = RAISED_RUN.sub(lambda m: "^" + m.group(0).translate(RAISED), text.strip())
    rest = MU.sub("μ", rest.replace("~", " ")).strip(" .")
    rest = TEMPERATURE.sub(lambda m: "°" + m.group(1).upper(), rest)
    if not rest or rest.casefold() in NO_UNIT:
        return ""
    if rest in QUOTED:
        return QUOTED[rest]
    sides = re.split(r"\s?(?:/|\bper\b)\s?", rest, maxsplit=2)
    exponents: dict[str, int] = defaultdict(int)
    for i, side in enumerate(sides):
        if i == 0 and not side and len(sides) > 1:
            continue
        factors = parse_product(side)
        if not factors:
            return None
        for unit, exponent in factors:
            exponents[unit] += exponent if i == 0 else -exponent
    return write_unit(exponents)


def write_unit(exponents: dict[str, int]) -> str:
    """The normal form of a product of units: `kg/m^3` for `kg m^{-3}`."""
    forms: dict[bool, list[str]] = {True: [], False: []}
    for unit, exponent in sorted(exponents.items()):
        power = abs(exponent)
        if exponent and unit != "unit":
            forms[exponent > 0].append(unit + (f"^{power}" if power > 1 else ""))
    return "/".join([" ".join(forms[True]), *forms[False]])


def parse_product(text: str) -> list[tuple[str, int]]:
    """The units side by side of a text, with their powers; [] where a word is no unit."""
    factors: list[tuple[str, int]] = []
    ahead = 1
    for word in re.split(r"[\s*·⋅]+|\\cdot(?![A-Za-z])", text.strip()):
        if not word:
            continue
        power_word = word.casefold().rstrip(".")
        if power_word in POWERS and not (factors and power_word.endswith("ed")):
            ahead = int(POWERS[power_word])
            continue
        if power_word in POWERS or (word.startswith("^") and factors):
            power = POWER.search(word)
            exponent = POWERS.get(power_word) or (power.group(1) if power else None)
            if exponent is None:
                return []
            factors[-1] = (factors[-1][0], factors[-1][1] * int(exponent))
            continue
        factor = parse_factor(word, ahead)
        if factor is None:
            return []
        factors += factor
        ahead = 1
    return factors if ahead == 1 else []


def parse_factor(word: str, ahead: int) -> list[tuple[str, int]] | None:
    """A unit with its power, such as `cm^2`, `m2` or `平方米`; `kmph` is two.

    None if it is no unit.
    """
    chinese = next((p for p in ("平方", "立方") if word.startswith(p)), "")
    word, ahead = word[len(chinese) :], int(POWERS.get(chinese, ahead))
    power = POWER.search(word) if len(word) > 1 and ("^" in word or word[-1].isdigit()) else None
    name = word[: power.start()] if power else word
    unit = "unit" if name.casefold() in NO_UNIT else unit_of(name)
    if unit is None:
        return None
    exponent = int(power.group(1)) if power else ahead
    above, _, below = unit.partition("/")
    return [(above, exponent), (below, -exponent)] if below else [(above, exponent)]


def split_currency(text: str) -> tuple[str, str]:
    """A currency before a number, and the rest: `$12` gives `$` and `12`."""
    match = CURRENCY.match(text)
    if not match:
        return "", text
    return UNITS[match.group(3) or match.group(4)], match.group(1) + match.group(5)
