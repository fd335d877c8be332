"""The passes that methods share, by name."""

from typing import Final

from vistill.types import Pass, Reader, View

STUDENT: Final = Pass(Reader.STUDENT, View.FULL, gradient=True)
TEACHER: Final = Pass(Reader.TEACHER, View.FULL)
