"""Whether a run learns, by its metric rows: learning, collapsed, stuck, or too early to say. No torch.

A loss that falls is no proof: the encoder can make L_diff vanish by making all latents alike. So every
rule compares a held-out score with what would be reached without learning. Only rows up to the newest
are known here; nothing is judged by how a run ends.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from trainer.config import TrainConfig

Row = Mapping[str, float]

# Measured (smoke, 2 cores): 10 % of tokens at step 100, 34 % at 200; GPU arms of width 320: 91 % at 400.
_FIRST_STEP = 200
_LEARNING_RATE_WARMUPS = 2  # after one of them, the rate has only just been reached (guess)
# The specification's bound. Measured: 0.78 to 0.99 in healthy runs from step 100 on, 0.08 to 0.46 in
# collapsed ones; an encoder that is not trained can be below, so the denoiser must know it, too.
_LEAST_VARIANCE = 0.5
_FALLING = 0.9  # of the largest variance seen: measured 0.85 at 100 steps before a collapse (toy)
# How hard L_diff pulls at the encoder, reconstruction being 1: measured 0.003 to 0.1 in healthy runs (GPU and
# toy), 0.2 to 1.9 in collapsing and collapsed ones (toy).
_STRONG_PULL, _WEAK_PULL = 0.4, 0.1
_LEAST_RANK = 2.0  # measured: 1.0 for an encoder of one direction, 2.3 and more for collapsed ones
_LEAST_RANK_SHARE = 0.02  # of the latent width; measured 0.21 to 0.52 in healthy runs (guess)
_NO_BETTER = 0.95  # of a loss without learning; measured 0.3 to 0.6 in healthy runs at step 200
_LEAST_GAIN = 0.2  # of what the denoiser gains by shrinking each channel alone (guess)
_LEAST_WORDS_GAIN = 0.1  # of L_w since the first row: measured 0.14 to 0.9 at step 400, 0.03 untrained
_CAN_WRITE = 0.3  # reconstruction from which the decoders' part in bad samples is small (guess)
_LEAST_NOISY = 0.6  # of the clean reconstruction; measured 0.66 to 1.0, 0.9 and more in healthy runs
_LEAST_DENOISED = 0.5  # of the same; measured 0.77 to 0.85 in healthy runs, 0.29 to 0.40 without noise
_LEAST_DISTINCT = 0.5  # of held-out text's distinct-2; measured 0.9 to 1.5, 0.4 where 4 samples are one
_MOST_DISTINCT = 1.25  # of the same; measured 1.5 in word salad (guess)
# Of what a linear filter of one latent leaves; one that saw five left 0.95 of it (measured, smoke).
_LIKE_A_FILTER = 0.95
_USUAL_RATES = (1e-4, 5e-3)  # learning rates of AdamW; measured to learn: 1e-3 to 3e-3
_LEAST_BITS = 4.0  # of a token, that a noisy latent must carry: less than any text needs (guess)

_NEEDED = ("hidden_loss", "token_loss", "diffusion_loss", "diffusion_loss_trivial", "latent_variance",
           "latent_rank", "latent_cosine", "reconstruction_accuracy_noisy")


class State(StrEnum):
    """What can be said of a run."""

    LEARNING = "learning"
    COLLAPSED = "collapsed"
    STUCK = "stuck"
    TOO_EARLY = "too early"


class Reason(NamedTuple):
    """A sentence with its numbers, and what to set differently in the recipe, if anything."""

    says: str
    change: str | None = None

    def __str__(self) -> str:
        return self.says + (f"; {self.change}" if self.change else "")


@dataclass(frozen=True)
class Learning:
    """The verdict.

    Attributes:
        state: The gravest that a rule has found.
        step: Of the evaluation that was judged; else the newest step known.
        reasons: The gravest first. Where it learns: what shows it, then what to watch.
    """

    state: State
    step: int
    reasons: tuple[Reason, ...]


@dataclass(frozen=True)
class _Known:
    """The newest evaluation and what came before it; scores without their `eval/`."""

    config: TrainConfig
    step: int
    scores: Mapping[str, float]
    earlier: tuple[Mapping[str, float], ...]
    first_token_loss: float | None

    @property
    def spread(self) -> float:
        """Share of the latents' mean square that differs from text to text; the variance, at a scale of 1."""
        if self.config.model.latent_norm == "none":
            return 1 - self.scores["latent_cosine"]
        return self.scores["latent_variance"]

    @property
    def has_collapsed(self) -> bool:
        """Latents are alike, and the denoiser knows it: those of an untrained encoder can be alike, too."""
        mean_square = self.scores["latent_variance"] / max(self.spread, 1e-12)
        is_known = self.scores["diffusion_loss"] < _LEAST_VARIANCE * mean_square
        return self.spread < _LEAST_VARIANCE and is_known

    @property
    def largest_variance_before(self) -> float:
        """Of the earlier evaluations; 0 without any."""
        return max((scores.get("latent_variance", 0.0) for scores in self.earlier), default=0.0)

    @property
    def trains_hidden_states(self) -> bool:
        """False where cross-entropy trains the decoder: then L_h is measured and no more."""
        return self.config.diffusion.decoder_loss == "hidden"


def judge(rows: Iterable[Row], config: TrainConfig) -> Learning:
    """Say whether a run learns, and why (pure).

    Args:
        rows: Of the run folder, in order of steps, up to now; names as the trainer logs them.
        config: Of the run.
    """
    known = list(rows)
    newest = max((int(row["step"]) for row in known), default=0)
    broken = [(int(row["step"]), name) for row in known for name in row
              if name.startswith("loss/") and not math.isfinite(row[name])]
    if broken:
        return Learning(State.STUCK, broken[0][0], (_not_finite(*broken[0]),))
    evaluations = [row for row in known if "eval/reconstruction_accuracy" in row]
    if not evaluations or int(evaluations[-1]["step"]) < first_judged_step(config):
        return Learning(State.TOO_EARLY, newest, (_too_early(newest, config),))
    return _judged(_Known(
        config, int(evaluations[-1]["step"]), _scores(evaluations[-1]), tuple(map(_scores, evaluations[:-1])),
        next((row["loss/token"] for row in known if "loss/token" in row), None)))


def first_judged_step(config: TrainConfig) -> int:
    """The evaluation from which a run is judged: before it, a healthy one has little to show."""
    return max(_FIRST_STEP, _LEARNING_RATE_WARMUPS * config.optimizer.warmup_steps)


def _scores(row: Row) -> dict[str, float]:
    return {name.removeprefix("eval/"): value for name, value in row.items() if name.startswith("eval/")}


def _judged(known: _Known) -> Learning:
    # What is no number may have been left out of the record.
    broken = [name for name in _NEEDED if not math.isfinite(known.scores.get(name, math.nan))]
    if broken:
        return Learning(State.STUCK, known.step, (_not_finite(known.step, broken[0]),))
    collapsed = [reason for rule in (_alike, _narrow) if (reason := rule(known))]
    stuck = [reason for rule in (_idle, _empty, _wordless, _deaf) if (reason := rule(known))]
    if repeated := _repeated(known):
        (stuck if _idle(known) else collapsed).append(repeated)
    if collapsed or stuck:
        return Learning(State.COLLAPSED if collapsed else State.STUCK, known.step, (*collapsed, *stuck))
    warnings = [reason for rule in (_contracting, _filtering, _salad) if (reason := rule(known))]
    return Learning(State.LEARNING, known.step, (_healthy(known), *warnings))


# -- rules: what a collapse looks like --------------------------------------------------------------


def _alike(known: _Known) -> Reason | None:
    """L_diff falls because latents of different texts become alike."""
    if not known.has_collapsed:
        return None
    before = known.largest_variance_before
    fell = f", down from {before:.2f}" if before >= _LEAST_VARIANCE else ""
    why, change = _cause(known)
    return Reason(f"variance of z across texts is {known.spread:.2f}{fell}, below {_LEAST_VARIANCE:g}: "
                  "latents of different texts have become alike, which is why L_diff is as low as "
                  f"{known.scores['diffusion_loss']:.2f}; {why}", change)


def _cause(known: _Known) -> tuple[str, str]:
    """Why latents become alike, as the end of a sentence, and what to change."""
    settings = known.config.diffusion
    if known.trains_hidden_states and not settings.hidden_weight:
        return "no L_h holds them apart", _set("hidden_weight is 0", "1")
    if known.config.optimizer.learning_rate > _USUAL_RATES[1]:
        return "nothing is learned in steps as large as these", _other_rate(known.config)
    bits = _bits_per_token(known.config)
    if bits < _LEAST_BITS:
        return _capacity_words(known.config), _lower_noise(known.config)
    if known.config.model.latent_norm == "none":
        return "nothing fixes their scale", "set train.model.latent_norm to unit_rms"
    ratio, warmup = known.scores.get("encoder_grad_ratio", math.inf), settings.encoder_warmup_steps
    # Before half of it, the encoder hears next to nothing of L_diff (5 %, equation 29 of the paper).
    if ratio < _WEAK_PULL and 2 * known.step < warmup:
        return "not L_diff makes them so, but no noise spreads them", _raise_noise(known.config)
    pull = f"L_diff pulls {ratio:.2g} times as hard at the encoder as reconstruction"
    short = f", whose warm-up of {warmup:,} steps was too short" if 2 * known.step >= warmup else ""
    return pull + short, _longer_warmup(known.config)


def _narrow(known: _Known) -> Reason | None:
    """Latents differ along hardly any direction."""
    width, rank = known.config.model.latent_width, known.scores["latent_rank"]
    least = min(max(_LEAST_RANK, _LEAST_RANK_SHARE * width), width / 2)
    change = f"{_lower_noise(known.config)}; if that does not help, {_longer_warmup(known.config)}"
    if rank >= least:
        return None
    return Reason(f"latents use {rank:.1f} of {width} directions, fewer than {least:.3g}: little of a text "
                  "fits into them", None if known.has_collapsed else change)


def _repeated(known: _Known) -> Reason | None:
    """Samples repeat themselves, or each other, although the decoders can write."""
    found, text = known.scores.get("distinct_2"), known.scores.get("distinct_2_text")
    if found is None or not text or known.scores["reconstruction_accuracy"] < _CAN_WRITE:
        return None
    if found >= _LEAST_DISTINCT * text:
        return None
    sampling = known.config.sampling
    change = None if _idle(known) else (
        f"raise train.sampling.temperature (now {sampling.temperature:g})" if sampling.temperature < 1 else
        f"train longer, or raise train.sampling.steps (now {sampling.steps})")
    return Reason(f"samples repeat themselves: {found:.0%} of their token pairs are new, of as much held-out "
                  f"text {text:.0%}", change)


# -- rules: what being stuck looks like -------------------------------------------------------------


def _idle(known: _Known) -> Reason | None:
    """The denoiser is no better than saying the mean latent."""
    loss, trivial = known.scores["diffusion_loss"], known.scores["diffusion_loss_trivial"]
    # Over even times, shrinking each channel towards its mean alone leaves d / (1 + d) of the trivial
    # loss for independent latents (arithmetic: the mean of sigma^2 under the tangent schedule).
    tan_d = known.config.diffusion.tan_d
    least_gain = _LEAST_GAIN / (1 + tan_d)
    if known.has_collapsed or loss < (1 - least_gain) * trivial:
        return None
    settings = known.config.diffusion
    change = (_set("diffusion_weight is 0", "1") if not settings.diffusion_weight else
              _other_rate(known.config))
    return Reason(f"L_diff is {loss:.2f}, of a trivial predictor {trivial:.2f}: the denoiser does no better "
                  "than to say the mean latent", change)


def _empty(known: _Known) -> Reason | None:
    """Hidden states come back no better than their means: latents carry nothing through the noise."""
    loss, trivial = known.scores["hidden_loss"], known.scores.get("hidden_loss_trivial", 1.0)
    if loss < _NO_BETTER * trivial or not known.trains_hidden_states:
        return None
    says = (f"L_h is {loss:.2f}, of a trivial predictor {trivial:.2f}: nothing of a text comes through its "
            "latents")
    if known.has_collapsed:  # for the same reason
        return Reason(says)
    if not known.config.diffusion.hidden_weight:
        return Reason(says, _set("hidden_weight is 0", "1"))
    if _bits_per_token(known.config) < _LEAST_BITS:
        return Reason(f"{says}; {_capacity_words(known.config)}", _lower_noise(known.config))
    return Reason(says, _other_rate(known.config))


def _wordless(known: _Known) -> Reason | None:
    """Hidden states come back, and the token decoder does not turn them into words."""
    if _empty(known) or not known.first_token_loss:
        return None
    loss, accuracy = known.scores["token_loss"], known.scores["reconstruction_accuracy"]
    if loss < (1 - _LEAST_WORDS_GAIN) * known.first_token_loss or accuracy >= 0.1:
        return None
    change = (_set("token_weight is 0", "1") if not known.config.diffusion.token_weight
              else _other_rate(known.config))
    return Reason(f"L_w is {loss:.2f}, {known.first_token_loss:.2f} at the start, and {accuracy:.1%} of "
                  "tokens come back: the token decoder does not learn", change)


def _deaf(known: _Known) -> Reason | None:
    """The decoder reads clean latents alone: not those under its noise, or not those of the denoiser."""
    clean, noisy = known.scores["reconstruction_accuracy"], known.scores["reconstruction_accuracy_noisy"]
    if clean < _CAN_WRITE:
        return None
    if noisy < _LEAST_NOISY * clean:
        noise, change = known.config.diffusion.decoder_noise_std, _lower_noise(known.config)
        return Reason(f"{clean:.1%} of tokens come back from clean latents, {noisy:.1%} under the decoder "
                      f"noise of {noise:g}: the decoder does not learn to read through it",
                      None if known.has_collapsed else change)
    denoised = known.scores.get("reconstruction_accuracy_denoised", clean)
    if denoised >= _LEAST_DENOISED * clean or _idle(known):
        return None
    return Reason(f"{clean:.1%} of tokens come back from the encoder's latents, {denoised:.1%} from what the "
                  "denoiser makes of them at half time: the decoder bears no error, and samples have many",
                  _raise_noise(known.config))


# -- what is said of the others ---------------------------------------------------------------------


def _healthy(known: _Known) -> Reason:
    scores, width = known.scores, known.config.model.latent_width
    clean, noisy = scores["reconstruction_accuracy"], scores["reconstruction_accuracy_noisy"]
    loss, trivial = scores["diffusion_loss"], scores["diffusion_loss_trivial"]
    linear = scores.get("diffusion_loss_linear")
    filtered = "" if linear is None else f", of a linear filter {linear:.2f}"
    return Reason(f"{clean:.1%} of held-out tokens come back, {noisy:.1%} under noise; L_diff is {loss:.2f}, "
                  f"of a trivial predictor {trivial:.2f}{filtered}; variance of z across texts is "
                  f"{known.spread:.2f}, in {scores['latent_rank']:.0f} of {width} directions")


def _contracting(known: _Known) -> Reason | None:
    """The way into a collapse, while there is time."""
    ratio = known.scores.get("encoder_grad_ratio", 0.0)
    best = known.largest_variance_before
    now = known.scores["latent_variance"]
    if ratio < _STRONG_PULL or now > _FALLING * best or known.config.model.latent_norm == "none":
        return None
    return Reason(f"but variance of z across texts has fallen from {best:.2f} to {now:.2f}, and L_diff pulls "
                  f"{ratio:.2g} times as hard at the encoder as reconstruction: below {_LEAST_VARIANCE:g} it "
                  "will have collapsed", _longer_warmup(known.config))


def _filtering(known: _Known) -> Reason | None:
    """The denoiser does no better than somebody who knows how latents vary and nothing of texts."""
    loss, linear = known.scores["diffusion_loss"], known.scores.get("diffusion_loss_linear", math.nan)
    if not loss > _LIKE_A_FILTER * linear:
        return None
    how = "above" if loss > linear else "hardly below"
    return Reason(f"but L_diff {loss:.2f} is {how} {linear:.2f}, what a linear filter of each latent "
                  "alone leaves: the denoiser knows no language yet",
                  f"train longer than {known.config.steps:,} steps")


def _salad(known: _Known) -> Reason | None:
    """Words follow one another as they never do in text."""
    found, text = known.scores.get("distinct_2"), known.scores.get("distinct_2_text")
    if not found or not text or found <= _MOST_DISTINCT * text:
        return None
    return Reason(f"but samples are word salad: {found:.0%} of their token pairs are new, of as much "
                  f"held-out text {text:.0%}")


def _too_early(newest: int, config: TrainConfig) -> Reason:
    first, every = first_judged_step(config), config.evaluate_every_steps
    judged = min(math.ceil(max(first, newest) / every) * every, config.steps)
    if config.steps < first:
        warmup = config.optimizer.warmup_steps
        return Reason(f"a run of {config.steps:,} steps is too short to judge: {first:,} are needed",
                      None if config.steps < _FIRST_STEP else
                      f"lower train.optimizer.warmup_steps (now {warmup:,}): the learning rate only rises")
    return Reason(f"step {newest:,} of {config.steps:,}; it is judged by the evaluation at step {judged:,}")


def _not_finite(step: int, name: str) -> Reason:
    return Reason(f"{name} is not finite at step {step:,}", "lower train.optimizer.learning_rate")


def _bits_per_token(config: TrainConfig) -> float:
    """What the latents of a token can carry through the decoder's noise, at a variance of 1: at most."""
    noise = config.diffusion.decoder_noise_std
    if not noise:
        return math.inf
    of_latent = config.model.latent_width / 2 * math.log2(1 + noise**-2)
    return of_latent * config.num_latents / config.data.sequence_length


def _capacity_words(config: TrainConfig) -> str:
    return (f"under a decoder noise of {config.diffusion.decoder_noise_std:g} they carry at most "
            f"{_bits_per_token(config):.2g} bits of a token")


def _lower_noise(config: TrainConfig) -> str:
    return f"lower train.diffusion.decoder_noise_std (now {config.diffusion.decoder_noise_std:g})"


def _raise_noise(config: TrainConfig) -> str:
    return f"raise train.diffusion.decoder_noise_std (now {config.diffusion.decoder_noise_std:g})"


def _other_rate(config: TrainConfig) -> str:
    rate, (low, high) = config.optimizer.learning_rate, _USUAL_RATES
    verb = "raise" if rate < low else "lower" if rate > high else "try another"
    return f"{verb} train.optimizer.learning_rate (now {rate:g}; usual: {low:g} to {high:g})"


def _set(what: str, value: str) -> str:
    return f"train.diffusion.{what}: set it to {value}"


def _longer_warmup(config: TrainConfig) -> str:
    return f"raise train.diffusion.encoder_warmup_steps (now {config.diffusion.encoder_warmup_steps:,})"
