"""A model of stored weights is the model that they were stored from, and nothing is worked out in between."""

import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tiny_ldlm import HIDDEN_SIZE, LAYOUTS, VOCABULARY, name_of, tiny_config, tiny_model  # noqa: E402

from trainer.stored_model import generating_model, model_of  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
SEEN = torch.arange(3, 33, 2)


@pytest.mark.parametrize("token_ids", [None, SEEN], ids=["all", "seen"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=name_of)
def test_it_has_all_numbers_and_no_other(layout, token_ids) -> None:
    model = tiny_model(tiny_config(layout), token_ids).eval()
    state = model.state_dict()
    again = model_of(model.config, HIDDEN_SIZE, VOCABULARY, state)
    assert not again.training
    assert not any(part.is_meta for part in (*again.parameters(), *again.buffers()))
    assert {name: part.data_ptr() for name, part in again.state_dict().items()} == {
        name: part.data_ptr() for name, part in state.items()}
    hidden = torch.randn(2, 8, HIDDEN_SIZE, generator=torch.Generator().manual_seed(1))
    latents = model.encoder(hidden)
    assert torch.equal(again.encoder(hidden), latents)
    assert torch.equal(again.decoder(latents), model.decoder(latents))


def test_without_weights_of_the_latent_encoder_there_is_none() -> None:
    model = tiny_model(tiny_config())
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("encoder.")}
    assert not hasattr(model_of(model.config, HIDDEN_SIZE, VOCABULARY, state), "encoder")
    with pytest.raises(RuntimeError, match="Missing key"):
        model_of(model.config, HIDDEN_SIZE, VOCABULARY, {**state} | {"encoder.x": torch.ones(1)})


def test_sizes_are_those_of_the_model_and_take_no_memory() -> None:
    model, sizes = tiny_model(tiny_config()), generating_model(tiny_config(), HIDDEN_SIZE, VOCABULARY,
                                                               has_encoder=True)
    assert {name: part.shape for name, part in sizes.state_dict().items()} == {
        name: part.shape for name, part in model.state_dict().items()}
    assert all(part.is_meta for part in sizes.state_dict().values())


@pytest.mark.parametrize("preset", ["seed-35b-a3b", "qwen3.6-27b"])
def test_building_it_does_not_load_torch_s_compiler(preset) -> None:
    code = ("import sys\nfrom trainer.bench_cases import Model\n"
            "from trainer.bench_models import profile_config\n"
            "from trainer.stored_model import generating_model\n"
            f"generating_model(profile_config(Model(name={preset!r}, length=64)), 2048, 1000)\n"
            "print('torch._dynamo' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr
