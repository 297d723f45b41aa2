"""`ldlm sample --suffix`: what the texts begin and end with stands there, and the denoiser hears of both."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import tiny_ldlm  # noqa: E402

from tests.trainer_runs import TrainerRun, finished_run  # noqa: E402
from trainer.contract import ConfigError  # noqa: E402
from trainer.export import write_export  # noqa: E402
from trainer.generate import Generator, decode  # noqa: E402
from trainer.infilling import Infiller, infiller  # noqa: E402
from trainer.sample import adjusted  # noqa: E402
from trainer.sample import main as sample  # noqa: E402
from trainer.sample_options import read_sample_options  # noqa: E402
from trainer.saved_run import SavedRun, load_run  # noqa: E402
from trainer.token_encoder import load_token_encoder  # noqa: E402

CPU = torch.device("cpu")
BEFORE, AFTER = ("--prompt", "The for statement"), ("--suffix", "is a loop")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainerRun:
    """A run that reads prompts of up to 8 of its 16 tokens."""
    made = finished_run(tmp_path_factory.mktemp("run"), prompt=True)
    made.folder.write_bytes("recipe.json", json.dumps({
        "name": "tiny", "train": made.config.model_dump(mode="json"), "limits": {}}).encode())
    return made


@pytest.fixture(scope="module")
def saved(run: TrainerRun) -> SavedRun:
    return load_run(run.folder, lambda _line: None)


@pytest.fixture
def typed(run: TrainerRun, capsys: pytest.CaptureFixture[str]):
    def do(*words: str) -> tuple[int, str, str]:
        code = sample([*words, "--steps", "3", "--store", run.folder.store.url])
        said = capsys.readouterr()
        return code, said.out, said.err
    return do


def test_the_text_between_two_is_filled_in(saved: SavedRun, tmp_path: Path, typed) -> None:
    code, out, err = typed("run", *BEFORE, *AFTER, "-n", "2", "--json")
    assert code == 0, err
    texts = json.loads(out)["texts"]
    assert all(text.startswith("the for statement ") and text.endswith(" is a loop") for text in texts)
    write_export(saved, tmp_path / "whole", "fp32", with_encoder=True)
    again = typed("--from", str(tmp_path / "whole"), *BEFORE, *AFTER, "-n", "2", "--json")
    assert json.loads(again[1])["texts"] == texts


def test_every_estimate_takes_the_latents_of_the_known_text_in_its_places(saved: SavedRun) -> None:
    filler = infiller(saved.generator(CPU), "the for statement", "is a loop", None)
    estimate = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(0))
    mended = filler.mended(estimate)
    assert torch.equal(mended[:, 3:13], estimate[:, 3:13])
    tokens = decode(filler.model, estimate, filler.num_tokens).clone()
    ids = filler.tokenizer("the for statement is a loop", add_special_tokens=False)["input_ids"]
    tokens[:, :3], tokens[:, 13:] = torch.tensor(ids[:3]), torch.tensor(ids[3:])
    with torch.no_grad():
        latents = filler.model.encoder(filler.model.normalise(filler.encoder.hidden_states(tokens)))
    for places in (slice(0, 3), slice(13, 16)):
        assert torch.allclose(mended[:, places], latents[:, places], atol=1e-5)


@pytest.mark.parametrize(("before", "num_heard"), [
    ("the for statement", 3), ("one two three four five six seven eight nine", 8)])
def test_the_denoiser_hears_what_the_text_begins_with_as_far_as_it_reads(
        saved: SavedRun, before: str, num_heard: int) -> None:
    filler, heard = infiller(saved.generator(CPU), before, "is a loop", None), []
    filler.model.denoiser.prompt.register_forward_pre_hook(lambda _, told: heard.append(told[0]))
    filler.texts(2, 0, filler.beginning())
    encoder = load_token_encoder(saved.config.token_encoder, CPU)
    ids = encoder.tokenizer(before, add_special_tokens=False)["input_ids"][:num_heard]
    expected = filler.model.normalise(encoder.hidden_states(torch.tensor([ids]))).expand(2, -1, -1)
    assert heard
    for told in heard:
        assert told.lengths_B.tolist() == [num_heard] * 2
        assert torch.allclose(told.hidden_BPD, expected, atol=1e-4)


def test_guidance_weighs_the_estimates_that_are_then_mended(
        saved: SavedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    generator, first = saved.generator(CPU), []
    for block in generator.model.denoiser.blocks:  # four steps have hardly opened it
        torch.nn.init.ones_(block.prompt.gate)
    plain = Infiller.mended
    monkeypatch.setattr(Infiller, "mended", lambda self, estimate: (first.append(estimate),
                                                                    plain(self, estimate))[1])
    texts = {}
    for weight in ("0", "1", "5"):
        options = read_sample_options(["run", *BEFORE, "--prompt-guidance", weight, "--steps", "1"])
        filler = infiller(adjusted(generator, options), "the for statement", "is a loop", None)
        texts[weight] = filler.texts(3, 0, filler.beginning())
    without, having, stronger = first
    assert torch.allclose(stronger, without + 5 * (having - without), atol=1e-4)
    assert texts["0"] != texts["5"]


def test_the_last_line_names_the_guidance_of_a_prompt_only_where_there_is_one(typed) -> None:
    assert "prompt guidance 5" in _last(typed("run", *BEFORE, *AFTER, "--prompt-guidance", "5"))
    code, out, err = typed("run", *AFTER)
    assert code == 0 and "guidance" not in out, err
    assert json.loads(typed("run", *AFTER, "--json")[1])["prompt_guidance"] is None
    assert json.loads(typed("run", *BEFORE, *AFTER, "--json")[1])["prompt_guidance"] == 1.0


def test_guidance_that_the_recipe_asks_for_is_not_said_of_texts_without_a_prompt(
        run: TrainerRun, typed, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = run.folder.read_json("recipe.json")
    recipe["train"]["sampling"]["prompt_guidance"] = 2.0
    monkeypatch.setattr("trainer.run_folder.RunFolder.read_json", lambda self, name: recipe)
    assert "guidance" not in _last(typed("run"))
    assert "prompt guidance 2" in _last(typed("run", *BEFORE))


def _last(done: tuple[int, str, str]) -> str:
    assert done[0] == 0, done[2]
    return " ".join(done[1].splitlines()[-3:])


def test_guidance_of_a_prompt_that_is_not_there_or_not_read_is_refused(capsys) -> None:
    for words in (["run"], ["run", *AFTER]):
        with pytest.raises(SystemExit) as ended:
            read_sample_options([*words, "--prompt-guidance", "2"])
        assert ended.value.code == 2
        assert "--prompt-guidance weighs a prompt: add --prompt TEXT" in capsys.readouterr().err
    config = tiny_ldlm.tiny_config()
    generator = Generator(config, tiny_ldlm.tiny_model(config), None, 40, 0)
    for weight in ("0", "1", "5"):
        with pytest.raises(ConfigError, match="trained with model.prompt off") as caught:
            adjusted(generator, read_sample_options(["run", *BEFORE, *AFTER, "--prompt-guidance", weight]))
        assert caught.value.place == "--prompt-guidance" and "leave it out" in (caught.value.fix or "")


def test_infilling_that_cannot_be_is_refused_with_what_to_do(saved: SavedRun, tmp_path: Path, typed) -> None:
    write_export(saved, tmp_path / "without")
    code, _, err = typed("--from", str(tmp_path / "without"), "--suffix", "x")
    assert code == 3 and "no latent encoder" in err and "--with-encoder" in err
    long = " ".join(["for"] * 9)
    code, _, err = typed("run", "--prompt", long, "--suffix", long)
    assert code == 3 and "9 and 9 tokens, which leaves nothing of 16 between them" in err
    config = tiny_ldlm.tiny_config({"num_latents": 4})
    fewer = Generator(config, tiny_ldlm.tiny_model(config), None, 40, 0)
    with pytest.raises(ConfigError, match="4 latents of 8 tokens"):
        infiller(fewer, "a", "b", None)


def test_texts_without_a_word_are_refused(typed, capsys) -> None:
    with pytest.raises(SystemExit):
        read_sample_options(["run", "--suffix", " \n"])
    assert "--suffix: is blank" in capsys.readouterr().err
    code, _, err = typed("run", "--prompt", "  ", *AFTER)
    assert code == 3 and "--prompt: it has 0 tokens" in err
    code, _, err = typed("run", "--suffix", "\u200b")  # white space of no width
    assert code == 3 and "--suffix: it has 0 tokens" in err
