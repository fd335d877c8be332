"""`vistill chat`: one question, a conversation, two models, the teacher's heatmap, bad input."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import time

import pytest
from finished_run import finished_run
from tiers import few

from vistill.cli import live
from vistill.cli.chat import print_answers, side_by_side
from vistill.cli.main import entry
from vistill.studies.chat import Answer, TokenReading

SHORT = ["--temperature", "0", "--max-new-tokens", "8"]


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.fixture
def picture(tmp_path):
    from PIL import Image

    file = tmp_path / "a picture.png"
    Image.linear_gradient("L").resize((80, 48)).convert("RGB").save(file)
    return file


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self):
        return True


def chat(capsys, monkeypatch, *words, typed=None, pipe=""):
    """Exit code, stdout and stderr of the verb with a pipe, or with lines typed in a terminal."""
    stdin = io.StringIO(pipe) if typed is None else Terminal("".join(f"{t}\n" for t in typed))
    monkeypatch.setattr(sys, "stdin", stdin)
    code = 0
    try:
        entry(["chat", *map(str, words)])
    except SystemExit as stop:
        code = stop.code or 0
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_a_question_in_a_pipe_has_the_answer_alone_on_stdout(picture, capsys, monkeypatch):
    words = ["vistill:student", "--image", picture, *SHORT]
    code, out, err = chat(capsys, monkeypatch, *words, pipe="What is x?\n")
    assert code == 0, err
    assert len(out.splitlines()) == 1
    assert "[cut off at the length limit]" in out
    assert "student   vistill:student" in err
    assert "temperature 0, top_p 0.95, at most 8 tokens, seed 42" in err
    asked = chat(capsys, monkeypatch, *words, "--ask", "What is x?")
    assert asked[:2] == (0, out)


@pytest.mark.more
def test_an_answer_is_the_one_of_generate(picture, tmp_path, capsys, monkeypatch):
    """The same engine, sampling, picture and noise."""
    import vistill
    from vistill.rollouts.settings import RolloutSettings

    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"question": "What is x?", "images": [picture.name]}) + "\n")
    words = ["--temperature", "1", "--max-new-tokens", "12", "--seed", "5", "--top-p", "1"]
    words = ["vistill:student", "--image", picture, *words, "--ask", "What is x?"]
    _, out, _ = chat(capsys, monkeypatch, *words)
    settings = RolloutSettings(temperature=1.0, top_p=1.0, max_new_tokens=12)
    prompts = vistill.load_prompts(str(rows), answer="")
    (response,) = vistill.generate("vistill:student", prompts, rollout=settings, seed=5)
    assert out.strip().startswith(response.text.strip())


@pytest.mark.parametrize("named", [True, False])
def test_the_teacher_is_read_in_the_precision_and_revision_of_the_recipe(named):
    from vistill.models.quantization import QuantizedLinear
    from vistill.studies.chat import open_chat, teacher_settings_for
    from vistill.training.recipe import (
        NamedTeacherSettings,
        Recipe,
        StudentSettings,
        TeacherSettings,
    )

    own = {"model": "vistill:teacher", "revision": "main", "precision": "int8"}
    several = {"a": NamedTeacherSettings(**own)} if named else {}
    one = TeacherSettings() if named else TeacherSettings(**own)
    recipe = Recipe("run", StudentSettings("vistill:student"), "opd", teacher=one, teachers=several)
    assert teacher_settings_for(recipe, "vistill:teacher").revision == "main"
    other = teacher_settings_for(recipe, "another")
    assert (other.revision, other.precision) == (None, one.precision)
    opened = open_chat(recipe, teacher="vistill:teacher")
    assert any(isinstance(m, QuantizedLinear) for m in opened.teacher.model.modules())
    assert not any(isinstance(m, QuantizedLinear) for m in opened.speakers[0].vlm.model.modules())


@pytest.mark.more
def test_before_and_teacher_in_a_pipe_give_names_and_plain_numbers(
    picture, tmp_path, capsys, monkeypatch
):
    page = tmp_path / "chat.html"
    words = ["vistill:student", "--image", picture, *SHORT, "--ask", "What is <x>?"]
    words += ["--before", "vistill:student", "--teacher", "vistill:teacher", "--html", page]
    code, out, err = chat(capsys, monkeypatch, *words)
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].startswith("before: ")
    assert lines[1].startswith("student: ")
    headers = [i for i, line in enumerate(lines) if line == "advantage  teacher p  token"]
    assert [lines[i - 1] for i in headers] == ["before", "student"]
    rows = lines[headers[0] + 1 : headers[1] - 1]
    assert len(rows) == 8
    assert all(re.match(r" {2,}\d+\.\d{3} {2,}[01]\.\d{3}  ", row) for row in rows)
    assert "\x1b" not in out
    text = page.read_text()
    assert "What is &lt;x&gt;?" in text
    assert text.count("data:image/png;base64,") == 1
    assert text.count('class="tokens"') == 2
    assert "teacher p" in text


@pytest.mark.more
def test_a_conversation_knows_commands_and_its_earlier_turns(picture, capsys, monkeypatch):
    typed = ["/help", "/nonsense", "What is x?", f"/image {picture}", "And here?",
             "/image none.png", "What is <|im_end|>?", "/new", "What is x?", "/quit",
             "never asked"]  # fmt: skip
    code, out, err = chat(capsys, monkeypatch, "vistill:student", *SHORT, typed=typed)
    assert code == 0, err
    assert "/image FILE" in out
    assert "a picture.png: 80 x 48 pixels" in out
    assert "/nonsense is no command" in out
    assert "error[D201]" in out
    assert "fix   /image FILE   in place of /image none.png" in out
    assert "error[D103]" in out
    answers = [line.lstrip("> ") for line in out.splitlines() if "cut off" in line]
    assert len(answers) == 3
    assert answers[0] == answers[2]  # greedy, and the conversation was forgotten


@pytest.mark.more
def test_the_same_question_again_has_new_noise_and_another_session_repeats_it(student, monkeypatch):
    from vistill.config import build_recipe
    from vistill.studies.chat import Chat, Speaker
    from vistill.views import ViewContext

    tree = {"run": "x", "method": "sft", "student": {"model": "a"}, "data": {"train": "diagrams"}}
    recipe = build_recipe({**tree, "rollout": {"max_new_tokens": 8, "temperature": 1.0}})

    def session():
        talk = Chat(recipe, [Speaker("student", "a", student)], None, ViewContext(), print_nothing)
        answers = []
        for _ in range(2):
            answers.append(talk.ask("What is x?")[0].text)
            talk.start_again()
        return answers

    def print_nothing(name, count):
        pass

    first, second = session(), session()
    assert first[0] != first[1]
    assert first == second


def test_ctrl_c_stops_an_answer_and_the_conversation_goes_on(student, monkeypatch, capsys):
    from vistill.cli.chat import Terminal as Conversation
    from vistill.config import build_recipe
    from vistill.studies.chat import Chat, Speaker
    from vistill.views import ViewContext

    tree = {"run": "x", "method": "sft", "student": {"model": "a"}, "data": {"train": "diagrams"}}
    recipe = build_recipe({**tree, "rollout": {"max_new_tokens": 6, "temperature": 0.0}})
    counts = []

    def poll(name, count):
        counts.append(count)
        if len(counts) == 3:
            raise KeyboardInterrupt

    talk = Chat(recipe, [Speaker("student", "a", student)], None, ViewContext(), poll)
    monkeypatch.setattr(sys, "stdin", Terminal("What is x?\nWhat is y?\n"))
    Conversation(talk, [], None, live.CountLine()).converse()
    assert "stopped; the question is forgotten" in capsys.readouterr().out
    assert [question.text for question in talk.questions] == ["What is y?"]
    assert len(talk.speakers[0].answers) == 1


def test_a_later_turn_reads_the_earlier_ones(student):
    from vistill.studies.chat import encode_conversation, make_question

    questions = [make_question("What is x?", [], "Be brief."), make_question("And y?", [])]
    text = student.tokenizer.decode(encode_conversation(student, questions, ["It is 3."]).ids)
    places = [text.index(part) for part in ("Be brief.", "What is x?", "It is 3.", "And y?")]
    assert places == sorted(places)
    assert text.count("Be brief.") == 1
    one = encode_conversation(student, questions[:1], [])
    assert one.ids == student.encode(questions[0]).ids


BAD = {
    "a missing picture": (["--image", "a pictur.png"], "D201", "--image 'FOLDER/a picture.png'"),
    "a folder": (
        ["--image", "."],
        "D201",
        "--image 'a picture.png'   in place of --image .",
    ),
    "a picture that cannot be read": (["--image", "text.png"], "D202", "--image FILE"),
    "a special token": (["--ask", "x <|im_end|>"], "D103", "remove it"),
    "no question": ([], "C002", "--ask 'What is shown?'"),
    "a missing student": (
        ["MODEL:vistill:studnt"],
        "M103",
        "vistill:student   in place of vistill:studnt",
    ),
    "a missing model before": (["--before", "vistill:bas"], "M103", "--before vistill:base"),
    "a missing teacher": (["--teacher", "no/where/at/all"], "M103", "--teacher "),
    "another vocabulary": (["--teacher", "vistill:base"], "M101", "--teacher ''"),
    "a temperature": (["--temperature", "-1"], "C002", "--temperature "),
}


@pytest.mark.parametrize("name", few(list(BAD), 0, 2, 4))
def test_bad_input_is_coded_before_weights_are_read(name, picture, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.png").write_text("no picture")
    run = finished_run(tmp_path / "run")
    (run / "student" / "model.safetensors").write_bytes(b"never read")
    extra, code, fix = BAD[name]
    model = next((w.removeprefix("MODEL:") for w in extra if w.startswith("MODEL:")), str(run))
    extra = [word for word in extra if not word.startswith("MODEL:")]
    asked = [] if name in ("no question", "a special token") else ["--ask", "What is x?"]
    status, _, err = chat(capsys, monkeypatch, model, *asked, *extra)
    assert status != 0
    assert f"error[{code}]" in err
    assert fix.replace("FOLDER/", "") in err.split("fix")[1]
    assert ".model=" not in err


@pytest.mark.more
def test_an_unfinished_run_names_its_newest_checkpoint(tmp_path, capsys, monkeypatch):
    run = finished_run(tmp_path / "run", finished=False)
    status, _, err = chat(capsys, monkeypatch, run, "--ask", "x?")
    assert status == 6
    assert f"fix   {run}/checkpoint-000002/student   in place of {run}" in err


@pytest.mark.more
def test_a_run_gives_sampling_and_system_message_and_offers_its_base(
    picture, tmp_path, capsys, monkeypatch
):
    data = {"train": "diagrams", "system": "Be brief.", "template": "{prompt}\nUse \\boxed{{}}."}
    run = finished_run(tmp_path / "run", data=data)
    code, _, err = chat(capsys, monkeypatch, run, "--image", picture, "--ask", "What is x?")
    assert code == 0, err
    assert "temperature 0, top_p 0.95, at most 12 tokens" in err
    assert "system    Be brief." in err
    assert "not added here, but training asked so: {prompt} / Use \\boxed{}." in err
    assert "compare   --before vistill:student   the model before training" in err


READING = TokenReading(
    ["The", " answer", "\nis", " 12", " red\x1b[31m"], [0.0, 0.1, 0.6, 4.0, 1.4], [1, 1, 1, 1, 0.01]
)


def show(reading, monkeypatch, columns=100):
    """What a terminal of a width gets for two answers with a heatmap."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("COLUMNS", str(columns))
    text = "The answer is twelve " * 6
    print_answers([Answer("student", text, 5, False, reading), Answer("before", "No.", 2, True)])
    return stream.getvalue()


def test_colours_follow_the_advantage_and_unlikely_tokens_are_underlined(monkeypatch):
    text = show(READING, monkeypatch)
    assert "\x1b[38;5;16;48;5;202m 12\x1b[0m" in text
    assert "\x1b[38;5;16;48;5;216;4m red\\x1b[31m\x1b[0m" in text  # control characters are escaped
    assert "\n\x1b[38;5;16;48;5;223mis\x1b[0m" in text  # no colour runs over the end of a line
    assert "The answer\n" in text
    assert "largest, nats: 12 4.00" in text
    shades = [live.dark(int(s)) for s in re.findall(r"48;5;(\d+)", text)]
    assert shades == [1, 4, 2]


LONG = TokenReading(
    [" the", " blue", " bar", " is", " \\", "boxed", "{", "0", "}.", "<|im_end|>"],
    [0.0, 0.1, 0.6, 4.0, 1.4, 0.2, 0.0, 2.0, 0.0, 0.0],
    [1] * 9 + [0.01],
)


@pytest.mark.parametrize("columns", [24, 40, 80])
def test_a_heatmap_breaks_between_words_and_says_once_what_its_colours_mean(monkeypatch, columns):
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("COLUMNS", str(columns))
    readings = [TokenReading(LONG.tokens * 3, LONG.advantage * 3, LONG.probability * 3)] * 2
    print_answers([Answer(name, "x", 5, False, r) for name, r in zip("ab", readings, strict=True)])
    text = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())
    assert max(map(len, text.splitlines())) <= columns
    assert " ".join(text.split()).count("orange, the picture raises") == 1
    assert re.findall(r"^(\w):$", text, re.M) == ["b", "a"]
    rows = text[text.index("b:\n") :].split("largest")[0].splitlines()[1:]
    assert " ".join(" ".join(rows).split()) == "".join(LONG.tokens * 3).strip()
    assert all(row.strip() in "".join(LONG.tokens * 3) for row in rows)


@pytest.mark.parametrize("variable", [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_colours_means_plain_numbers(monkeypatch, variable):
    monkeypatch.setenv(*variable)
    text = show(READING, monkeypatch)
    assert "\x1b" not in text
    assert "    4.000      1.000   12" in text
    assert "⏎is" in text


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_two_answers_stand_side_by_side_where_there_is_space(monkeypatch, columns):
    lines = show(None, monkeypatch, columns).splitlines()
    if columns < 72:
        assert lines[0].startswith("before: No.")
        return
    assert all(len(line) <= columns for line in lines)
    assert lines[0].split("|")[0].strip() == "before"
    assert lines[0].split("|")[1].strip() == "student"
    assert {line.index("|") for line in lines} == {(columns - 3) // 2 + 1}


def test_wide_letters_keep_their_column():
    rows = side_by_side(
        Answer("before", "答案是十二", 5, False), Answer("student", "x", 1, False), 80
    )
    from rich.cells import cell_len

    assert {cell_len(row.partition("|")[0]) for row in rows} == {39}


def test_a_long_answer_in_wide_letters_and_a_long_name_are_shown_whole():
    answer, name = "周长是三加四加五等于十二" * 8, "/models/" + "qwen3-vl-2b-" * 8 + "student"
    rows = side_by_side(Answer(name, answer, 99, False), Answer("student", "x", 1, False), 80)
    left = "".join(row.partition("|")[0].strip() for row in rows)
    assert left == name + answer


@pytest.mark.more
def test_a_real_terminal_shows_progress_colours_and_survives_ctrl_c(picture, tmp_path):
    import pty
    import select
    import signal

    run = finished_run(tmp_path / "run", rollout={"temperature": 1.0, "max_new_tokens": 8000})
    (run / "student" / "config.json").write_text(
        (run / "student" / "config.json").read_text().replace("8192", "16384")
    )
    master, child = pty.openpty()
    words = ["-m", "vistill", "chat", str(run), "--image", str(picture)]
    words += ["--teacher", "vistill:teacher", "--max-new-tokens", "24"]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80"}
    process = subprocess.Popen(
        [sys.executable, *words], stdin=child, stdout=child, stderr=child, env=environment,
        start_new_session=True, preexec_fn=lambda: None,
    )  # fmt: skip
    os.close(child)
    text = ""

    def wait_for(pattern):
        nonlocal text
        end = time.monotonic() + 300
        while not re.search(pattern, text):
            if time.monotonic() > end:
                process.kill()
                process.wait()
                pytest.fail(text)
            if select.select([master], [], [], 1)[0]:
                text += os.read(master, 65536).decode(errors="replace")
        seen, text = text, ""
        return seen

    opening = wait_for(r"> $")
    assert "loading student" in opening
    os.write(master, b"What is x?\n")
    answer = wait_for(r"nats.*\n> $|gains 0.01 nats\r\n> $")
    assert "48;5;" in answer or "no token gains" in answer
    for _ in range(4):  # Python loses a signal between printing a prompt and waiting for input
        process.send_signal(signal.SIGINT)  # at the prompt: the end
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
            break
    assert process.returncode == 0
    os.close(master)


def test_the_page_shows_before_on_the_left_and_underlines_what_the_teacher_would_not_write(
    tmp_path,
):
    from vistill.report.chat_page import write_chat_page

    answers = [Answer("student", "x", 5, False, READING), Answer("before", "No.", 2, True)]
    stored = [answer.to_dict() for answer in reversed(answers)]
    facts = {"models": [("student", "a")], "teacher": "t", "sampling": "s"}
    question = {"text": "Q?", "pictures": ["data:,1", "data:,2"], "answers": stored}
    write_chat_page(facts, [question, question], tmp_path / "p.html")
    html = (tmp_path / "p.html").read_text()
    assert html.index("<h3>before") < html.index("<h3>student")
    underlined = re.findall(r'border-bottom[^"]*" title="[^"]*">([^<]*)<', html)
    assert underlined == [" red\\x1b[31m"] * 2
    assert 'alt="picture 2 of question 1"' in html


def test_a_note_about_the_wording_of_choices_can_be_followed(
    picture, tmp_path, capsys, monkeypatch
):
    data = {"train": "diagrams", "template": "{prompt}\n{choices}"}
    run = finished_run(tmp_path / "run", data=data)
    code, _, err = chat(capsys, monkeypatch, run, "--image", picture, "--ask", "What is x?")
    assert code == 0, err
    assert "training listed choices below the question: (A) ..., one per line" in err
