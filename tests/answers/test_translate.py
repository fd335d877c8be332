"""Replies in other languages: tables of phrases, positions, numbers, and limits."""

import re
from re import _parser

import pytest
from test_linear import unbounded

from vistill import judge
from vistill.answers import translate
from vistill.answers.languages import LANGUAGES

NAMES = [language.name for language in LANGUAGES]
SPANISH = next(language for language in LANGUAGES if language.name == "Spanish")
RUSSIAN = next(language for language in LANGUAGES if language.name == "Russian")


@pytest.mark.parametrize("language", LANGUAGES, ids=NAMES)
def test_a_table_has_each_phrase_once_and_in_lower_case(language):
    phrases = [p for listed in language.phrases.values() for p in listed.split("|")]
    assert sorted(phrases) == sorted(set(phrases))
    assert all(phrase == phrase.lower().strip() and phrase for phrase in phrases)


@pytest.mark.parametrize("language", LANGUAGES, ids=NAMES)
def test_the_patterns_of_a_table_have_bounded_length(language):
    phrases, _ = translate.phrase_pattern(language)
    for pattern in [phrases, *(other for other, _ in translate.other_patterns(language))]:
        assert not list(unbounded(_parser.parse(pattern.pattern, pattern.flags)))


def test_no_word_that_tells_a_language_is_english():
    english = {*translate.ENGLISH, "no", "per", "as", "do", "or", "die", "also", "a", "y", "come"}
    assert not english & translate.ANY_CLUE


@pytest.mark.parametrize(
    "reply",
    [
        "The answer is B.", "No.", "Yes", "No, no.", "A or B", "5 cm per second", "Answer: 3,5",
        "答案是B。", "图中是正方形", "\\boxed{x+y}", "The die shows 4.", "Sorry, no.",
    ],
)  # fmt: skip
def test_english_and_chinese_replies_are_not_translated(reply):
    assert translate.find_language(reply) is None


@pytest.mark.parametrize(
    ("reply", "extracted"),
    [
        ("<think>B</think>La respuesta correcta es la opción **B**.", "la opción **B"),
        ("Die Antwort ist 3,5 Meter.", "3,5 Meter"),
        ("したがって、答えはBです。", "Bです"),
        ("Поэтому правильный ответ — B.", "B"),
    ],
)
def test_the_extracted_text_is_that_of_the_reply(reply, extracted):
    verdict = judge(reply, "B" if "B" in reply else "3.5", ("1", "2") if "B" in reply else ())
    assert verdict.extracted == extracted
    assert reply[slice(*verdict.position)].strip() == extracted


@pytest.mark.parametrize("language", LANGUAGES, ids=NAMES)
def test_each_character_of_a_translation_has_its_place(language):
    phrases = [listed.split("|")[0] for listed in language.phrases.values()]
    text = " 3,5 ".join(phrases)
    for reading in translate.readings(text, language):
        assert len(reading.places) == len(reading.text) + 1
        assert reading.places == sorted(reading.places)
        assert reading.places[-1] == len(text)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("1.234,5", ["1234.5"]),
        ("1 234,5", ["1234.5"]),
        ("1.234.567", ["1234567"]),
        ("3,5", ["3,5", "3.5"]),
        ("3{,}5", ["3{,}5", "3.5"]),
        ("1.234", ["1.234", "1234"]),
        ("0.125", ["0.125"]),
        ("(3,5)", ["(3,5)"]),
        ("\\{1,2\\}", ["\\{1,2\\}"]),
        ("1,2,3", ["1,2,3"]),
    ],
)
def test_a_number_has_the_readings_of_its_language(text, written):
    assert [reading.text for reading in translate.readings(text, SPANISH)] == written


def test_three_decimals_behind_a_comma_are_no_group_where_the_language_has_none():
    assert [r.text for r in translate.readings("1,234", RUSSIAN)] == ["1.234"]
    assert not judge("Die Antwort ist 1,234.", "1234").correct
    assert judge("La respuesta es 1,234.", "1234").correct


def test_only_the_ends_of_a_long_reply_are_translated():
    text = "la respuesta es 4. " * 20_000
    result = translate.translate(text, SPANISH)
    translated = len(re.findall("the answer is", result.text))
    assert 0 < translated <= 2 * translate.MOST_TRANSLATED / len("la respuesta es 4. ") + 2
    assert result.places == sorted(result.places)
    assert judge(text, "4").correct


@pytest.mark.parametrize("checker", ["exact", "contains"])
def test_checkers_of_characters_read_a_reply_as_it_is_written(checker):
    assert judge("la casa de la abuela", "la casa de la abuela", checker=checker).correct
    assert not judge("la casa de la abuela", "the casa of the abuela", checker=checker).correct


def test_options_and_gold_answers_keep_their_meaning():
    choices = ("Sí", "No")
    assert judge("No, la imagen no lo muestra.", "B", choices).correct
    assert judge("Sí, la imagen lo muestra.", "A", choices).correct
    assert judge("La respuesta es rojo y azul.", "B", ("rojo", "rojo y azul")).correct
