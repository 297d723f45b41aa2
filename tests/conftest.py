"""What every test can rely on, and which of the two environments runs it.

Rule: a test file that says `pytest.importorskip("torch")` at module level runs in `.venv-train`; every
other file runs in `.venv`. A file named on the command line always runs.
"""

import gc
import os
import re
import signal
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings

# What is imported and collected stays: to look for garbage among it time and again is a fifth of collecting.
gc.set_threshold(50_000)
# Before any test imports torch or deepspeed, and inherited by the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["DS_ACCELERATOR"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
# No test asks Vast itself, whoever's key lies here; those that speak with a stand-in name its address.
os.environ.setdefault("VAST_URL", "http://127.0.0.1:9")
# What the user has for W&B and as webhook: no test may send there.
for _name in [name for name in os.environ if name.startswith("WANDB_") or name == "LDLM_WEBHOOK_URL"]:
    del os.environ[_name]
# A shell's background job ignores Ctrl-C, and so would every process that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
# How long an example takes says how busy the machine is, no more. The rest is as it is, in CI too.
settings.register_profile("untimed", settings(), deadline=None)
settings.load_profile("untimed")

# Of a minute or more each (measured on two cores, longest first), then those of few tests and many processes.
_LONGEST = ("test_resume.py", "test_saving.py", "test_notices_node.py", "test_hang.py", "test_node.py",
            "test_wandb.py", "test_elastic.py", "test_bad_input.py", "test_learning_runs.py",
            "test_export.py", "test_chaos.py", "test_micro_batch.py", "test_learning_arms.py",
            "test_prepare_interrupted.py", "test_prepare_nodes.py", "test_communication.py")

_NEEDS_TORCH = re.compile(r'^(?:\w+ = )?pytest\.importorskip\("torch"\)', re.MULTILINE)
_HAS_TORCH = find_spec("torch") is not None


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out the test files that belong to the other environment."""
    if collection_path.suffix != ".py" or not collection_path.name.startswith("test_"):
        return None
    needs_torch = _NEEDS_TORCH.search(collection_path.read_text()) is not None
    return True if needs_torch != _HAS_TORCH else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take minutes, then those of many tests: a long one that begins last is waited
    for by one worker alone. xdist itself goes by the number of tests (`--no-loadscope-reorder`)."""
    num_tests = Counter(item.path for item in items)

    def rank(item: pytest.Item) -> tuple[int, int, str]:
        name = item.path.name
        return (_LONGEST.index(name) if name in _LONGEST else len(_LONGEST), -num_tests[item.path], name)

    items.sort(key=rank)  # tests of one file stay in their order


def pytest_collection_finish() -> None:
    """Leave what every test shares out of all later searches for garbage."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees or changes what the user keeps."""
    monkeypatch.setenv("LDLM_HOME", str(tmp_path_factory.mktemp("ldlm-home")))


@pytest.fixture(autouse=True)
def _no_node_outlives_its_test() -> Iterator[None]:
    yield
    from tests.trainer_runs import end_nodes

    end_nodes()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The folder of a prepared text of 60 documents; the text is `a.txt` beside it."""
    from data_examples import documents, prepared, write_text

    prepared(write_text(tmp_path / "a.txt", documents(60)), tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """The folder of a tokenizer whose tokens are bytes."""
    from data_examples import byte_tokenizer

    byte_tokenizer().save_pretrained(tmp_path / "bytes")
    (tmp_path / "bytes" / "config.json").write_text('{"model_type": "gpt2"}')
    return tmp_path / "bytes"
