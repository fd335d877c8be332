"""The verb `plan`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from vistill.cli.messages import print_result
from vistill.cli.verbs import START, Overrides, Plugins, Profile, example
from vistill.registry import load_plugins


def add_plan(app: typer.Typer) -> None:
    """Register the verb."""
    app.command(
        rich_help_panel=START,
        epilog=example(
            "vistill plan va_opd_qwen3vl_8b_to_2b.yaml --gpu H100 --price 2.5",
            "vistill plan demo.yaml --stage va_opd --profile 24gb",
        ),
    )(plan)


def plan(  # noqa: PLR0913  (options of a verb)
    recipe: Annotated[str, typer.Argument(help="recipe file, or the name of a shipped one")],
    overrides: Overrides = None,
    stage: Annotated[str | None, typer.Option(help="plan only this stage")] = None,
    gpu: Annotated[str | None, typer.Option(help="H100 (default), A100, L40S, 4090, ...")] = None,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs that are paid for; a run uses one")] = 1,
    price: Annotated[float | None, typer.Option(min=0, help="money per GPU and hour")] = None,
    config: Annotated[
        list[Path] | None, typer.Option(help="folder with config.json of a model that is unknown")
    ] = None,
    profile: Profile = None,
    prompt_tokens: Annotated[int | None, typer.Option(min=2, help="of the longest prompt")] = None,
    response_tokens: Annotated[int | None, typer.Option(min=1, help="mean of a response")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="training rows")] = None,
    disk: Annotated[float | None, typer.Option(min=0, help="free GB of the disk")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    plugin: Plugins = None,
) -> None:
    """Print memory, tokens, hours, disk and price of a recipe, before any weights are fetched."""
    load_plugins(plugin or [])
    from vistill.planning.run_plan import Sizes
    from vistill.planning.table import format_plan, plan_dict
    from vistill.studies.plan import PlanOptions, check_fits, plan_stages, profiles_that_fit

    words = overrides or []
    options = PlanOptions(
        stage=stage,
        gpu=gpu,
        gpus=gpus,
        price=price,
        configs=tuple(config or ()),
        profile=profile,
        disk=disk,
        sizes=Sizes(prompt_tokens, response_tokens, rows),
    )
    plans = plan_stages(recipe, words, options)
    if as_json:
        print(json.dumps({name: plan_dict(one) for name, one in plans.items()}, indent=2))
    else:
        texts = [
            format_plan(one, recipe if len(plans) == 1 else f"stage {name}")
            for name, one in plans.items()
        ]
        texts.append("\n".join(profiles_that_fit(recipe, words, options)))
        print_result("\n\n".join(texts))
    check_fits(plans, options)
