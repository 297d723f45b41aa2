"""Every rule of the verdict has caught a real run broken on purpose; healthy ones are let through."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from broken_runs import CHANGES, config_of, write_inputs  # noqa: E402

from trainer.kept_rows import RowReader  # noqa: E402
from trainer.learning import Learning, State, judge  # noqa: E402
from trainer.run_folder import RunFolder  # noqa: E402
from trainer.store import local_store_url, open_store  # noqa: E402

DEADLINE_S = 400.0
Verdict = Callable[..., Learning]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every run, trained by two processes side by side."""
    folder = tmp_path_factory.mktemp("broken")
    write_inputs(folder)
    names = list(CHANGES)
    command = [sys.executable, str(Path(__file__).with_name("broken_runs.py")), str(folder)]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    halves = [subprocess.Popen([*command, *names[first::2]], cwd=folder, env=env, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for first in (0, 1)]
    for half in halves:
        output, _ = half.communicate(timeout=5 * DEADLINE_S)  # of many runs
        assert half.returncode == 0, output
    return folder


@pytest.fixture
def verdict(folder: Path) -> Verdict:
    """What is said of a run at a step."""
    def said(name: str, step: int = 10_000) -> Learning:
        reader = RowReader(RunFolder(open_store(local_store_url(folder / "store")), name))
        rows = [row for row in reader.rows().values() if row["step"] <= step]
        return judge(rows, config_of(name, folder))

    return said


@pytest.mark.parametrize(("name", "state"), [("healthy", "learning"), ("tiny-rate", "stuck")])
def test_ldlm_status_shows_a_broken_run(name: str, state: str, folder: Path) -> None:
    command = [sys.executable, "-m", "launcher", "status", name, "--store", local_store_url(folder / "store")]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"Verdict at step 200: {state}" in done.stdout


def texts(found: Learning) -> str:
    return "\n".join(map(str, found.reasons))


def test_a_healthy_run_is_learning_and_nothing_was_said_of_it_before_it_could_be(verdict: Verdict) -> None:
    early, late = verdict("healthy", 100), verdict("healthy")
    assert (early.state, early.step) == (State.TOO_EARLY, 100)
    assert texts(early) == "step 100 of 200; it is judged by the evaluation at step 200"
    assert (late.state, late.step) == (State.LEARNING, 200)
    assert "of held-out tokens come back" in texts(late)
    # Its decoders are well; after so few steps its denoiser cannot write.
    assert all(reason.says.startswith("but samples are word salad") for reason in late.reasons[1:])


@pytest.mark.parametrize("name", ["unscaled", "by-token"])
def test_a_healthy_run_of_another_kind_is_learning(name: str, verdict: Verdict) -> None:
    assert verdict(name).state is State.LEARNING


def test_a_short_warm_up_collapses(verdict: Verdict) -> None:
    found = verdict("short-warmup")
    assert found.state is State.COLLAPSED
    assert found.reasons[0].says.startswith("variance of z across texts is 0.")
    assert "whose warm-up of 100 steps was too short" in found.reasons[0].says
    assert found.reasons[0].change == "raise train.diffusion.encoder_warmup_steps (now 100)"


def test_a_run_that_will_collapse_when_its_warm_up_ends_warns_before(verdict: Verdict) -> None:
    before, warned, after = (verdict("warmup-ends", step) for step in (200, 300, 400))
    assert [found.state for found in (before, warned, after)] == [
        State.LEARNING, State.LEARNING, State.COLLAPSED]
    assert "variance of z across texts has fallen" not in texts(before)
    assert "variance of z across texts has fallen from 0." in warned.reasons[1].says
    assert warned.reasons[1].change == "raise train.diffusion.encoder_warmup_steps (now 400)"
    assert ", down from 0." in after.reasons[0].says


def test_without_decoder_noise_latents_huddle_and_the_decoder_bears_no_error(verdict: Verdict) -> None:
    found = verdict("no-noise")
    assert found.state is State.COLLAPSED
    alike, deaf = found.reasons
    assert "no noise spreads them" in alike.says
    assert "from what the denoiser makes of them at half time" in deaf.says
    assert {alike.change, deaf.change} == {"raise train.diffusion.decoder_noise_std (now 0)"}


def test_noise_that_drowns_the_latents(verdict: Verdict) -> None:
    found = verdict("drowned")
    assert found.state is State.COLLAPSED
    alike, empty = found.reasons
    # 16 channels, signal to noise of 1 to 10,000: 8 log2(1.0001) bits
    assert "under a decoder noise of 100 they carry at most 0.0012 bits of a token" in alike.says
    assert alike.change == "lower train.diffusion.decoder_noise_std (now 100)"
    assert "nothing of a text comes through its latents" in empty.says


def test_a_decoder_that_was_never_shown_its_noise(verdict: Verdict) -> None:
    assert "under the decoder noise of 1: the decoder does not learn to read through it" in texts(
        verdict("noise-forgotten"))


@pytest.mark.parametrize(("name", "verb"), [("tiny-rate", "raise"), ("huge-rate", "lower")])
def test_a_learning_rate_that_is_none(name: str, verb: str, verdict: Verdict) -> None:
    found = verdict(name)
    assert found.state is not State.LEARNING
    assert found.reasons[0].change is not None
    assert found.reasons[0].change.startswith(f"{verb} train.optimizer.learning_rate (now 1")
    assert "nothing of a text comes through its latents" in texts(found)


def test_a_denoiser_that_does_not_learn(verdict: Verdict) -> None:
    found = verdict("no-diffusion")
    assert found.state is State.STUCK
    idle, repeated = found.reasons
    assert idle.says.startswith("L_diff is 1.00, of a trivial predictor 0.9")
    assert idle.change == "train.diffusion.diffusion_weight is 0: set it to 1"
    assert repeated.says.startswith("samples repeat themselves") and repeated.change is None


def test_samples_that_are_all_the_same(verdict: Verdict) -> None:
    found = verdict("cold")
    assert found.state is State.COLLAPSED
    assert found.reasons[0].says.startswith("samples repeat themselves: 25% of their token pairs are new")
    assert found.reasons[0].change == "raise train.sampling.temperature (now 1e-06)"


@pytest.mark.parametrize(("name", "state", "says"), [
    ("no-words", State.STUCK, "train.diffusion.token_weight is 0: set it to 1"),
    ("no-reconstruction", State.COLLAPSED, "train.diffusion.hidden_weight is 0: set it to 1"),
    ("unscaled-short", State.COLLAPSED, "nothing fixes their scale; set train.model.latent_norm to unit_rms"),
    ("one-direction", State.COLLAPSED, "of 16 directions, fewer than 2"),
])
def test_what_else_was_broken_is_named(name: str, state: State, says: str, verdict: Verdict) -> None:
    found = verdict(name)
    assert found.state is state
    assert says in texts(found)


def test_each_evaluation_keeps_what_the_run_writes(folder: Path) -> None:
    run = RunFolder(open_store(local_store_url(folder / "store")), "healthy")
    for step in (100, 200):
        kept = run.read_json(f"attempts/1/evaluations/{step:08d}.json")
        assert kept["step"] == step and len(kept["samples"]) == 4
        assert 0 < kept["scores"]["distinct_1"] <= kept["scores"]["distinct_2"] <= 1
