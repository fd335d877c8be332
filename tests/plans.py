"""Build runs of tests from the parts of a plan, with the builder that recipes use."""

from dataclasses import replace

from vistill.data.settings import DataSettings
from vistill.training.build import build, make_setup, method_name
from vistill.training.provided_inputs import changed_knobs
from vistill.training.recipe import ModelSettings, Recipe, StudentSettings
from vistill.training.replay import copied_run_folder, replay_step
from vistill.training.setup import ProvidedInputs
from vistill.views.settings import ViewSettings


def make_setup_from(plan, folder, purpose="train"):
    """Make the setup of a run with the settings, models and prompts of a plan."""
    view = plan.models.view
    recipe = Recipe(
        run=str(folder.path),
        student=StudentSettings("built in a test", precision=plan.precision),
        teacher=ModelSettings("built in a test")
        if plan.models.teacher is not None
        else ModelSettings(),
        method=method_name(plan.objective),
        seed=plan.seed,
        knobs=changed_knobs(plan.objective),
        data=DataSettings(max_bad_share=plan.max_bad_share, text_only="plain"),
        rollout=plan.rollout,
        views=ViewSettings(
            view.pixel_share, view.mask_share, view.degrade, view.thought, view.noise
        ),
        reward=plan.reward,
        train=plan.train,
        save=plan.save,
        eval=plan.evaluation,
        profile=plan.profile,
    )
    provided = ProvidedInputs(
        plan.models.student, plan.models.teacher, plan.train_prompts, plan.eval_prompts,
        plan.diagrams, plan.engine, plan.stop_after,
    )  # fmt: skip
    setup = make_setup(recipe, folder, purpose, provided, plan.objective)
    setup.progress = plan.progress
    return setup


def prepare_run(plan, folder):
    """Run every start check on a plan and return the new plan."""
    return build(make_setup_from(plan, folder))


def replay_plan(plan, folder, step):
    """Replay a step of a run with the models and prompts of a plan."""
    with copied_run_folder(folder) as copy:
        setup = make_setup_from(plan, copy, "replay")
        setup.recipe = replace(setup.recipe, run=str(folder.path))
        return replay_step(setup, folder, step)
