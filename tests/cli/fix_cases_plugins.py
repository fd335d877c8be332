"""Plug-ins that are missing, broken, or of the wrong kind."""

import json

from fix_cases import situation, start

FILE = "mein plugin ß.py"
HEAD = """\
from dataclasses import dataclass, replace
import vistill
from vistill.registry import engines, methods, rewards, views
from vistill.types import LoadedImage, Pass, Reader
"""
VIEW = """
@views.register("turned")
def turned(prompt, context):
    return prompt
"""
METHOD = """
@methods.register("own")
@dataclass(frozen=True)
class Own(vistill.OPD):
    def passes(self):
        return (*super().passes(), Pass(Reader.TEACHER, "turned", keep="log_prob"))
"""
ENGINE = """
@engines.register("mine")
def mine(vlm, settings, poll):
    return object()
"""


def start_plugin(place, code, rest="", verb="check", **more):
    """A folder with a plug-in, and the command that names it."""
    start(place, f"--plugin '{FILE}'{f' {rest}' if rest else ''}", verb, **more)
    place.write(FILE, HEAD + code)


def without_plugin(place, rest):
    """A run that used a plug-in; the command that lacks it."""
    outcome = place.type(place.line)
    assert outcome.error is None, outcome.error
    place.line = place.line.replace(f" --plugin '{FILE}'", "") + rest


@situation("C105")
def a_run_continues_without_the_plugin_of_its_engine(place):
    engine = ENGINE.replace("return object()", "from vistill.rollouts.hf import HFEngine\n"
                            "    return HFEngine(vlm, poll)")  # fmt: skip
    start_plugin(place, engine, "rollout.engine=mine", verb="train")
    without_plugin(place, "")


@situation("C105")
def a_run_continues_without_the_plugin_of_its_view(place):
    place.write("ansicht ß.py", HEAD + VIEW)
    start_plugin(place, METHOD, "method=own --plugin 'ansicht ß.py'", verb="train")
    outcome = place.type(place.line)
    assert outcome.error is None, outcome.error
    place.line = place.line.replace(" --plugin 'ansicht ß.py'", "")


@situation("C105")
def a_method_reads_an_unknown_view(place):
    start_plugin(place, METHOD, "method=own", verb="train")


@situation("C106")
def a_plugin_registers_a_bad_name(place):
    start_plugin(place, VIEW.replace('"turned"', '"Turned View"'))


@situation("C106")
def a_plugin_registers_something_of_another_kind(place):
    start_plugin(place, VIEW.replace("(prompt, context)", "(prompt)"))


@situation("C106")
def a_method_has_the_name_of_a_key(place):
    start_plugin(place, METHOD.replace('"own"', '"data"'), "method=data")


@situation("C106")
def a_method_has_no_pass_with_gradient(place):
    code = METHOD.replace("*super().passes(), ", "").replace(
        '"turned", keep="log_prob")', '"full"),'
    )
    start_plugin(place, code, "method=own", verb="train")


@situation("C106", first=True)
def a_plugin_fails_while_it_is_read(place):
    start_plugin(place, "1 / 0\n")


@situation("C106")
def a_reward_fails(place):
    code = "@rewards.register('broken')\ndef broken(response, prompt, settings, math):\n    1 / 0\n"
    start_plugin(place, code, "method=grpo teacher.model= reward.extra.broken=1", verb="train")


@situation("C106")
def a_method_reads_a_pass_that_it_does_not_declare(place):
    code = METHOD.replace("*super().passes(), ", "super().passes()[0], ").replace("turned", "full")
    start_plugin(place, code + "    def terms(self, batch, signals):\n"
                 '        batch["teacher.blind"]\n', "method=own", verb="train")  # fmt: skip


@situation("C106")
def an_engine_is_no_engine(place):
    start_plugin(place, ENGINE, "rollout.engine=mine", verb="train")


@situation("C106")
def a_view_gives_another_prompt(place):
    code = VIEW.replace("return prompt", "return replace(prompt, id='x')") + METHOD
    start_plugin(place, code, "method=own", verb="train")


@situation("V816")
def a_view_changes_the_size_of_an_image(place):
    code = VIEW.replace("return prompt", "pictures = [ref.load() for ref in prompt.images]\n"
                        "    return prompt.with_images([LoadedImage("
                        "p.resize((2 * p.width, p.height))) for p in pictures])")  # fmt: skip
    start_plugin(place, code + METHOD, "method=own", verb="train")


@situation("C102")
def a_method_is_of_a_package_that_is_not_installed(place):
    start(place, "method=fremd:Method")


@situation("C105", PACKAGE="mein-paket")
def a_view_is_of_a_package_that_is_not_installed(place):
    start_plugin(place, METHOD.replace("turned", "fremd:turned"), "method=own", verb="train")


@situation("C106")
def a_package_cannot_be_imported(place):
    start(place, "method=broken_one")
    site = place.folder / "pakete"
    info = site / "kaputt-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: kaputt\nVersion: 1.0\nRequires-Dist: vistill\n"
    )
    (info / "entry_points.txt").write_text("[vistill.methods]\nbroken_one = kaputt_x:Own\n")
    (info / "RECORD").write_text("kaputt_x.py,,\n")
    (site / "kaputt_x.py").write_text("import nothing_of_that_name\n")
    place.patches.append(lambda patch: patch.syspath_prepend(str(site)))


@situation("C102")
def a_run_of_python_is_replayed(place):
    start(place)
    folder = place.folder / "läufe" / "alt"
    folder.mkdir(parents=True)
    (folder / "recipe.json").write_text(json.dumps({"run": "läufe/alt", "method": "fremd"}))
    place.line = "vistill replay 'läufe/alt'"
