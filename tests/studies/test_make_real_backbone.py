"""Making the model of real parts: what is needed. Its weights are tested in the slow tests."""

import pytest

from vistill.errors import MissingExtraError
from vistill.studies.make_real_backbone import CHAT_TEMPLATE, main, require_packages


def test_without_its_packages_the_error_names_them():
    with pytest.raises(MissingExtraError) as caught:
        require_packages(("json", "no_such_package", "nor_this_one"))
    assert caught.value.code == "E301"
    assert caught.value.what.endswith("missing: no_such_package, nor_this_one")
    assert caught.value.fix.startswith("pip install 'vistill[real]' && ")


def test_a_side_that_is_not_whole_patches_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(tmp_path / "model"), "--side", "100"])
    assert "multiple of 14" in capsys.readouterr().err


def test_the_chat_template_is_that_of_smollm2_with_an_image_token(tokenizer):
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Why?"}]}]
    text = tokenizer.apply_chat_template(
        messages, chat_template=CHAT_TEMPLATE, tokenize=False, add_generation_prompt=True
    )
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\n<image>\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )
