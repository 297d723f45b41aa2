"""When keeping hidden states would pay, against a bill that is added up pass by pass."""

from decimal import Decimal
from fractions import Fraction

import pytest
from cli_lab import RECIPE, ldlm
from launch_examples import NOW
from test_run_text import SHARDS, prepare

from launcher.cached_states import CachedStates, EncodingPace, StatePrices, cached_states, states_of
from launcher.estimate import Case, estimate_of
from launcher.model_screen import states_words
from launcher.offers import cloud_offer
from launcher.recipe import Candidate, load_recipe
from launcher.speed import encoder_share, training_speed
from trainer.contract import Document
from trainer.encoder_shape import encoder_shape

WIDTH, TOKENS = 2048, 10**9  # 4,096 bytes a token: 4,096 GB in all


def found(tokens_per_s: float = 40_000, share: float = 0.75, usd_per_hour: str = "3.6", sent: str = "0",
          fetched: str = "0", kept: str = "0", line: float = 1e12) -> CachedStates:
    return cached_states(TOKENS, WIDTH, EncodingPace(tokens_per_s, share, Decimal(usd_per_hour), line),
                         StatePrices(Decimal(sent), Decimal(fetched), Decimal(kept)))


def first_cheaper(tokens_per_s: int, share: Fraction, usd_per_hour: Fraction, sent: Fraction,
                  fetched: Fraction, kept: Fraction) -> int | None:
    """Passes from which on caching is cheaper, by adding up both bills; None within 10,000."""
    gigabytes, hours = Fraction(TOKENS * WIDTH * 2, 10**9), Fraction(TOKENS, tokens_per_s * 3600)
    without, cached = Fraction(0), gigabytes * sent
    for number in range(1, 10_001):
        whole = hours * usd_per_hour
        without += whole
        cached += whole if number == 1 else whole * (1 - share) + gigabytes * fetched
        cached += gigabytes * kept * hours / 720
        if cached < without:
            return number
    return None


@pytest.mark.parametrize(("tokens_per_s", "sent", "fetched", "kept"), [
    (40_000, "0", "0", "0"), (4_000, "0.01", "0.01", "0.023"), (4_000, "0.05", "0.04", "0.023"),
    (2_000, "0.09", "0.09", "0.02"), (40_000, "0.01", "0.01", "0.023"), (500, "0.2", "0", "0.1"),
    (4_000, "0.001", "0.0457", "0"),
])
def test_it_pays_from_the_pass_at_which_the_bills_cross(tokens_per_s, sent, fetched, kept):
    prices = map(Fraction, (sent, fetched, kept))
    expected = first_cheaper(tokens_per_s, Fraction(3, 4), Fraction("3.6"), *prices)
    assert found(tokens_per_s, sent=sent, fetched=fetched, kept=kept).pays_from == expected


def test_a_pass_is_priced_by_hand():
    """1 B tokens at 40,000 a second: 6.94 h, $25 at $3.60, three quarters of them the encoder's."""
    states = found(sent="0.01", fetched="0.02", kept="0.023")
    assert (states.bytes_per_token, states.num_bytes) == (4096, 4_096 * 10**9)
    assert states.saved_usd == Decimal("18.7500")
    assert states.write_usd == Decimal("40.9600")
    # $81.92 to fetch, and 4,096 GB for 6.94 of 720 hours at $0.023.
    assert float(states.reuse_usd) == pytest.approx(81.92 + 4096 * 0.023 * 6.9444 / 720, abs=1e-3)
    assert states.pays_from is None


def test_a_line_that_is_slower_than_the_encoder_saves_nothing_and_a_slow_one_less():
    # 4,096 bytes at 40,000 tokens a second are 164 MB/s; without the encoder four times as many.
    assert found(line=100e6).saved_usd == 0 and found(line=100e6).pays_from is None
    assert found(line=2 * 164e6).saved_usd == pytest.approx(Decimal("12.5"), abs=Decimal("0.03"))
    assert found(line=10 * 164e6).saved_usd == Decimal("18.7500")


def test_each_answer_is_said_in_one_line():
    at_home = states_words(found(), 3 * TOKENS)
    assert at_home == ("its states in the store, 4.1 kB a token, 3.7 TiB, pays from 2 epochs x runs (this "
                       "run: 3): $0.0000 an epoch instead of $18.75, and $0.0000 once (not built)")
    dear = states_words(found(fetched="0.09"), TOKENS)
    assert dear.endswith("never pays: fetching and keeping them costs $368.64 an epoch, 20 times what "
                         "encoding does (not built)")
    assert "never pays: fetching one takes longer than encoding it" in states_words(found(line=1e6), TOKENS)


def case_of(store: str, infra: str = "vast", text_tokens: int | None = TOKENS) -> Case:
    recipe = load_recipe("qwen3.6-35b-a3b").model_copy(update={"store": store})
    offer = cloud_offer(Candidate(infra=infra, gpu="H200:1", price_usd_per_hour=2), NOW)
    return Case(recipe, encoder_shape(recipe.train.token_encoder.name),
                {Document.TRAIN: offer, Document.BENCH: offer}, (), text_tokens=text_tokens)


def test_a_plan_takes_prices_of_its_own_store_and_knows_when_it_knows_nothing():
    case = case_of("s3://bucket/ldlm", "gcp/us-central1")
    states = states_of(case, estimate_of(case))
    # Amazon's list: $0.09 to fetch a GB.
    assert float(states.reuse_usd) == pytest.approx(0.09 * 4096, rel=0.02)
    same_region = case_of("gs://bucket?region=us-central1", "gcp/us-central1")
    assert states_of(same_region, estimate_of(same_region)).pays_from is not None
    for unknown in (case_of("s3://bucket?endpoint=https://store.example", "gcp/us-central1"),
                    case_of("s3://bucket/ldlm", text_tokens=None)):
        assert states_of(unknown, estimate_of(unknown)) is None


def test_the_encoders_share_is_that_of_a_step():
    recipe = load_recipe("qwen3.6-27b", ["train.token_encoder.placement=gpu"])
    config, shape = recipe.train, encoder_shape(recipe.train.token_encoder.name)
    offer = cloud_offer(Candidate(infra="vast", gpu="H200:1", bid_usd_per_hour=2), NOW)
    speed = training_speed(config, shape, offer, 1, ())
    # 48.0 GFLOP a token, of 989 TFLOP/s 40 % reached.
    expected = speed.tokens_per_s * 48.0e9 / (0.4 * 989e12)
    assert encoder_share(config, shape, offer, 1) == pytest.approx(expected, rel=0.01)


def test_a_plan_over_a_prepared_text_says_it_in_one_line(tmp_path):
    store = prepare(tmp_path / "store", train=100_000)
    shown = " ".join(ldlm("plan", RECIPE, store, *SHARDS).stdout.split())
    # MiniLM has 384 channels; 400 steps of 512 tokens over 99,968, in whole sequences. A disk here is free.
    assert ("caching its states in the store, 0.8 kB a token, 73.2 MiB, pays from 2 epochs x runs (this run: "
            "2): $0.0000 an epoch instead of $") in shown
