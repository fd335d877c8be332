"""The languages whose replies are read as if they were English: one table of phrases each."""

from vistill.answers.languages.french import FRENCH
from vistill.answers.languages.german import GERMAN
from vistill.answers.languages.italian import ITALIAN
from vistill.answers.languages.japanese import JAPANESE
from vistill.answers.languages.korean import KOREAN
from vistill.answers.languages.portuguese import PORTUGUESE
from vistill.answers.languages.russian import RUSSIAN
from vistill.answers.languages.spanish import SPANISH
from vistill.answers.languages.table import Language

__all__ = ["LANGUAGES", "Language"]
LANGUAGES = (SPANISH, FRENCH, GERMAN, PORTUGUESE, ITALIAN, RUSSIAN, JAPANESE, KOREAN)
