"""What is passed to the functions of `vistill` in Python: a coded error, never a raw one."""

import json

import pytest
from PIL import Image

import vistill
from vistill.errors import ConfigError, VistillError


@pytest.mark.parametrize("recipe", [None, 3, {"train.lr": 1}, ["a.yaml"]])
@pytest.mark.parametrize("function", [vistill.train, vistill.evaluate, vistill.load_recipe])
def test_a_recipe_that_is_no_name_is_refused(function, recipe):
    with pytest.raises(ConfigError, match="the recipe is a ") as caught:
        function(recipe)
    assert caught.value.code == "C002"
    assert "recipe.yaml" in caught.value.fix


def test_evaluate_reads_a_recipe_file_and_names_the_command_for_a_run(tmp_path):
    with pytest.raises(ConfigError) as caught:
        vistill.evaluate(tmp_path / "nowhere.yaml")
    assert caught.value.code == "C004"
    run = tmp_path / "my run"
    run.mkdir()
    (run / "recipe.json").write_text("{}")
    with pytest.raises(ConfigError, match="is a run folder") as caught:
        vistill.evaluate(str(run))
    assert caught.value.note.startswith(f"vistill eval '{run}'")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"run: {tmp_path / 'out'}\nmethod: sft\nstudent: {{model: ./nowhere}}\n"
        "data: {train: diagrams}\n"
    )
    with pytest.raises(VistillError) as caught:  # the recipe was read
        vistill.evaluate(str(recipe))
    assert caught.value.code == "M103"


def test_load_prompts_takes_the_folder_of_the_images(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "rows").mkdir()
    Image.new("RGB", (40, 40), "red").save(tmp_path / "pictures" / "a.png")
    file = tmp_path / "rows" / "train.jsonl"
    file.write_text(json.dumps({"question": "?", "image": "a.png", "answer": "3"}) + "\n")
    folder = tmp_path / "pictures"
    (prompt,) = vistill.load_prompts(file, image_folder=folder, images="image")
    assert prompt.images[0].load().size == (40, 40)
    for wrong in (folder, str(folder)):
        with pytest.raises(ConfigError, match="a folder") as caught:
            vistill.load_prompts(file, images=wrong)
        assert "image_folder" in caught.value.fix
    for source in (None, 3):
        with pytest.raises(ConfigError) as caught:
            vistill.load_prompts(source)
        assert caught.value.code == "C002"
