"""Shared fixtures: one thread, tiny models built in process, no network, real data if present."""

import itertools
import os
import socket
from pathlib import Path

import jaxtyping
import pytest
import torch

from vistill.models.torchvision_operators import make_torchvision_importable

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
torch.set_num_threads(1)
make_torchvision_importable()  # before a test imports transformers

REPO = Path(__file__).parent.parent
SHARED = REPO.parent / "shared" / "data"
#: (id, markers) of every collected test, for `test_tests.py`.
COLLECTED = pytest.StashKey()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Store id and markers of every test, before `-m` selects some."""
    folder = f"{Path(__file__).parent.name}/"
    config.stash[COLLECTED] = [
        (item.nodeid.removeprefix(folder), {mark.name for mark in item.iter_markers()})
        for item in items
    ]


#: Numbers of the folders of start caches.
CACHE_NUMBERS = itertools.count()
#: Folders whose tests train.
TRAINS = {"training", "faults", "end_to_end", "studies", "report", "reproduction"}
FSYNC = os.fsync


def pytest_addoption(parser):
    parser.addoption(
        "--quick",
        action="store_true",
        help="tests that train skip shape checks and fsync, half of their time",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Turn jaxtyping's checks and fsync on or off for this test, before its fixtures run."""
    quick = item.config.getoption("--quick") and item.path.parent.name in TRAINS
    jaxtyping.config.update("jaxtyping_disable", quick)
    os.fsync = (lambda descriptor: None) if quick else FSYNC


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """Connections to other machines fail at once."""

    def refuse(self, address, *rest):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            raise OSError(f"a test tried to connect to {address}")
        return connect(self, address, *rest)

    connect = socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(autouse=True)
def start_cache(monkeypatch, tmp_path_factory):
    """Each test has a start cache of its own, empty at first."""
    folder = tmp_path_factory.getbasetemp() / "start-cache" / str(next(CACHE_NUMBERS))
    monkeypatch.setenv("VISTILL_CACHE", str(folder))
    return folder


@pytest.fixture
def clean_registry():
    """What a test registers, or loads as a plug-in, is dropped afterwards."""
    from vistill.registry import forget_plugins

    yield
    forget_plugins()


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real data, which CI has."""
    if not SHARED.is_dir():
        pytest.skip(f"no real data in {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def tokenizer():
    from vistill.studies.make_tiny_models import tiny_tokenizer

    return tiny_tokenizer()


def build_model(tokenizer, seed, hidden=32, layers=2):
    """A tiny random model, its vision tower as deep as its decoder."""
    from vistill.models.tiny import TinySize, build_tiny

    size = TinySize(
        hidden=hidden,
        layers=layers,
        heads=2,
        feed_forward=48,
        vision_hidden=32,
        vision_depth=layers,
        vision_heads=4,
        vision_feed_forward=32,
    )
    return build_tiny(size, tokenizer, seed)


def build_untied(tokenizer, seed):
    """A tiny student with an untied head, as in 8B and 32B."""
    from transformers import Qwen3VLForConditionalGeneration

    from vistill.models.loading import VLM
    from vistill.models.tiny import TinySize, tiny_config

    config = tiny_config(
        TinySize(hidden=32, layers=2, feed_forward=48, vision_hidden=32), tokenizer
    )
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(config)
    tied = build_model(tokenizer, seed)
    model.generation_config = tied.model.generation_config
    return VLM(model, tokenizer, tied.family, "untied")


@pytest.fixture(scope="session")
def teacher(tokenizer):
    """A tiny random teacher, wider than the student."""
    return build_model(tokenizer, 1, hidden=48).freeze()


@pytest.fixture
def student(tokenizer):
    """A new tiny random student."""
    return build_model(tokenizer, 0)


@pytest.fixture(scope="session")
def prompts():
    from vistill.data.diagrams import diagram_prompts

    return diagram_prompts("train", 12, 0)


@pytest.fixture(scope="session")
def tiny_folder(tokenizer, tmp_path_factory):
    """A saved tiny model."""
    from vistill.models.save import save_vlm

    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_vlm(build_model(tokenizer, 0), folder)
    return folder


@pytest.fixture
def small_shards(monkeypatch):
    """Limit files to 60 KB, so that a tiny model needs several; no recipe sets these sizes."""
    monkeypatch.setattr("vistill.models.save.MAX_SHARD_SIZE", "60KB")
    monkeypatch.setattr("published.SHARD_BYTES", 60_000)


@pytest.fixture(scope="module")
def without_canary():
    """Runs skip the canary. It has its own tests, and the end-to-end tests keep it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vistill.training.loop.run_canary", lambda update, prompts: {})
        yield


def pytest_sessionfinish(session, exitstatus):
    """Fail a session of oracle tests in which none was executed."""
    if session.config.option.markexpr == "oracle" and exitstatus == 0:
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None and not reporter.stats.get("passed"):
            session.exitstatus = 1
