"""Schema, reference and hints come from the settings classes and agree with what is accepted."""

import copy
import dataclasses
import json
import re
import shlex
import subprocess
import sys

import jsonschema
import numpy as np
import pytest
from conftest import REPO
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiers import few

from vistill.cli.explain import explain_word
from vistill.config import (
    Recipe,
    all_keys,
    build_recipe,
    load_recipe,
    load_stages,
    method_schemas,
    set_dotted,
    settings_types,
    split_override,
)
from vistill.errors import ConfigError
from vistill.ranges import fits, schemas_of
from vistill.schema import SETTINGS_FILE, is_group, recipe_schema
from vistill.schema.other_trainers import NO_SUCH_KEY, OUR_KEYS
from vistill.schema.papers import PAPERS

#: Rules that tie several keys together. JSON schema does not hold them.
CROSS_FIELD = {
    "a method that compares siblings needs rollout.per_prompt above 1": "C103",
    "a method that reads a teacher needs teacher.model": "C101",
    "the block of another method than the recipe's": "C101",
    "train.schedule.min_lr is at most train.lr": "C002",
    "reward.pattern is a regular expression of Python": "C002",
    "text without half a surrogate pair": "C002",
}
BASE = {
    "run": "runs/x",
    "student": {"model": "s"},
    "teacher": {"model": "t"},
    "method": "va_opd",
    "rollout": {"per_prompt": 2},
    "train": {"lr": 1e30},
}
KEYS = all_keys()
SCHEMA = recipe_schema(method_schemas())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def is_cross_field(error):
    """Whether a refusal comes from a rule that ties keys together."""
    return (
        error.code in ("C101", "C103")
        or "schedule.min_lr" in error.what
        or "regular expression" in error.what
    )


def accepted(tree):
    """What `build_recipe` says; None where only a rule over several keys speaks against it."""
    try:
        build_recipe(copy.deepcopy(tree))
    except ConfigError as error:
        return None if is_cross_field(error) else False
    return True


WORDS = st.sampled_from(["", "auto", "data", "cosine", "1e-5", "true", "none", "é", "vision"])
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 9000),
    st.floats(-2, 2),
    st.sampled_from([1.0, 5.0, 1e30]),
    WORDS,
)
VALUES = st.one_of(
    SCALARS, st.lists(SCALARS, max_size=3), st.dictionaries(WORDS, SCALARS, max_size=2)
)


def likely(info):
    """Values on both sides of the limits: default, choices, limits, lists of valid items."""
    ends = [
        info[name]
        for name in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
        if name in info
    ]
    near = [
        info.get("default"),
        *info.get("enum", ()),
        *ends,
        *(end + 1 for end in ends),
        *(end - 1 for end in ends),
    ]
    items = info.get("items", {}).get("enum", [0, 0.5, 0.9, 1])
    lists = [st.lists(st.sampled_from(items), max_size=4)] if info.get("type") == "array" else []
    return [st.sampled_from(near), st.sampled_from(near), st.booleans(), *lists, *lists]


@st.composite
def changed(draw):
    """A recipe with a few keys changed, some to values of their schema, some unknown."""
    tree = copy.deepcopy(BASE)
    tree["method"] = draw(st.sampled_from(sorted(method_schemas())))
    own = [
        key
        for key in set(KEYS) - {"stages"}
        if key.split(".")[0] not in method_schemas() or key.startswith(f"{tree['method']}.")
    ]
    for key in draw(st.lists(st.sampled_from(sorted(own)), max_size=3)):
        put(tree, key, draw(st.one_of(VALUES, *likely(KEYS[key]))))
    if draw(st.integers(0, 9)) == 0:
        put(
            tree,
            draw(st.sampled_from(["lr", "train.lora", "data.columns.image", "knobs"])),
            draw(VALUES),
        )
    if draw(st.integers(0, 9)) == 0:
        tree.pop(draw(st.sampled_from(["run", "student", "method"])), None)
    return tree


def put(tree, key, value):
    try:
        set_dotted(tree, key, value)
    except ConfigError:
        tree[key.split(".")[0]] = value


@given(changed())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_schema_accepts_and_refuses_what_a_recipe_may_hold(tree):
    verdict = accepted(tree)
    if verdict is not None:
        assert VALIDATOR.is_valid(tree) == verdict, list(VALIDATOR.iter_errors(tree))[:1]


#: One group of the recipe and one method are in the first tier.
GROUPS = sorted({key.split(".")[0] for key in KEYS} - {"stages"})
FIRST = (GROUPS.index("train"), GROUPS.index("va_opd"))


@pytest.mark.parametrize("group", few(GROUPS, *FIRST))
def test_the_schema_and_a_recipe_agree_on_every_key_at_its_limits_and_on_every_type(group):
    for key in (key for key in KEYS if key.split(".")[0] == group):
        info = KEYS[key]
        ends = [info[name] for name in info if name.endswith(("inimum", "aximum"))]
        tried = [
            info.get("default"),
            *info.get("enum", ()),
            *ends,
            *(end + 1 for end in ends),
            *(end - 1 for end in ends),
        ]
        for value in (
            *tried,
            True,
            False,
            None,
            5.0,
            0.5,
            "x",
            [],
            [0.5],
            [0.5, 0.5],
            ["x"],
            {},
            {"x": 1},
        ):
            tree = copy.deepcopy(BASE) | ({"method": group} if group in method_schemas() else {})
            put(tree, key, value)
            verdict = accepted(tree)
            assert verdict is None or VALIDATOR.is_valid(tree) == verdict, (key, value)


STAGES = st.one_of(
    st.none(),
    st.dictionaries(
        st.sampled_from(["a", "b"]),
        st.one_of(
            SCALARS,
            st.dictionaries(
                st.sampled_from(["method", "seed", "student", "lr"]), VALUES, max_size=3
            ),
        ),
        max_size=2,
    ),
)


@given(stages=STAGES, dropped=st.sets(st.sampled_from(["run", "student", "method"])))
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_the_schema_accepts_and_refuses_the_stages_that_a_recipe_may_have(
    stages, dropped, tmp_path
):
    tree = {key: value for key, value in BASE.items() if key not in dropped} | {"stages": stages}
    file = tmp_path / "r.yaml"
    file.write_text(json.dumps(tree))  # JSON is YAML
    try:
        load_stages(file)
        verdict = True
    except ConfigError as error:
        verdict = None if is_cross_field(error) else False
    if verdict is not None:
        assert VALIDATOR.is_valid(tree) == verdict, stages


def test_the_rules_over_several_keys_are_those_that_are_listed():
    for change, code in (
        ({"rollout.per_prompt": 1}, "C103"),
        ({"teacher.model": ""}, "C101"),
        ({"opd": {}}, "C101"),
        ({"train.lr": 1e-9, "train.schedule.min_lr": 1.0}, "C002"),
        ({"reward.pattern": "("}, "C002"),
        ({"data.system": "\ud800"}, "C002"),
    ):
        tree = copy.deepcopy(BASE)
        for key, value in change.items():
            set_dotted(tree, key, value)
        with pytest.raises(ConfigError) as caught:
            build_recipe(tree)
        assert caught.value.code == code
        assert VALIDATOR.is_valid(tree)
    assert len(CROSS_FIELD) == 6


def test_the_schema_is_valid_itself_and_every_key_has_a_meaning_and_a_default():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for key, info in KEYS.items():
        assert len(info["description"]) > 10, key
        assert is_group(info) or "default" in info or key in ("run", "method"), key
        if "default" in info:
            VALIDATOR.evolve(schema=info).validate(info["default"])


def test_the_packaged_schema_and_the_reference_equal_the_settings_classes():
    from vistill.schema.generate import generated
    from vistill.schema.reference import with_reference

    assert json.loads(SETTINGS_FILE.read_text()) == generated()
    page = (REPO / "docs" / "configuration.md").read_text()
    assert with_reference(page) == page
    for key in KEYS:
        if not is_group(KEYS[key]) and key.split(".")[0] not in method_schemas():
            assert f"| `{key}` |" in page, key


def test_the_schema_is_printed_without_heavy_imports():
    code = (
        "import sys, json, io, contextlib\n"
        "from vistill.cli.main import entry\n"
        "text = io.StringIO()\n"
        "with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):\n"
        "    entry(['schema'])\n"
        "print(json.loads(text.getvalue())['$schema'])\n"
        "assert not {'torch', 'transformers', 'jsonschema', 'datasets'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "https://json-schema.org/draft/2020-12/schema", done.stderr


@pytest.mark.parametrize(
    "paper_recipe", ["vgs_qwen3vl_8b_to_2b", "visual_opsd_qwen3vl_2b", "va_opd_qwen3vl_8b_to_2b"]
)
def test_the_papers_values_are_not_the_defaults_and_are_those_of_the_shipped_recipes(paper_recipe):
    paper = {"vgs": "VGS-LP", "visual_opsd": "Visual-OPSD", "va_opd": "VA-OPD"}[
        paper_recipe.split("_qwen")[0]
    ]
    #: What the recipe leaves out or changes, and says so in its comments.
    departs = {"eval.samples", "rollout.image_skips"}
    tree = load_recipe(f"{paper_recipe}.yaml").to_dict()
    for key, values in PAPERS.items():
        assert all(
            fits(KEYS[key], value) and value != KEYS[key]["default"] for value in values.values()
        ), key
        if paper in values and key not in departs:
            node = tree
            for part in key.split("."):
                node = node[part]
            assert node == values[paper], key


def numeric(schema):
    """Whether a schema takes numbers."""
    parts = schema.get("anyOf", [schema.get("items", schema)])
    return any(part.get("type") in ("integer", "number") for part in parts)


NUMBERS = sorted(key for key, info in KEYS.items() if not is_group(info) and numeric(info))


@pytest.mark.parametrize(
    "value", [True, False, float("inf"), float("-inf"), float("nan"), "1e-5", 10**400]
)
def test_no_number_is_a_boolean_infinite_or_a_text(value):
    assert len(NUMBERS) > 80
    for key in NUMBERS:
        tree = copy.deepcopy(BASE) | {
            "method": key.split(".")[0] if key.split(".")[0] in method_schemas() else "va_opd"
        }
        put(tree, key, [value, value] if KEYS[key].get("type") == "array" else value)
        if value == 10**400 and "number" not in json.dumps(KEYS[key]):
            continue  # a whole number may be as long as it likes
        with pytest.raises(ConfigError) as caught:
            build_recipe(tree)
        assert caught.value.code == "C002", key
        assert key in caught.value.what


@pytest.mark.parametrize("value", [True, float("inf"), float("nan"), "1"])
def test_no_number_is_a_boolean_or_infinite_in_python_either(value):
    from vistill.objectives import METHODS

    kinds = [kind for kind in settings_types(Recipe) if kind is not Recipe] + list(METHODS.values())
    tried = 0
    for kind in kinds:
        for name, schema in schemas_of(kind).items():
            if numeric(schema) and schema.get("type") != "array":
                tried += 1
                settings_with = object.__new__(kind)  # the tests' own type checks would come first
                for field in dataclasses.fields(kind):
                    given = (
                        field.default
                        if field.default is not dataclasses.MISSING
                        else field.default_factory()
                    )
                    object.__setattr__(
                        settings_with, field.name, value if field.name == name else given
                    )
                with pytest.raises(ConfigError, match=f"{name} cannot be"):
                    settings_with.__post_init__()
    assert tried > 80
    with pytest.raises(ConfigError):
        Recipe("x", Recipe.__dataclass_fields__["teacher"].default_factory(), "opd", seed=value)


def test_numbers_of_numpy_and_whole_floats_are_numbers():
    from vistill.rollouts.settings import RolloutSettings

    assert RolloutSettings(per_prompt=np.int64(4), temperature=np.float64(0.5)).per_prompt == 4
    assert build_recipe(copy.deepcopy(BASE) | {"seed": 7.0}).seed == 7
    assert type(build_recipe(copy.deepcopy(BASE) | {"train": {"epochs": 2}}).train.epochs) is float


def refused(*overrides):
    """The error of overrides on a good recipe."""
    tree = copy.deepcopy(BASE)
    for text in overrides:
        set_dotted(tree, *split_override(text))
    with pytest.raises(ConfigError) as caught:
        build_recipe(tree)
    assert len(caught.value.render().splitlines()) <= 12
    return caught.value


@pytest.mark.parametrize("word", sorted(OUR_KEYS))
def test_every_name_of_another_trainer_leads_to_a_key_that_there_is(word):
    assert OUR_KEYS[word] in KEYS
    if word not in KEYS and word.partition(".")[0] not in KEYS:
        value = KEYS[OUR_KEYS[word]].get("default")
        error = refused(f"{word}={value if isinstance(value, str) else json.dumps(value)}")
        assert error.code == "C001"
        assert OUR_KEYS[word] in error.fix


@pytest.mark.parametrize("word", sorted(NO_SUCH_KEY))
def test_every_name_without_a_key_of_ours_is_answered_by_one_sentence_that_names_what_there_is(
    word,
):
    assert word not in OUR_KEYS
    for key in re.findall(r"\b[a-z_]+\.[a-z_]+(?:\.[a-z_]+)*\b", NO_SUCH_KEY[word]):
        assert key in KEYS or key in ("metrics.jsonl", "torch.set_float32_matmul_precision"), key
    error = refused(f"train.{word}=true")
    assert error.why == NO_SUCH_KEY[word]
    assert error.fix == f"leave train.{word} out"
    assert NO_SUCH_KEY[word].split()[0] in explain_word(word)


USUAL_NAMES = (
    "gradient_accumulation_steps per_device_train_batch_size report_to use_lora use_peft lora_r lr "
    "learning_rate num_generations max_completion_length max_prompt_length beta bf16 fp16 "
    "gradient_checkpointing warmup_ratio warmup_steps lr_scheduler_type save_steps eval_steps "
    "logging_steps output_dir dataset_name model_name_or_path teacher_model_name_or_path "
    "temperature top_p top_k lmbda num_train_epochs max_steps deepspeed use_vllm vllm_mode"
)


@pytest.mark.parametrize("word", USUAL_NAMES.split())
def test_the_usual_names_are_known(word):
    assert word in OUR_KEYS or word in NO_SUCH_KEY


@pytest.mark.parametrize(
    ("override", "fix"),
    [
        ("lr=1e-5", "train.lr=1e-05"),
        ("train.num_generations=8", "rollout.per_prompt=8"),
        ("train.temperature=1.0", "rollout.temperature=1.0"),
        ("train.learning_rat=1e-5", "train.lr=1e-05"),
        ("data.columns.image=pic", "data.columns.images=pic"),
        ("train.lora=true", "leave train.lora out"),
        ("train.lrr=true", "leave train.lrr out"),
        ("train.determinstic=false", "train.deterministic=false"),
        ("pixelate=0.2", "views.pixelate=0.2"),
        ("knobs={}", "leave knobs out"),
        ("per_prompts=3", "rollout.per_prompt=3"),
        ("lr_scheduler_type=constant_with_warmup", "vistill explain train.schedule.kind"),
    ],
)
def test_hints_know_types_and_the_names_next_to_them(override, fix):
    error = refused(override)
    assert error.code == "C001"
    assert error.fix.startswith(fix), error.render()


def test_an_empty_list_is_refused_with_the_least_number_of_items():
    error = refused("student.lora.targets=[]")
    assert error.code == "C002"
    assert error.why == "it must be a list of at least 1: language | vision | tower | projector"


def test_a_boolean_is_refused_with_its_default_as_the_fix():
    error = refused("train.lr=true")
    assert error.what == "train.lr cannot be true"
    assert "a number, at least 0" in error.why
    assert error.fix == "train.lr=1e-06"


def test_a_number_in_quotes_is_text_and_the_fix_takes_the_quotes_off():
    error = refused('train.lr="3e-6"')
    assert "a value in quotes is text" in error.why
    assert error.fix == "train.lr=3e-06"


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("data.template={prompt}\\n{choices}", "{prompt}\n{choices}"),
        ('data.template="{prompt}\\n{choices}"', "{prompt}\n{choices}"),
        ("data.template={prompt}", "{prompt}"),
        ("data.system=Answer: yes, or no # really", "Answer: yes, or no # really"),
        ("reward.pattern=<answer>[0-9]+</answer>", "<answer>[0-9]+</answer>"),
        ("reward.pattern=a\\nb", "a\\nb"),
        ("run=2026", "2026"),
        ("student.revision=null", None),
        ("student.revision=1234567", "1234567"),
        ("data.eval=", ""),
        ("stages.a.data.template={prompt}\\n", "{prompt}\n"),
        ("train.freeze=[vision]", ["vision"]),
        ("train.micro_batch=auto", "auto"),
    ],
)
def test_text_on_the_command_line_is_taken_as_it_stands(typed, value):
    assert split_override(typed)[1] == value


@pytest.mark.parametrize("key", [key for key, info in KEYS.items() if not is_group(info)])
def test_every_key_is_explained_with_an_example_that_can_be_pasted(key):
    text = explain_word(key)
    assert text.startswith(f"{key}\n")
    assert max(map(len, text.splitlines())) <= 110
    for label in ("takes ", "default ", "on resume ", "example "):
        assert f"\n{label}" in text
    example = next(line for line in text.splitlines() if line.startswith("example"))
    name, value = split_override(shlex.split(example)[-1])
    assert name == key
    assert fits(KEYS[key], value), example


def test_groups_short_names_and_names_of_others_are_explained_too():
    assert "train.lr = 1e-06" in explain_word("train")
    assert explain_word("lr") == explain_word("train.lr")
    assert "rollout.temperature" in explain_word("temperature")
    assert "is called train.lr here" in explain_word("learning_rate")
    assert "student.lora.rank = 16" in explain_word("lora")
    assert "student.train=lora" in explain_word("use_peft")
    with pytest.raises(ConfigError, match=r"vistill explain train\.lr"):
        explain_word("trian.lr")
    for group in (key for key, info in KEYS.items() if is_group(info)):
        assert explain_word(group)


VALUE = re.compile(r"(?<![\w./-])'?([a-z_]+(?:\.[a-z_]+)+)=((?:\[[^\]]*\])|[^\s`,;)|']+)")


@pytest.mark.parametrize(
    "page", sorted([*REPO.glob("docs/*.md"), REPO / "README.md"]), ids=lambda p: p.name
)
def test_every_setting_that_the_docs_name_can_be_made(page):
    for name, value in VALUE.findall(page.read_text()):
        key = re.sub(r"^stages\.[^.]+\.", "", name)
        if key in KEYS and not re.match(r"[A-Z.]", value) and not is_group(KEYS[key]):
            assert fits(KEYS[key], split_override(f"{key}={value}")[1]), f"{name}={value}"


def test_every_settings_field_has_a_docstring_of_substance():
    from vistill.schema.generate import field_docs

    for kind in settings_types(Recipe):
        docs = field_docs(kind)
        groups = {f.name for f in dataclasses.fields(kind)} - set(schemas_of(kind))
        for field in dataclasses.fields(kind):
            assert field.name in groups or len(docs[field.name]) >= 15, (
                f"{kind.__name__}.{field.name}"
            )
