"""The verdict at the edges of its rules, on rows of numbers; tests/test_learning_runs.py breaks real runs."""

import math
from typing import Any

import pytest

from trainer.config import TrainConfig
from trainer.learning import Learning, State, first_judged_step, judge
from trainer.profiles import merged

BASE: dict[str, Any] = {
    "steps": 6_000, "micro_batch_size": 128, "evaluate_every_steps": 1_000,
    "data": {"source": "none", "sequence_length": 64}, "token_encoder": {"name": "none"},
    "model": {"latent_width": 256, "width": 320, "num_heads": 5},
    "diffusion": {"decoder_noise_std": 1.0, "tan_d": 1.0, "encoder_warmup_steps": 6_000},
    "optimizer": {"learning_rate": 1e-3, "warmup_steps": 200}, "checkpoint": {"every_minutes": 30}}
# Measured on an H100 after 748 steps (recipes/manual-and-bible.yaml); what is new since: guesses.
SCORES = {
    "reconstruction_accuracy": 0.96, "reconstruction_accuracy_noisy": 0.949,
    "reconstruction_accuracy_denoised": 0.9, "hidden_loss": 0.22, "hidden_loss_trivial": 0.95,
    "token_loss": 0.26, "diffusion_loss": 0.316, "latent_variance": 0.989, "latent_rank": 124.3,
    "latent_cosine": 0.007, "diffusion_loss_trivial": 0.989, "encoder_grad_ratio": 0.005,
    "distinct_2": 0.85, "distinct_2_text": 0.9}


def configured(**changes: Any) -> TrainConfig:
    return TrainConfig.model_validate(merged(BASE, changes))


def evaluation(step: int = 748, **scores: float) -> dict[str, float]:
    return {"step": step} | {f"eval/{name}": value for name, value in (SCORES | scores).items()}


START = {"step": 50, "loss/hidden": 0.93, "loss/token": 7.78, "loss/diffusion": 0.37}


def verdict(config: TrainConfig | None = None, earlier: float | None = None, **scores: float) -> Learning:
    """Of a healthy run whose newest scores are changed; `earlier`: variance of z at step 400."""
    before = [evaluation(400, latent_variance=earlier)] if earlier is not None else []
    return judge([START, *before, evaluation(**scores)], config or configured())


def test_six_figures_of_a_healthy_run_are_told():
    found = verdict()
    assert (found.state, found.step) == (State.LEARNING, 748)
    assert list(map(str, found.reasons)) == [
        "96.0% of held-out tokens come back, 94.9% under noise; L_diff is 0.32, of a trivial predictor 0.99; "
        "variance of z across texts is 0.99, in 124 of 256 directions"]


@pytest.mark.parametrize(("changes", "state", "says"), [
    ({"latent_variance": 0.5}, State.LEARNING, ""),
    ({"latent_variance": 0.49}, State.COLLAPSED, "variance of z across texts is 0.49"),
    # Latents of an encoder that is not trained can be alike; no denoiser has profited from it yet.
    ({"latent_variance": 0.49, "diffusion_loss": 0.99, "diffusion_loss_trivial": 0.49}, State.STUCK,
     "the denoiser does no better than to say the mean latent"),
    ({"latent_rank": 5.2}, State.LEARNING, ""),
    ({"latent_rank": 5.1}, State.COLLAPSED, "latents use 5.1 of 256 directions, fewer than 5.12"),
    # At d = 1, shrinking each channel alone leaves half: a fifth of that gain is the bound.
    ({"diffusion_loss": 0.89, "diffusion_loss_trivial": 1.0}, State.LEARNING, ""),
    ({"diffusion_loss": 0.91, "diffusion_loss_trivial": 1.0}, State.STUCK, "L_diff is 0.91"),
    ({"hidden_loss": 0.90}, State.LEARNING, ""),
    ({"hidden_loss": 0.91}, State.STUCK, "L_h is 0.91, of a trivial predictor 0.95"),
    ({"token_loss": 7.0, "reconstruction_accuracy": 0.09}, State.LEARNING, ""),
    ({"token_loss": 7.01, "reconstruction_accuracy": 0.09}, State.STUCK, "L_w is 7.01, 7.78 at the start"),
    ({"token_loss": 7.01, "reconstruction_accuracy": 0.1}, State.LEARNING, ""),
    ({"reconstruction_accuracy_noisy": 0.58}, State.LEARNING, ""),
    ({"reconstruction_accuracy_noisy": 0.57}, State.STUCK, "57.0% under the decoder noise of 1"),
    ({"reconstruction_accuracy_denoised": 0.48}, State.LEARNING, ""),
    ({"reconstruction_accuracy_denoised": 0.47}, State.STUCK, "47.0% from what the denoiser makes of them"),
    ({"distinct_2": 0.45}, State.LEARNING, ""),
    ({"distinct_2": 0.44}, State.COLLAPSED, "44% of their token pairs are new, of as much held-out text 90%"),
    # What cannot write yet repeats itself for no fault of the denoiser's.
    ({"distinct_2": 0.1, "reconstruction_accuracy": 0.29, "reconstruction_accuracy_noisy": 0.29},
     State.LEARNING, ""),
    ({"hidden_loss": math.nan}, State.STUCK, "hidden_loss is not finite at step 748"),
    ({"encoder_grad_ratio": math.inf}, State.LEARNING, ""),
])
def test_a_score_just_inside_and_just_outside(changes, state, says):
    found = verdict(**changes)
    assert found.state is state
    assert says in found.reasons[0].says


def test_the_wider_the_schedule_the_less_is_asked_of_the_denoiser():
    # d = 3: shrinking leaves 3/4 of the trivial loss; a fifth of a quarter is 0.05.
    assert verdict(configured(diffusion={"tan_d": 3.0}), diffusion_loss=0.93).state is State.LEARNING
    assert verdict(configured(diffusion={"tan_d": 3.0}), diffusion_loss=0.945).state is State.STUCK


@pytest.mark.parametrize(("ratio", "variance", "warns"), [
    (0.5, 0.85, True), (0.5, 0.87, False), (0.3, 0.85, False)])
def test_a_variance_that_falls_under_a_strong_pull_is_watched(ratio, variance, warns):
    found = verdict(earlier=0.96, latent_variance=variance, encoder_grad_ratio=ratio)
    assert found.state is State.LEARNING
    assert len(found.reasons) == 1 + warns
    if warns:
        assert str(found.reasons[1]) == (
            "but variance of z across texts has fallen from 0.96 to 0.85, and L_diff pulls 0.5 times as hard "
            "at the encoder as reconstruction: below 0.5 it will have collapsed; raise "
            "train.diffusion.encoder_warmup_steps (now 6,000)")


@pytest.mark.parametrize(("scores", "says"), [
    ({"diffusion_loss_linear": 0.5}, None),
    ({"diffusion_loss_linear": 0.34}, None),
    ({"diffusion_loss_linear": 0.33}, "but L_diff 0.32 is hardly below 0.33, what a linear filter of each "
     "latent alone leaves: the denoiser knows no language yet; train longer than 6,000 steps"),
    ({"diffusion_loss_linear": 0.26}, "but L_diff 0.32 is above 0.26, what a linear filter of each latent "
     "alone leaves: the denoiser knows no language yet; train longer than 6,000 steps"),
    ({"diffusion_loss_linear": math.nan}, None),
    ({"distinct_2": 0.75, "distinct_2_text": 0.6}, None),
    ({"distinct_2": 0.76, "distinct_2_text": 0.6}, "but samples are word salad: 76% of their token pairs are "
     "new, of as much held-out text 60%")])
def test_a_run_that_learns_is_told_what_it_has_not_learned_yet(scores, says):
    found = verdict(**scores)
    assert found.state is State.LEARNING
    assert [str(reason) for reason in found.reasons[1:]] == ([says] if says else [])


def test_a_linear_filter_is_named_beside_the_trivial_predictor():
    assert "L_diff is 0.32, of a trivial predictor 0.99, of a linear filter 0.50; variance" in str(
        verdict(diffusion_loss_linear=0.5).reasons[0])


def test_a_collapse_is_told_with_numbers_cause_and_setting():
    found = verdict(configured(diffusion={"encoder_warmup_steps": 100}), earlier=0.78, latent_variance=0.08,
                    diffusion_loss=0.02, diffusion_loss_trivial=0.08, encoder_grad_ratio=1.2)
    assert str(found.reasons[0]) == (
        "variance of z across texts is 0.08, down from 0.78, below 0.5: latents of different texts have "
        "become alike, which is why L_diff is as low as 0.02; L_diff pulls 1.2 times as hard at the encoder "
        "as reconstruction, whose warm-up of 100 steps was too short; raise "
        "train.diffusion.encoder_warmup_steps (now 100)")


def test_latents_without_a_scale_are_judged_by_how_alike_they_are():
    free = configured(model={"latent_norm": "none"})
    huge = {"latent_variance": 40.0, "diffusion_loss": 5.0, "diffusion_loss_trivial": 40.0}
    assert verdict(free, latent_cosine=0.4, **huge).state is State.LEARNING
    assert verdict(free, latent_cosine=0.6, **huge).state is State.COLLAPSED


def test_where_cross_entropy_trains_the_decoder_hidden_states_need_not_come_back():
    by_token = configured(diffusion={"decoder_loss": "token", "hidden_weight": 0.0})
    assert verdict(by_token, hidden_loss=1.4).state is State.LEARNING


def test_too_much_noise_for_the_width_is_named_as_such():
    narrow = configured(model={"latent_width": 16}, diffusion={"decoder_noise_std": 3.0})
    found = verdict(narrow, hidden_loss=0.94, latent_rank=8.0)
    # 8 log2(1 + 1/9) bits
    assert found.reasons[0].says.endswith("under a decoder noise of 3 they carry at most 1.2 bits of a token")
    assert found.reasons[0].change == "lower train.diffusion.decoder_noise_std (now 3)"


@pytest.mark.parametrize(("rate", "change"), [
    (2e-5, "raise train.optimizer.learning_rate (now 2e-05; usual: 0.0001 to 0.005)"),
    (1e-3, "try another train.optimizer.learning_rate (now 0.001; usual: 0.0001 to 0.005)"),
    (0.1, "lower train.optimizer.learning_rate (now 0.1; usual: 0.0001 to 0.005)")])
def test_a_learning_rate_is_changed_towards_the_usual_ones(rate, change):
    found = verdict(configured(optimizer={"learning_rate": rate}), hidden_loss=0.94)
    assert found.reasons[0].change == change


@pytest.mark.parametrize(("step", "state"), [(399, State.TOO_EARLY), (400, State.LEARNING)])
def test_nothing_is_judged_before_two_warm_ups_of_the_learning_rate(step, state):
    assert first_judged_step(configured()) == 400
    assert judge([evaluation(step)], configured()).state is state


@pytest.mark.parametrize(("changes", "says"), [
    ({}, "step 50 of 6,000; it is judged by the evaluation at step 1,000"),
    ({"evaluate_every_steps": 150}, "step 50 of 6,000; it is judged by the evaluation at step 450"),
    ({"evaluate_every_steps": 20}, "step 50 of 6,000; it is judged by the evaluation at step 400"),
    ({"steps": 900}, "step 50 of 900; it is judged by the evaluation at step 900"),
    ({"steps": 399}, "a run of 399 steps is too short to judge: 400 are needed; lower "
                     "train.optimizer.warmup_steps (now 200): the learning rate only rises"),
    ({"steps": 199}, "a run of 199 steps is too short to judge: 400 are needed"),
])
def test_too_early_says_when_it_will_be_judged(changes, says):
    found = judge([START], configured(**changes))
    assert (found.state, found.step, str(found.reasons[0])) == (State.TOO_EARLY, 50, says)


def test_a_run_without_a_row_is_too_early_and_a_loss_that_is_no_number_is_told_at_once():
    assert judge([], configured()).state is State.TOO_EARLY
    found = judge([START, START | {"step": 60, "loss/diffusion": math.inf}], configured())
    assert (found.state, found.step) == (State.STUCK, 60)
    assert str(found.reasons[0]) == (
        "loss/diffusion is not finite at step 60; lower train.optimizer.learning_rate")


def test_rows_of_an_older_trainer_are_judged_by_what_they_have():
    new = ("reconstruction_accuracy_denoised", "hidden_loss_trivial", "distinct_2", "distinct_2_text")
    row = {name: value for name, value in evaluation().items() if name.removeprefix("eval/") not in new}
    assert judge([row], configured()).state is State.LEARNING
    assert judge([row | {"eval/hidden_loss": 0.96}], configured()).state is State.STUCK


def test_a_score_that_was_left_out_of_the_record_was_no_number():
    row = {name: value for name, value in evaluation().items() if name != "eval/latent_rank"}
    assert str(judge([row], configured()).reasons[0]).startswith("latent_rank is not finite at step 748")


def test_a_moment_is_judged_by_what_was_known_then():
    rows = [START, evaluation(400), evaluation(500, latent_variance=0.1, diffusion_loss=0.03)]
    assert [judge(rows[:end], configured()).state for end in (1, 2, 3)] == [
        State.TOO_EARLY, State.LEARNING, State.COLLAPSED]
