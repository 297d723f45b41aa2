"""`python -m trainer.bench generate` whole, on a CPU: what it writes, says and answers."""

import json
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors import SafetensorError  # noqa: E402

from trainer import bench_command, bench_models, bench_output  # noqa: E402
from trainer.bench_cases import Model  # noqa: E402
from trainer.bench_models import profile_config, random_generator  # noqa: E402
from trainer.bench_options import read_bench_options  # noqa: E402
from trainer.bench_paths import Eager, FastPaths  # noqa: E402
from trainer.bench_result import CaseResult, check_of, read_report, usd_per_million_tokens  # noqa: E402
from trainer.bench_sources import Source  # noqa: E402
from trainer.contract import ConfigError  # noqa: E402
from trainer.generate import Generator  # noqa: E402
from trainer.measure_options import read_measure_options  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
SMALL = ("--preset", "smoke", "--length", "8", "--steps", "2", "--generations", "3")


@pytest.fixture(autouse=True)
def _few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_models, "head_rows", lambda config, shape: 50)


def test_the_command_as_it_is_typed(tmp_path: Path) -> None:
    out, picture = tmp_path / "bench.json", tmp_path / "bench.png"
    done = subprocess.run(
        [sys.executable, "-m", "trainer.bench", "generate", *SMALL, "--out", str(out), "--plot", str(picture),
         "--price", "0.36", "--first-text"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert (found["kind"], found["version"]) == ("ldlm generation benchmark", 1)
    case, = found["cases"]
    assert case["case"] == {"model": {"name": "smoke", "length": 8}, "steps": 2, "batch": 1, "mode": "fp32"}
    assert case["fast"]["num_generations"] == case["reference"]["num_generations"] == 3
    speed = case["fast"]["tokens_per_s"]
    assert speed == pytest.approx(8 / case["fast"]["seconds_median"])
    # $0.36 an hour is $0.0001 a second
    assert float(case["usd_per_million_tokens"]) == pytest.approx(100 / speed, abs=1e-6)
    assert case["fraction_of_limit"] == pytest.approx(case["floor_s"] / case["fast"]["seconds_median"])
    assert case["check"]["problem"] is None and case["check"]["same_tokens"] == 1
    assert case["way"] == "operations of torch"
    fast, plain = found["first_texts"]
    assert (fast["is_fast"], plain["is_fast"]) == (True, False)
    assert not fast["was_compiled"] and not plain["was_compiled"]  # nothing is, for a CPU
    assert list(fast["parts_s"]) == list(plain["parts_s"]) == [
        "python", "torch", "imports", "device", "weights", "layout", "first text", "next text"]
    assert plain["parts_s"]["torch"] > 0.1 and plain["parts_s"]["first text"] > 0
    until_first = sum([*fast["parts_s"].values()][:-1])
    assert f"smoke: first text of a new process after {until_first:.2f} s" in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "! this is not an RTX 5090 figure" in done.stdout
    assert "1/1 smoke, 2 steps, 8 tokens, batch 1, fp32" in done.stderr


def test_a_path_that_computes_something_else_is_named_not_timed_and_ends_with_1(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Off(Eager):
        def latents(self, num, seed):
            return 1.02 * super().latents(num, seed)

    monkeypatch.setattr(FastPaths, "at", lambda self, generator, mode: Off(generator))
    out = tmp_path / "bench.json"
    assert bench_command.main([*SMALL, "--out", str(out)]) == 1
    result, = read_report(out).cases
    assert result.fast is None and result.reference is None
    assert result.check is not None and result.check.latents_error == pytest.approx(0.02, rel=1e-4)
    assert ("! smoke, 2 steps, 8 tokens, batch 1, fp32: latents are 0.0200 off, more than\n  0.001"
            in capsys.readouterr().out)


def test_a_graph_that_replays_its_first_input_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stale(Eager):
        def latents(self, num, seed):
            return super().latents(num, 1_000_003)

    monkeypatch.setattr(FastPaths, "at", lambda self, generator, mode: Stale(generator))
    assert bench_command.main([*SMALL]) == 1


def test_latents_that_are_no_numbers_end_with_1_and_leave_a_result_that_can_be_read(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Off(Eager):
        def latents(self, num, seed):
            return float("nan") * super().latents(num, seed)

    monkeypatch.setattr(FastPaths, "at", lambda self, generator, mode: Off(generator))
    out = tmp_path / "bench.json"
    assert bench_command.main([*SMALL, "--out", str(out)]) == 1
    assert "fp32: latents are not numbers\n" in capsys.readouterr().out
    result, = read_report(out).cases
    assert result.check is not None and result.check.latents_error is None


def test_a_model_that_the_computer_has_no_room_for_is_not_begun(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    told = tmp_path / "meminfo"
    told.write_text("MemTotal:       24000000 kB\nMemAvailable:       1000 kB\n")
    monkeypatch.setattr(bench_models, "_MEMORY", told)
    assert bench_command.main([*SMALL]) == 1
    assert "! smoke, 2 steps, 8 tokens, batch 1, fp32: does not fit into memory\n" in capsys.readouterr().out
    told.write_text("MemAvailable:   1000000 kB\n")
    assert bench_command.main([*SMALL]) == 0


def test_a_first_text_that_does_not_come_ends_with_1_beside_what_was_measured(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("trainer.bench_first._WAIT_S", 0.01)
    out = tmp_path / "bench.json"
    assert bench_command.main([*SMALL, "--first-text", "--out", str(out)]) == 1
    problem = "smoke: a process of its own had come to no text after 0.01 s"
    assert f"! {problem}\n" in capsys.readouterr().out
    report = read_report(out)
    assert report.problems == (problem,) and report.cases[0].fast is not None


@pytest.mark.parametrize(("error", "words"), [
    (SafetensorError("No space left on device"), "weights for a process of its own cannot be written"),
    (torch.OutOfMemoryError("out of memory: 40 GB are needed"), "it does not fit into memory")])
def test_a_first_text_that_has_no_room_is_a_sentence_below_the_table(
        error: Exception, words: str, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    def save_file(*_):
        raise error

    monkeypatch.setattr("trainer.bench_first.save_file", save_file)
    assert bench_command.main([*SMALL, "--first-text"]) == 1
    said = capsys.readouterr().out
    assert "smoke: median tokens/s" in said and words in said


def test_where_nothing_can_be_written_nothing_is_measured(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bench_command, "run_cases", None)
    assert bench_command.main([*SMALL, "--out", str(tmp_path / "none" / "x.json")]) == 3
    assert f"--out {tmp_path}/none/x.json: {tmp_path}/none is no folder" in capsys.readouterr().err
    for option in ("--out", "--plot"):  # `/dev/stdout` is none either; as root a file would take its place
        assert bench_command.main([*SMALL, option, str(tmp_path)]) == 3
        assert f"{option} {tmp_path}: is there, and no file" in capsys.readouterr().err


def test_an_interruption_says_where_the_cases_are_that_were_done(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run_cases(cases, *_):
        yield CaseResult(case=cases[0], left_out="done")
        raise KeyboardInterrupt

    monkeypatch.setattr(bench_command, "run_cases", run_cases)
    out = tmp_path / "bench.json"
    assert bench_command.main([*SMALL, "--out", str(out)]) == 130
    assert capsys.readouterr().err.endswith(f"interrupted; cases that were done are in {out}\n")
    assert [result.left_out for result in read_report(out).cases] == ["done"]


def test_an_interruption_before_the_first_case_does_not_speak_of_an_older_file(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run_cases(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(bench_command, "run_cases", run_cases)
    out = tmp_path / "bench.json"
    out.write_text("older")
    assert bench_command.main([*SMALL, "--out", str(out)]) == 130
    assert (capsys.readouterr().err, out.read_text()) == ("interrupted\n", "older")


def test_a_plot_that_cannot_be_written_ends_with_1_and_the_table_is_told(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(report, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bench_command, "plot", full)
    out, picture = tmp_path / "bench.json", tmp_path / "bench.png"
    assert bench_command.main([*SMALL, "--out", str(out), "--plot", str(picture)]) == 1
    said = " ".join(capsys.readouterr().out.replace("\n ", "").split())
    assert f"! no plot: {picture} cannot be written: No space left on device" in said
    assert "smoke: median tokens/s" in said


def test_a_result_that_cannot_be_kept_ends_with_1_and_the_table_is_told(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(report, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bench_output, "keep", full)
    out = tmp_path / "bench.json"
    assert bench_command.main([*SMALL, "--out", str(out)]) == 1
    said = " ".join(capsys.readouterr().out.replace("\n ", "").split())
    assert said.endswith(f"! {out} does not hold all of this: No space left on device")
    assert "smoke: median tokens/s" in said


def test_a_cpu_is_projected_to_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_command.main([*SMALL, "--project", "rtx5090"]) == 3
    assert "--project: the speed of a CPU says nothing of a GPU's" in capsys.readouterr().err


def test_two_models_of_one_name_are_refused_since_nobody_could_tell_their_figures_apart(
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bench_command, "of_export",
                        lambda path, device: Source(path.name, 64, None, None))
    assert bench_command.main(["--from", "mine/run", "--from", "yours/run"]) == 3
    assert "--from: 2 of them are called run: their figures" in capsys.readouterr().err


@pytest.mark.parametrize(("typed", "place"), [(("--length", "8"), "--length"), (
    ("--sweep", "length"), "--sweep length")])
def test_other_lengths_than_a_model_has_learned_are_refused(
        typed: tuple[str, ...], place: str, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bench_command, "of_export", lambda path, device: Source(path.name, 64, None, None))
    assert bench_command.main(["--from", "mine/run", *typed]) == 3
    assert f"{place}: run has learned texts of 64 tokens, and no others" in capsys.readouterr().err


def test_what_does_not_fit_is_said_and_the_rest_goes_on(
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Tight(Eager):
        def tokens(self, num, seed, prompt=None):
            if num > 1:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return super().tokens(num, seed, prompt)

    monkeypatch.setattr(FastPaths, "at", lambda self, generator, mode: Tight(generator))
    assert bench_command.main([*SMALL, "--batch", "2", "--batch", "1"]) == 0
    out = capsys.readouterr().out
    assert "      2      8     2  fp32 does not fit into memory\n" in out
    assert "! smoke, 2 steps, 8 tokens, batch 2, fp32: does not fit into memory\n" in out


def test_what_stands_beside_is_left_out_where_there_is_no_room_for_it(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def comparable(*_: object) -> None:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr("trainer.bench_run.comparable", comparable)
    out = tmp_path / "bench.json"
    assert bench_command.main([*SMALL, "--autoregressive", "--parts", "--out", str(out)]) == 0
    result, = read_report(out).cases
    assert result.fast is not None and result.parts is not None and result.autoregressive is None


def test_a_mode_that_the_device_does_not_have_is_said_and_the_rest_goes_on(
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def at(self: FastPaths, own: Generator, mode: str) -> Eager:
        if mode == "fp8":
            raise ConfigError("this card does not multiply in fp8", place="fp8", fix="take bf16")
        return Eager(own)

    monkeypatch.setattr(FastPaths, "at", at)
    assert bench_command.main([*SMALL, "--dtype", "fp8", "--dtype", "fp32"]) == 0
    assert "      2      8     1   fp8 this card does not multiply in fp8\n" in capsys.readouterr().out


def test_an_emulated_mode_is_checked_and_named_but_neither_timed_nor_set_beside_a_limit(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
    assert bench_command.main([*SMALL, "--dtype", "fp4", "--out", str(out)]) == 0
    report = read_report(out)
    result, = report.cases
    assert result.check is not None and result.check.problem is None
    assert 0.05 < result.check.latents_error < 0.5
    assert result.fast is result.reference is result.work is None and "fp4" not in report.rates.flops_per_s
    words = (f"emulated, so not timed: error {result.check.latents_error:.5f}, "
             f"{result.check.same_tokens:.1%} the same")
    assert f"      2      8     1   fp4 {words}\n" in capsys.readouterr().out
    assert bench_command.main([*SMALL, "--dtype", "fp4", "--first-text"]) == 3
    assert "--first-text: fp4 is emulated here: its speed says nothing" in capsys.readouterr().err


def test_an_error_that_is_no_lack_of_memory_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Eager):
        def tokens(self, num, seed, prompt=None):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(FastPaths, "at", lambda self, generator, mode: Broken(generator))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        bench_command.main([*SMALL])


def test_a_regression_ends_with_1_and_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    assert bench_command.main([*SMALL, "--out", str(first)]) == 0
    told = json.loads(first.read_text())
    for name in ("seconds_p10", "seconds_median", "seconds_p90"):
        told["cases"][0]["fast"][name] /= 1000
    first.write_text(json.dumps(told))
    capsys.readouterr()
    assert bench_command.main([*SMALL, "--out", str(second), "--against", str(first)]) == 1
    assert "SLOWER: smoke, 2 steps, 8 tokens, batch 1, fp32: 0.00 times as fast" in capsys.readouterr().out


@pytest.mark.parametrize(("content", "words"), [
    (None, "cannot be read: No such file or directory"), ("{", "is no result of this benchmark: JSON"),
    ('{"version": 2}', "is no result of this benchmark: version: Input should be 1")])
def test_an_earlier_result_that_is_none_is_refused_before_anything_runs(
        content: str | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    earlier = tmp_path / "earlier.json"
    if content is not None:
        earlier.write_text(content)
    assert bench_command.main([*SMALL, "--against", str(earlier)]) == 3
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("speed", ["NaN", "-1", "0", '"fast"'])
def test_an_earlier_result_with_times_that_are_none_is_refused(
        speed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    earlier = tmp_path / "earlier.json"
    assert bench_command.main([*SMALL, "--out", str(earlier)]) == 0
    told = json.loads(earlier.read_text())
    told["cases"][0]["fast"]["seconds_p90"] = "here"
    earlier.write_text(json.dumps(told).replace('"here"', speed))
    assert bench_command.main([*SMALL, "--against", str(earlier)]) == 3
    assert "is no result of this benchmark: cases.0.fast.seconds_p90: " in capsys.readouterr().err


@pytest.mark.parametrize("command", ["generate", "plot"])
def test_an_interruption_while_torch_is_imported_shows_no_traceback(command: str) -> None:
    code = f"""
import builtins, os, signal, sys
from trainer import bench
plain = builtins.__import__
def imported(name, *rest):
    if name == "torch":
        os.kill(os.getpid(), signal.SIGINT)
    return plain(name, *rest)
builtins.__import__ = imported
sys.argv = ["bench", "{command}"]
bench.main()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted before it began\n")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["measure"]])
def test_what_is_for_nodes_says_so_to_a_person(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "trainer.bench", *arguments], cwd=ROOT, capture_output=True,
                          text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("usage: python -m trainer.bench generate --help, train --help, or plot --help\n"
                           "without any of them it is for nodes; of a run: `ldlm bench RUN`\n")


def test_the_help_has_eighty_columns(
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for read in (read_bench_options, read_measure_options):
        with pytest.raises(SystemExit):
            read(["--help"])
        assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


@pytest.mark.parametrize("arguments", [
    ("--preset", "seed"), ("--preset", "smoke", "--steps", "0"), ("--preset", "smoke", "--price", "nan"),
    ("--preset", "smoke", "--price", "-1"), ("--preset", "smoke", "--case-seconds", "nan"), ()])
def test_what_makes_no_sense_is_a_usage_error(arguments: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as end:
        bench_command.main(arguments)
    assert end.value.code == 2


def test_random_weights_depend_on_the_seed_alone_and_none_is_zero() -> None:
    config = profile_config(Model(name="smoke", length=8))
    cpu = torch.device("cpu")
    one, same, other = (random_generator(config, seed, cpu).model for seed in (1, 1, 2))
    assert all(parameter.count_nonzero() > 0.9 * parameter.numel() for parameter in one.parameters())
    assert all(map(torch.equal, one.parameters(), same.parameters()))
    assert not any(map(torch.equal, one.parameters(), other.parameters()))


def test_a_million_tokens_by_hand() -> None:
    """$3.6 an hour is $0.001 a second, in which 2,000 tokens come."""
    assert usd_per_million_tokens(Decimal("3.6"), 2000.0) == Decimal("0.500000")


@pytest.mark.parametrize(("error", "same", "mode", "is_trained", "problem"), [
    (0.0099, 0.2, "bf16", False, None),
    (0.0101, 1.0, "bf16", False, "latents are 0.0101 off, more than 0.01"),
    (0.001, 0.985, "bf16", True, "98.5% of tokens are the same, fewer than 99%"),
    (0.001, 0.99, "bf16", True, None), (0.05, 0.5, "fp8", True, None),
    (0.3, 0.0, "fp8", False, "latents are 0.3000 off, more than 0.2"), (0.3, 0.0, "fp4", True, None),
    (float("inf"), 0.0, "fp8", False, "latents are not numbers"),
    (float("nan"), 0.0, "fp8", False, "latents are not numbers")])
def test_how_far_apart_two_paths_may_be(error: float, same: float, mode: str, is_trained: bool,
                                        problem: str | None) -> None:
    for errors in ([error, 0.0], [0.0, error]):  # the worst seed counts
        assert check_of(errors, [same, same], mode, is_trained=is_trained).problem == problem
