"""Name settings and data that are allowed and rarely meant, in `check` and at the start."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from vistill.data.mixture import set_of
from vistill.data.settings import DataSettings
from vistill.errors import quote_setting
from vistill.lora_settings import LoraSettings
from vistill.types import Prompt

if TYPE_CHECKING:
    from vistill.training.recipe import Recipe
    from vistill.training.setup import RunSetup


def notes_on_run(
    recipe: "Recipe", needs: Collection[str], train: Sequence[Prompt], evaluation: Sequence[Prompt]
) -> list[str]:
    """What a user should know before the first step, a line each.

    Args:
        recipe: of the run.
        needs: what the method needs (`image`, `siblings`, ...).
        train: training rows.
        evaluation: evaluation rows.
    """
    notes = missing_evaluation(recipe, train, evaluation)
    if "siblings" in needs and recipe.rollout.temperature == 0:
        notes.append(
            "rollout.temperature=0: all rollouts of a prompt are equal, so comparing siblings"
            " changes nothing (rollout.temperature=0.7)"
        )
    if recipe.student.train == "full" and recipe.student.lora != LoraSettings():
        notes.append(
            "student.lora has settings, but student.train is full: all weights are trained"
            " (student.train=lora)"
        )
    models = {"teacher": recipe.teacher.model}
    models |= {f"teachers.{name}": one.model for name, one in recipe.teachers.items()}
    own = recipe.student.model
    same = next((role for role, model in models.items() if model and model == own), "")
    if same:
        notes.append(
            "student and teacher are the same model: where both see the same, the loss is 0 and"
            f" nothing is learned ({same}.model=A_LARGER_MODEL)"
        )
    return [*notes, *notes_on_options(recipe.data, (*train, *evaluation))]


def notes_on_options(data: DataSettings, rows: Sequence[Prompt]) -> list[str]:
    """Notes on options and templates, of each data set apart."""
    if not data.sets:
        return [*hidden_options(data, rows), *absent_options(data, rows)]
    notes = []
    for name in sorted(data.sets):
        own, settings = [p for p in rows if set_of(p) == name], data.of_set(name)
        both = [*hidden_options(settings, own), *absent_options(settings, own)]
        notes += [f"{name}: {note.replace('data.', f'data.sets.{name}.')}" for note in both]
    return notes


def missing_evaluation(
    recipe: "Recipe", train: Sequence[Prompt], evaluation: Sequence[Prompt]
) -> list[str]:
    """A note on a run that will measure no accuracy."""
    keeps_best = recipe.save.keep_best == "accuracy"
    if any(p.golds for p in evaluation):
        return []
    if not (keeps_best or recipe.eval.every):
        return unused_answers(recipe, train) if not evaluation else []
    num_train = len(train)
    what = "no evaluation row" if not evaluation else "no evaluation row with a gold answer"
    lost = "nothing to choose the best checkpoint by, the last one is kept"
    count = max(1, min(200, num_train // 10))
    fixes = [f"data.holdout={count}"] if not evaluation and num_train > 1 else []
    source = f"data.sets.{min(recipe.data.sets)}.eval" if recipe.data.sets else "data.eval"
    fixes += [f"{source}=FILE"] if not evaluation else ["data.columns.answer=COLUMN"]
    fixes += ["save.keep_best=none"] if keeps_best else ["eval.every=0"]
    result = lost if keeps_best else "the run measures no accuracy"
    return [f"{what}: {result} ({', '.join(fixes[:-1])}, or {fixes[-1]})"]


def unused_answers(recipe: "Recipe", train: Sequence[Prompt]) -> list[str]:
    """A note on gold answers of a recipe that evaluates nothing, such as one made without them."""
    answered = sum(bool(p.golds) for p in train)
    if not answered or len(train) < 2:
        return []
    held = f"data.holdout={max(1, min(200, len(train) // 10))}"
    note = (
        f"{answered:,} training rows have a gold answer, but nothing is evaluated: data.eval is"
        " empty and data.holdout, eval.every are 0"
        f" ({held} eval.every=50 save.keep_best=accuracy)"
    )
    if recipe.data.template.replace("\n", "") in ("{prompt}", "{prompt}{choices}"):
        asking = f"{recipe.data.template}\nPut the final answer in \\boxed{{{{}}}}."
        setting = quote_setting("data.template", asking)
        note += f"; data.template asks for no form of the answer ({setting})"
    return [note]


def hidden_options(data: DataSettings, prompts: Sequence[Prompt]) -> list[str]:
    """A note on rows whose options the question does not show."""
    hidden = sum(map(hides_options, prompts))
    if not hidden or "{choices}" in data.template:
        return []
    setting = r"'data.template={prompt}\n{choices}'"
    return [f"{hidden:,} rows have options that the question does not show ({setting})"]


def absent_options(data: DataSettings, prompts: Sequence[Prompt]) -> list[str]:
    """A note on a template that shows options where no row has any."""
    if "{choices}" not in data.template or any(prompt.choices for prompt in prompts):
        return []
    column = data.columns.choices
    reason = f"the column {column} holds none" if column else "data.columns.choices is empty"
    fix = "data.columns.choices=COLUMN, or leave {choices} out"
    return [f"data.template shows {{choices}}, but no row has options: {reason} ({fix})"]


def hides_options(prompt: Prompt) -> bool:
    """Whether an option of a row does not occur in its text."""
    letters = [chr(ord("A") + i) for i in range(len(prompt.choices))]
    if [choice.strip() for choice in prompt.choices] == letters:
        return False
    return not all(choice.strip() in prompt.text for choice in prompt.choices)


def check_notes(setup: "RunSetup") -> str:
    """Say what the data were read as, and what is rarely meant."""
    needs = [str(need) for need in setup.objective.requirements.needs]
    read = [*setup.train_data.notes, *setup.eval_data.notes]
    if setup.purpose == "eval":
        meant = notes_on_options(setup.recipe.data, setup.eval_prompts)
    else:
        meant = notes_on_run(setup.recipe, needs, setup.train_prompts, setup.eval_prompts)
    notes = list(dict.fromkeys([*read, *meant]))
    if setup.purpose in ("train", "eval"):
        for note in notes:
            setup.folder.event(f"note: {note}")
            setup.progress({"event": f"note: {note}"})
    return "; ".join(notes) or "none"
