"""Load the data of a recipe: one data set, or several that are mixed (`data.sets`)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from vistill.data.loading import LoadedData, load_train_and_eval
from vistill.data.mixture import LABEL, set_of
from vistill.data.set_settings import DataSet, naming_set
from vistill.data.settings import DataSettings
from vistill.types import Prompt


def load_data(settings: DataSettings) -> tuple[LoadedData, LoadedData]:
    """Training and evaluation rows of all data sets, in the order of their names.

    The order of the names in the recipe changes nothing.
    """
    if not settings.sets:
        return load_train_and_eval(settings)
    pairs = []
    for name, one in sorted(settings.sets.items()):
        with naming_set(name):
            loaded = load_train_and_eval(settings.of_set(name))
        pairs.append(tuple(named_rows(name, one, part) for part in loaded))
    return join([train for train, _ in pairs]), join([held for _, held in pairs])


def named_rows(name: str, one: DataSet, data: LoadedData) -> LoadedData:
    """The rows of a data set with its name, and with its checker where a row names none.

    Ids begin with the name, so rows of two sets never share one. A row keeps its noise when another
    set is added.
    """

    def named(prompt: Prompt) -> Prompt:
        own = {"checker": one.checker} if one.checker and "checker" not in prompt.labels else {}
        labels = {**prompt.labels, **own, LABEL: name}
        return replace(prompt, id=f"{name}/{prompt.id}", labels=labels)

    return replace(data, prompts=[named(prompt) for prompt in data.prompts])


def join(parts: Sequence[LoadedData]) -> LoadedData:
    """The rows of several data sets, one after another."""
    return LoadedData(
        prompts=[prompt for part in parts for prompt in part.prompts],
        quarantined=[row for part in parts for row in part.quarantined],
        diagrams=[item for part in parts for item in part.diagrams],
        dropped_text_only=sum(part.dropped_text_only for part in parts),
        notes=tuple(note for part in parts for note in part.notes),
    )


def count_by_set(prompts: Sequence[Prompt]) -> Mapping[str, int]:
    """How many rows each data set has, by name; empty without named data sets."""
    return Counter(sorted(name for prompt in prompts if (name := set_of(prompt))))
