"""The engine `vllm` without its environment, and errors of vLLM, which are made here."""

from types import SimpleNamespace

from fix_cases import situation, start
from fix_cases_built import made


@situation("E303")
def the_environment_of_vllm_is_missing(place):
    start(place, "rollout.engine=vllm")
    place.line = place.line.replace(" --fast", "", 1)


@situation("R414")
def vllm_is_not_the_student_after_a_sync(place):
    from vistill.rollouts.vllm_checks import check_probe

    made(place, lambda: check_probe([-1.0], [-2.0], "float32"))


@situation("R413")
def a_prompt_is_longer_than_the_limit_of_vllm(place):
    from vistill.rollouts.settings import VLLMSettings
    from vistill.rollouts.vllm_checks import check_length

    made(place, lambda: check_length([1] * 9, 8, VLLMSettings(max_length=16), "row 3"))


@situation("C101")
def a_model_of_another_family_writes_with_vllm(place):
    from vistill.rollouts.vllm_engine import check_writer

    family = SimpleNamespace(describe=lambda: "generic")
    made(place, lambda: check_writer(SimpleNamespace(family=family)))


@situation("C101")
def quantised_weights_write_with_vllm(place):
    import torch

    from vistill.models.families.qwen3_vl import Qwen3VLFamily
    from vistill.rollouts.vllm_engine import check_writer

    weights = [torch.zeros(1, dtype=torch.int8)]
    model = SimpleNamespace(parameters=lambda: weights)
    family = Qwen3VLFamily.__new__(Qwen3VLFamily)
    made(place, lambda: check_writer(SimpleNamespace(family=family, model=model)))


@situation("C101")
def a_server_without_an_address_writes(place):
    start(place, "rollout.engine=server")
    place.line = place.line.replace(" --fast", "", 1)


@situation("R419")
def a_server_writes_the_responses_of_a_student_that_is_trained(place):
    start(place, "rollout.engine=server rollout.server.url=http://127.0.0.1:1")
    place.line = place.line.replace(" --fast", "", 1)


@situation("C101")
def a_server_scores_for_a_method_that_needs_the_whole_distribution(place):
    rest = "method=opd train.teacher_scorer=sampled_token rollout.server.url=http://127.0.0.1:1"
    start(place, rest)
    place.line = place.line.replace(" --fast", "", 1)
