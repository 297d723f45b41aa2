"""`micro_batch_size: auto`: what is tried, that ranks agree, that training does not notice, what is kept."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tiny_ldlm import TableEncoder, tiny_model  # noqa: E402
from tiny_ldlm import tiny_config as tiny  # noqa: E402

from tests.trainer_runs import ROOT, TrainerRun, tiny_config, write_text  # noqa: E402
from trainer import micro_batch  # noqa: E402
from trainer.bench_train_job import as_first_rank  # noqa: E402
from trainer.config import TrainConfig, micro_batch_sizes  # noqa: E402
from trainer.contract import ConfigError, ExitCode, StoreError, checkpoint_folder  # noqa: E402
from trainer.micro_batch import MicroBatchChoice, Trial, agreed_micro_batch, next_size  # noqa: E402
from trainer.run_folder import RunFolder  # noqa: E402
from trainer.store import local_store_url, open_store  # noqa: E402

SIZES = [1, 2, 4, 8, 16, 32, 64]


def holding(how: str) -> dict[str, str]:
    return {"PYTHONPATH": f"{ROOT / 'tests' / 'short_memory'}:{ROOT}", "MEMORY_HOLDS": how}


def records(folder: RunFolder) -> list[MicroBatchChoice]:
    keys = [found.key for found in folder.store.objects(f"{folder.run_id}/micro_batch")]
    return [MicroBatchChoice.model_validate_json(folder.store.get(key)) for key in keys]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "prose.txt")


def new_run(text: Path, folder: Path, micro_batch_size: object, **environment: str) -> TrainerRun:
    """Eight sequences a step for two ranks: up to four at a time. Dropout draws by torch's own generator."""
    model = tiny_config(text).model.model_dump() | {"dropout": 0.1}
    config = tiny_config(text, steps=8, global_batch_size=8, micro_batch_size=micro_batch_size, model=model)
    return TrainerRun(config, folder / "store", environment=environment)


def last_checkpoint(run: TrainerRun) -> dict[str, bytes]:
    """Weights, moments and average of all ranks, as they lie in the store."""
    (newest, *_) = run.checkpoints()
    assert newest.step == 8 and len(newest.shards) == 2
    folder = checkpoint_folder(8)
    return {shard.name: run.folder.read_bytes(f"{folder}/{shard.name}") for shard in newest.shards}


def test_one_rank_that_runs_out_of_memory_decides_for_all_and_training_does_not_notice(text, tmp_path):
    auto = new_run(text, tmp_path / "auto", "auto", **holding("2:1"))
    told = new_run(text, tmp_path / "told", 2)
    code, output = auto.finish()
    assert code == ExitCode.FINISHED, output
    assert re.findall(r"micro-batch: .*", output) == re.findall(
        r"micro-batch: 2 of 1 \(16 tok/s\), 2 \(32 tok/s\), 4 \(out of memory\), tried in \d+ s", output)
    assert "encoder" in output and re.search(r"first step after .*, micro-batch \d", output)
    (kept,) = records(auto.folder)
    assert (kept.device, kept.torch, kept.size, kept.too_large) == ("CPU", torch.__version__, 2, None)
    assert kept.tokens_per_s == {1: 16, 2: 32, 4: 0}
    code, output = told.finish()
    assert code == ExitCode.FINISHED and "micro-batch" not in output, output
    assert len(auto.losses(1)) == 8 and auto.losses(1) == told.losses(1)
    assert last_checkpoint(auto) == last_checkpoint(told)


def test_training_that_runs_out_of_memory_unlearns_the_size_for_the_next_attempt(text, tmp_path):
    run = new_run(text, tmp_path, "auto", **holding("2:0:5"))
    run.num_ranks = 1
    code, output = run.finish()
    assert code == 1 and "OutOfMemoryError" in output, output
    (kept,) = records(run.folder)
    assert (kept.size, kept.too_large) == (8, 8)


@pytest.mark.parametrize("first", [1, 4, 64])
@pytest.mark.parametrize("fits", [1, 8, 64])
@pytest.mark.parametrize("fastest", [1, 4, 16, 64])
def test_it_climbs_to_the_fastest_that_fits_wherever_it_begins(first, fits, fastest):
    """Rates that rise to one size and fall behind it, as they do; nothing is tried twice or beyond need."""
    def rate(size: int) -> float:
        return 0.0 if size > fits else min(size / fastest, fastest / size) * 1000

    seen: dict[int, float] = {}
    while (size := next_size(SIZES, first, seen)) is not None:
        assert size not in seen and size in SIZES
        seen[size] = rate(size)
    best = max(SIZES, key=rate)
    assert max(seen, key=seen.__getitem__) == best
    # What is larger than the first that did not fit is never tried.
    assert all(size <= first or size <= 2 * fits for size in seen)


def test_nothing_fits_is_found_out_after_every_smaller_size():
    seen: dict[int, float] = {}
    while (size := next_size(SIZES, 8, seen)) is not None:
        seen[size] = 0.0
    assert list(seen) == [8, 4, 2, 1]


def a_trial(monkeypatch: pytest.MonkeyPatch, seconds: Callable[[int], float]) -> list[int]:
    """Trials that take so long, and what was tried."""
    tried: list[int] = []
    monkeypatch.setattr(Trial, "seconds", lambda self, size: tried.append(size) or seconds(size))
    return tried


class Loadable(TableEncoder):
    """An encoder that counts its loads."""

    is_collective = False
    loads = 0

    def load(self) -> None:
        self.loads += 1


def agree(config: TrainConfig, folder: RunFolder, encoder: Loadable, said: list[str]) -> int:
    rows_NL = torch.zeros(3, 8, dtype=torch.int64).numpy()
    with as_first_rank(1):
        found, _ = agreed_micro_batch(config, folder, encoder, rows_NL, lambda: tiny_model(config),
                                      torch.device("cpu"), said.append, lambda part: None)
    assert found.global_batch_size == config.global_batch_size
    return found.micro_batch_size


def auto(**changes: object) -> TrainConfig:
    return tiny(micro_batch_size="auto", **changes)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(open_store(local_store_url(tmp_path)), "run")


def test_a_later_start_takes_what_was_found_and_another_config_asks_anew(folder, monkeypatch):
    tried, said, encoder = a_trial(monkeypatch, lambda size: 1.0 if size <= 4 else 2.5), [], Loadable()
    assert agree(auto(), folder, encoder, said) == 4
    assert (tried, encoder.loads) == ([1, 2, 4, 8], 1)
    assert agree(auto(steps=9), folder, encoder, said) == 4
    assert (len(tried), encoder.loads) == (4, 1)
    assert said[1] == "micro-batch: 4, as an earlier start on CPU has found"
    agree(auto(token_loss_fraction=0.5), folder, encoder, said)
    assert len(tried) == 8 and len(records(folder)) == 2
    assert agree(tiny(micro_batch_size=2), folder, encoder, said) == 2 and len(tried) == 8


def test_a_size_that_training_has_outgrown_is_not_tried_again(folder, monkeypatch):
    tried, said = a_trial(monkeypatch, lambda size: 1.0), []
    assert agree(auto(), folder, Loadable(), said) == 8
    (kept,) = records(folder)
    (name,) = (found.key.partition("/")[2] for found in folder.store.objects("run/micro_batch"))
    memo = micro_batch.MicroBatchMemo(folder, name, kept)
    memo.outgrown(RuntimeError("shapes differ"))
    assert agree(auto(), folder, Loadable(), said) == 8
    memo.outgrown(torch.OutOfMemoryError("CUDA out of memory."))
    tried.clear()
    assert agree(auto(), folder, Loadable(), said) == 4
    assert tried == [1, 2, 4]
    assert agree(auto(), folder, Loadable(), said) == 4 and tried == [1, 2, 4]


def test_a_torn_record_is_found_out_again_and_a_store_that_takes_none_stops_nobody(folder, monkeypatch):
    tried, said = a_trial(monkeypatch, lambda size: 1.0), []
    agree(auto(), folder, Loadable(), said)
    (key,) = (found.key for found in folder.store.objects("run/micro_batch"))
    folder.store.put(key, folder.store.get(key)[:30])
    assert agree(auto(), folder, Loadable(), said) == 8 and tried == [1, 2, 4, 8] * 2
    monkeypatch.setattr(RunFolder, "write", refuse)
    assert agree(auto(steps=9, token_loss_fraction=0.5), folder, Loadable(), said) == 8
    assert said[-1] == "warning: the micro-batch is not remembered: s3://b: no room"


def refuse(*_: object) -> None:
    raise StoreError("no room", place="s3://b")


def test_of_sizes_that_are_as_fast_the_smaller_is_taken(folder, monkeypatch):
    a_trial(monkeypatch, lambda size: max(size, 2) / 100)
    assert agree(auto(), folder, Loadable(), []) == 2


def test_a_probe_ends_in_a_minute(folder, monkeypatch):
    now = [0.0]

    def slow(size: int) -> float:
        now[0] += 8.0 * size
        return 8.0

    tried = a_trial(monkeypatch, slow)
    monkeypatch.setattr(micro_batch.time, "monotonic", lambda: now[0])
    assert agree(auto(global_batch_size=64), folder, Loadable(), []) == 4
    assert (tried, now[0]) == ([1, 2, 4], 56.0)


def test_a_card_that_holds_not_one_sequence_is_refused(folder, monkeypatch):
    a_trial(monkeypatch, lambda size: float("inf"))
    with pytest.raises(ConfigError, match="not even one sequence at a time fits") as caught:
        agree(auto(), folder, Loadable(), [])
    assert "activation_checkpointing=true" in str(caught.value)
    assert records(folder) == []


def test_ranks_that_share_an_encoder_try_nothing(folder, monkeypatch):
    tried, said, encoder = a_trial(monkeypatch, lambda size: 1.0), [], Loadable()
    encoder.is_collective = True
    assert agree(auto(), folder, encoder, said) == 1
    assert (tried, encoder.loads, records(folder)) == ([], 0, [])
    assert said == ["micro-batch: 1, by arithmetic: ranks that share an encoder try nothing"]


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"),
                                   RuntimeError("Triton Error [CUDA]: out of memory"),
                                   torch.OutOfMemoryError("CUDA out of memory.")])
def test_memory_runs_out_in_several_words_and_any_other_error_is_one(folder, monkeypatch, error):
    def fail(self: Trial, size: int) -> None:
        raise error if size > 1 else RuntimeError("shapes differ")

    monkeypatch.setattr(Trial, "_pass", fail)
    trial = Trial.__new__(Trial)
    trial.device = torch.device("cpu")
    assert trial.seconds(2) == float("inf")
    with pytest.raises(RuntimeError, match="shapes differ"):
        trial.seconds(1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_timed_is_a_real_pass_there_and_back_in_the_runs_precision(precision):
    config, rows_NL = auto(precision=precision), torch.zeros(3, 8, dtype=torch.int64).numpy()
    with as_first_rank(1):
        trial = Trial(config, torch.device("cpu"), Loadable(), rows_NL, lambda: tiny_model(config))
        assert 0 < trial.seconds(4) < float("inf")
    weights = list(trial._model.parameters())
    assert {weight.dtype for weight in weights} == {torch.float32 if precision == "fp32" else torch.bfloat16}
    assert all(weight.grad is not None for weight in weights)


@pytest.mark.gpu
def test_on_a_gpu_too_many_sequences_are_no_size_and_leave_nothing_behind():
    config, device = auto(precision="bf16"), torch.device("cuda", 0)
    rows_NL = torch.zeros(3, 8, dtype=torch.int64).numpy()
    with as_first_rank(1):
        trial = Trial(config, device, Loadable(), rows_NL, lambda: tiny_model(config))
        before = torch.cuda.memory_allocated(device)
        assert trial.seconds(2**27) == float("inf")
        assert 0 < trial.seconds(4) < float("inf")
        assert torch.cuda.memory_allocated(device) < before + 2**24


@pytest.mark.parametrize(("batch", "ranks", "sizes"), [
    (512, 8, [1, 2, 4, 8, 16, 32, 64]), (24, 2, [1, 2, 4]), (7, 1, [1]), (8, 3, [1])])
def test_sizes_are_powers_of_two_that_keep_the_global_batch(batch, ranks, sizes):
    assert micro_batch_sizes(auto(global_batch_size=batch), ranks) == sizes


@pytest.mark.parametrize(("at_once", "sizes"), [(16, [1, 2, 4, 8, 16]), (12, [1, 2, 4]), (512, SIZES)])
def test_sizes_divide_what_the_encoder_reads_at_once_and_as_much_is_tried(at_once, sizes):
    config = auto(global_batch_size=64, token_encoder={"micro_batch_size": at_once})
    assert micro_batch_sizes(config, 1) == sizes
    with as_first_rank(1):
        trial = Trial(config, torch.device("cpu"), Loadable(), torch.zeros(1, 8, dtype=torch.int64).numpy(),
                      lambda: tiny_model(config))
        assert trial._pass(4) == min(at_once, 64) / 4


def test_auto_becomes_the_profiles_size_to_begin_with_and_survives_its_record():
    values: Mapping[str, object] = {"profile": "qwen3.6-27b", "steps": 1, "data": {"source": "x"}}
    config = TrainConfig.model_validate({**values, "micro_batch_size": "auto"})
    assert (config.micro_batch_size, config.probe_micro_batch) == (8, True)
    assert TrainConfig.model_validate_json(config.model_dump_json()) == config
    assert not TrainConfig.model_validate({**values, "micro_batch_size": 4}).probe_micro_batch
    assert (auto().micro_batch_size, auto().probe_micro_batch) == (1, True)
