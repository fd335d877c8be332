"""The real vocabulary of Qwen3-VL, and the layouts of its models at reduced width and depth."""

import dataclasses
import json

import pytest
import torch
from PIL import Image
from qwen_published import (
    HEAD_ROWS,
    LAYOUTS,
    NOT_SPECIAL,
    NUM_RANKS,
    NUM_TOKENS,
    SPECIAL,
    build_layout,
    published_tokenizer,
    read_ranks,
    split_word,
)
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, AutoTokenizer

from vistill.api import distill
from vistill.data.diagrams import diagram_prompts
from vistill.errors import ModelError
from vistill.evaluation.settings import EvalSettings
from vistill.functional.rows import Target, reverse_kl_from_hidden
from vistill.models.chat import chat_messages, load_images
from vistill.models.loading import load_vlm
from vistill.models.pairs import check_pair, vocabulary_hash
from vistill.models.save import save_vlm
from vistill.models.scoring import EncodedGroup, response_states, score
from vistill.models.selftest import run_selftest
from vistill.objectives import VAOPD
from vistill.rollouts.engine import RolloutRequest, Sampling
from vistill.rollouts.hf import HFEngine
from vistill.rollouts.settings import RolloutSettings
from vistill.rollouts.shared import SharedEngine
from vistill.training.settings import SaveSettings, TrainSettings
from vistill.types import LoadedImage, Prompt

pytestmark = pytest.mark.more

TEXTS = (
    "Hello, world",
    "Wir sahen 12.345 Vögel; they're gone!",
    "求三角形的面积。答案是 \\boxed{12.5}。",
    "🙂👩‍👩‍👧 😀",
    "x^2 + y^2 = 25\n\n\t 0042",
    "  leading and   multiple spaces ",
)
#: Tokens of the published tokenizer.
GOLDEN = {
    "Hello, world": [9707, 11, 1879],
    "don't can't I'll we've": [15007, 944, 646, 944, 358, 3278, 582, 3003],
    "123 4567 0.5e-3 -42": [
        16, 17, 18, 220, 19, 20, 21, 22, 220, 15, 13, 20, 68, 12, 18, 481, 19, 17,
    ],
    "<|im_start|>system<|im_end|>": [151_644, 8948, 151_645],
    "snake_case camelCase kebab-case": [72139, 19096, 49152, 4207, 1962, 47722, 38485],
}  # fmt: skip
RESPONSES = ((9707, 11, 1879, 151_645), (108_386, 3837, 99_489), (16, 17, 151_668, NUM_RANKS - 1))
#: Largest difference of two ways to read the same tokens, relative to the largest entry.
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def qwen():
    return published_tokenizer()


@pytest.fixture(scope="module", params=LAYOUTS)
def vlm(request, qwen):
    """A frozen model of each layout."""
    return build_layout(request.param, qwen, 1).freeze()


@pytest.fixture
def varied():
    """Prompts with one image, another one, two, a wide one in Chinese, and none."""
    a, b = diagram_prompts("train", 2, 0)
    wide = Image.linear_gradient("L").resize((600, 200)).convert("RGB")
    return [
        a,
        b,
        Prompt("two", (a.images[0], "first, second ", b.images[0], "which?"), system="Be brief."),
        Prompt("wide", (LoadedImage(wide), "这是什么？ 🙂")),
        Prompt("text", ("What is 6 * 7?",)),
    ]


def make_groups(vlm, prompts):
    return [EncodedGroup(vlm.encode(p), RESPONSES[: 1 + i % 3]) for i, p in enumerate(prompts)]


def relative_difference(a, b):
    return float((a - b).abs().max() / b.abs().max())


def with_row_per_rollout(vlm):
    return dataclasses.replace(vlm, share_prompts=False)


def with_padding_rows(vlm, value):
    """Set the head rows beyond the tokenizer."""
    with torch.no_grad():
        vlm.model.get_output_embeddings().weight[NUM_TOKENS:] = value
    return vlm


def test_the_vocabulary_has_the_published_ids(qwen):
    assert len(read_ranks()) == NUM_RANKS
    assert len(qwen) == len(qwen.get_vocab()) == NUM_TOKENS
    tokens = [*SPECIAL, *NOT_SPECIAL]
    assert qwen.convert_tokens_to_ids(tokens) == list(range(NUM_RANKS, NUM_TOKENS))
    assert qwen.convert_tokens_to_ids(["<|image_pad|>", "</think>"]) == [151_655, 151_668]
    assert {qwen(text, add_special_tokens=False)["input_ids"][0] for text in TEXTS[:1]} == {9707}


@pytest.mark.parametrize("text", GOLDEN)
def test_a_text_has_the_published_tokens(qwen, text):
    assert qwen(text, add_special_tokens=False)["input_ids"] == GOLDEN[text]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_survives_and_has_the_tokens_of_its_ranks(qwen, text):
    """The reference merges bytes by their ranks, without the merges that the tokenizer got."""
    ids = qwen(text, add_special_tokens=False)["input_ids"]
    assert qwen.decode(ids) == text
    words = qwen.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    pieces = [text[start:end].encode() for _, (start, end) in words]
    ranks = read_ranks()
    expected = [part for p in pieces for part in ([p] if p in ranks else split_word(p, ranks))]
    assert ids == [ranks[part] for part in expected]


def test_the_processor_of_transformers_makes_the_same_inputs(qwen, varied):
    pytest.importorskip("torchvision", reason="the processor of Qwen3-VL needs torchvision")
    from transformers import Qwen3VLProcessor, Qwen3VLVideoProcessor

    vlm = build_layout("2B", qwen)
    processor = Qwen3VLProcessor(
        vlm.family.processor, qwen, Qwen3VLVideoProcessor(), chat_template=qwen.chat_template
    )
    for prompt in varied:
        messages, images = chat_messages(prompt), [i.convert("RGB") for i in load_images(prompt)]
        text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        theirs = processor(text=[text], images=images or None, return_tensors="pt")
        ours = vlm.encode(prompt)
        assert list(ours.ids) == theirs["input_ids"][0].tolist()
        assert set(ours.pixels) == {"pixel_values", "image_grid_thw"} & set(theirs)
        assert all(torch.equal(ours.pixels[name], theirs[name]) for name in ours.pixels)
        inputs = {n: theirs[n] for n in ("input_ids", "mm_token_type_ids", "attention_mask")}
        grids = {"image_grid_thw": theirs["image_grid_thw"]} if images else {}
        positions, delta = vlm.model.model.get_rope_index(**inputs, **grids)
        assert torch.equal(ours.positions, positions[:, 0])
        assert ours.next_position == len(ours.ids) + int(delta)


def test_a_layout_is_the_published_one(vlm):
    text, vision = vlm.model.config.text_config, vlm.model.config.vision_config
    assert len(vlm.model.get_output_embeddings().weight) == HEAD_ROWS
    assert len(vlm.head(vlm.vocabulary_size).weight) == NUM_TOKENS
    assert (text.head_dim, text.rope_parameters["mrope_section"]) == (128, [24, 20, 20])
    assert vision.hidden_size // vision.num_heads in (64, 72)
    assert len(vision.deepstack_visual_indexes) == 3
    embedding, head = vlm.model.get_input_embeddings(), vlm.model.get_output_embeddings()
    assert (embedding.weight is head.weight) == vlm.model.config.tie_word_embeddings


def test_the_self_test_passes_and_shared_prompts_give_the_states_of_rows(vlm, varied):
    assert run_selftest(vlm).shares_prompts
    groups = make_groups(vlm, varied)
    with torch.no_grad():
        shared = response_states(vlm, groups)
        assert relative_difference(shared, response_states(with_row_per_rollout(vlm), groups)) < (
            TOLERANCE
        )


def test_rollouts_never_have_a_token_beyond_the_tokenizer(vlm, varied):
    """The rows there get the largest logits of all; both engines write what they write without."""
    requests = [RolloutRequest(p.id, vlm.encode(p), (0, 1)) for p in varied]
    sampling = Sampling(0, 0, 1.0, 1.0, 6)
    engines = (HFEngine(vlm), SharedEngine(vlm))
    before = vlm.model.get_output_embeddings().weight[NUM_TOKENS:].clone()
    expected = engines[0].generate(requests, sampling)
    assert max(i for group in expected for r in group for i in r.ids) < NUM_TOKENS
    for value in (50.0, -50.0):  # one of the two has large logits, whatever the sign of the states
        with_padding_rows(vlm, value)
        assert all(engine.generate(requests, sampling) == expected for engine in engines)
    with_padding_rows(vlm, before)


@pytest.mark.parametrize("size", ["2B", "8B"])
def test_a_head_row_beyond_the_tokenizer_changes_no_value_and_gets_no_gradient(qwen, varied, size):
    teacher = build_layout("4B", qwen, 3).freeze()
    gradients, values = [], []
    for value in (0.0, 40.0):
        vlm = with_padding_rows(build_layout(size, qwen, 2), value)
        groups = make_groups(vlm, varied[:2])
        ids = torch.tensor([i for g in groups for r in g.responses for i in r])
        student = score(vlm, groups, ids, NUM_TOKENS)
        with torch.no_grad():
            other = score(with_padding_rows(teacher, value), groups, ids, NUM_TOKENS)
        target = Target(1.0, other.states(), other.projection())
        values.append(reverse_kl_from_hidden(student.states(), student.projection(), [target]))
        values[-1].sum().backward()
        gradients.append(vlm.model.get_output_embeddings().weight.grad)
    assert torch.equal(*values)
    assert float(values[0].detach().min()) > 0
    assert all(float(g[NUM_TOKENS:].abs().max()) == 0.0 for g in gradients)
    assert torch.equal(*gradients)
    assert float(gradients[0][:NUM_TOKENS].abs().max()) > 0


def test_the_probability_of_all_tokens_of_the_tokenizer_is_one(vlm, varied):
    states = response_states(vlm, make_groups(vlm, varied[:1]))
    with torch.no_grad():
        full = vlm.model.get_output_embeddings()(states)
        ours = vlm.head(vlm.vocabulary_size).logits(states)
    assert relative_difference(ours, full[:, :NUM_TOKENS]) < TOLERANCE
    log_probs = torch.log_softmax(full[:, :NUM_TOKENS], -1)
    assert relative_difference(torch.log_softmax(ours, -1), log_probs) < TOLERANCE


def test_models_with_unequal_head_rows_share_the_tokenizer(qwen):
    """Qwen pads the head to 151,936 or 152,064 rows; the tokenizers are equal by content."""
    student, teacher = build_layout("2B", qwen), build_layout("4B", published_tokenizer())
    teacher.model.resize_token_embeddings(152_064, mean_resizing=False)
    assert check_pair(student, teacher) == NUM_TOKENS
    assert len(teacher.head(NUM_TOKENS).weight) == NUM_TOKENS


def without_merge(tokenizer):
    """The same words with the same ids, and one rule less to find them."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["model"]["merges"].pop(20_000)
    return content


def with_swapped_words(tokenizer):
    """Two words with each other's ids."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    words = content["model"]["vocab"]
    words["Hello"], words["world"] = words["world"], words["Hello"]
    return content


@pytest.mark.parametrize("change", [without_merge, with_swapped_words])
def test_a_tokenizer_that_differs_in_one_rule_or_word_is_refused(qwen, change):
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    other = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(change(qwen))), eos_token="<|im_end|>"
    )
    other.chat_template = qwen.chat_template
    with pytest.raises(ModelError) as caught:
        check_pair(build_layout("2B", qwen), build_layout("2B", other))
    assert caught.value.code == "M101"


@pytest.mark.parametrize(("student", "teacher"), [("2B", "8B"), ("8B", "4B")])
def test_a_step_of_va_opd_moves_the_student_and_no_row_beyond_the_tokenizer(
    qwen, tmp_path, student, teacher
):
    student = build_layout(student, qwen, 3)
    weight = student.model.get_output_embeddings().weight
    before = weight.detach().clone()
    run = distill(
        student,
        build_layout(teacher, published_tokenizer(), 4),
        diagram_prompts("train", 2, 0),
        VAOPD(),
        tmp_path / "run",
        train=TrainSettings(prompts_per_step=2, steps=1, lr=1e-3, weight_decay=0.0),
        rollout=RolloutSettings(per_prompt=2, max_new_tokens=8, all_truncated="go_on"),
        save=SaveSettings(every=0),
        evaluation=EvalSettings(every=0),
    )
    (record,) = run.metrics
    assert record["finite"] == 1.0
    assert record["loss"] > 0
    assert torch.equal(weight[NUM_TOKENS:], before[NUM_TOKENS:])
    assert not torch.equal(weight[:NUM_TOKENS], before[:NUM_TOKENS])


def test_a_saved_folder_is_read_alike_here_and_by_transformers(vlm, varied, tmp_path):
    save_vlm(vlm, tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert ("lm_head.weight" in names) != vlm.model.config.tie_word_embeddings
    loaded, model = load_vlm(tmp_path), AutoModelForImageTextToText.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == NUM_TOKENS
    assert vocabulary_hash(tokenizer) == vocabulary_hash(vlm.tokenizer)
    for text in (*TEXTS, *GOLDEN):
        assert tokenizer(text)["input_ids"] == vlm.tokenizer(text)["input_ids"]
    inputs = vlm.family.generation_inputs([vlm.encode(varied[0])], vlm.pad_id)
    with torch.no_grad():
        expected = vlm.model(**inputs).logits
        assert torch.equal(model(**inputs).logits, expected)
        assert torch.equal(loaded.model(**inputs).logits, expected)
    assert loaded.stop_ids == [151_645, 151_643]
    assert loaded.encode(varied[3]).ids == vlm.encode(varied[3]).ids
