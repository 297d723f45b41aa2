"""Who may import whom, read from the source; and what importing the command line costs."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAUNCHER = sorted((ROOT / "launcher").glob("*.py"))
TRAINER = sorted((ROOT / "trainer").rglob("*.py"))
OPEN_TO_LAUNCHER = {"trainer.at_most", "trainer.aws", "trainer.bench_train_cases", "trainer.config",
                    "trainer.contract", "trainer.communication", "trainer.cuda",
                    "trainer.deadman", "trainer.guard", "trainer.limits",
                    "trainer.encoder_shape", "trainer.interval", "trainer.learning", "trainer.lease",
                    "trainer.live_price",
                    "trainer.humaneval_options",
                    "trainer.measure_options", "trainer.memory", "trainer.mirror_format",
                    "trainer.prepare_options", "trainer.profiles", "trainer.pull_plan",
                    "trainer.rental_terms", "trainer.seen_machine",
                    "trainer.run_folder", "trainer.run_parts", "trainer.sample_options",
                    "trainer.services", "trainer.shards", "trainer.sizes", "trainer.spent",
                    "trainer.store", "trainer.store_words",
                    "trainer.tell", "trainer.text_checks", "trainer.text_files", "trainer.unfinished_uploads",
                    "trainer.wandb_options", "trainer.webhook"}
PURE = [path for path in LAUNCHER if path.stem in (
    "plan", "plan_sizes", "plan_warnings", "estimate", "fit", "speed", "advice", "alternatives", "cheaper",
    "gpu_kinds", "sky_ready", "yaml_edit", "policy", "cost", "render", "lint", "simulate", "vast_search",
    "vast_onstart", "saves", "rentals", "rental_cost", "uncounted", "waits", "vast_start",
    "candidates", "market", "bids", "stale", "credits", "priced_offers", "offers_file", "offer_list",
    "self_end", "policies_known", "policy_ours", "policy_values", "regimes", "clairvoyant",
    "attempt_cost", "report",
    "ledger_doubts", "mended", "stand_ins", "report_csv", "report_svg", "report_html", "reconcile",
    "course", "course_plan", "next_move", "availability", "lives")]
# Clocks, chance and the outside world: pure modules get them as arguments.
IMPURE = {"os", "time", "random", "secrets", "uuid", "socket", "subprocess", "shutil", "urllib", "requests",
          "obstore", "tempfile"}
HEAVY = {"torch", "deepspeed", "transformers", "sky", "pandas", "pydantic", "obstore", "boto3", "botocore",
         "azure", "google", "vastai", "numpy"}


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names that a tree imports; `from a import b` gives both `a` and `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide who imports whom"
            yield node.module or ""
            yield from (f"{node.module}.{name.name}" for name in node.names)


def imported(path: Path) -> set[str]:
    return set(imports(ast.parse(path.read_text())))


def top(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def test_there_is_something_to_check():
    assert {path.stem for path in LAUNCHER} >= {"recipe", "plan", "render", "lint"}
    assert {path.stem for path in TRAINER} >= {"config", "contract", "store", "run_folder"}


@pytest.mark.parametrize("path", TRAINER, ids=lambda path: path.stem)
def test_the_trainer_never_imports_the_launcher_or_clouds(path):
    assert not top(imported(path)) & {"launcher", "sky", "typer", "rich"}


@pytest.mark.parametrize("path", LAUNCHER, ids=lambda path: path.stem)
def test_the_launcher_reaches_into_the_trainer_by_its_torch_free_doors(path):
    modules = {".".join(name.split(".")[:2]) for name in imported(path) if name.startswith("trainer.")}
    assert modules <= OPEN_TO_LAUNCHER
    assert not top(imported(path)) & {"torch", "deepspeed", "transformers", "click"}


@pytest.mark.parametrize(("package", "homes"), [
    ("sky", {"sky_engine", "sky_server", "sky_plugin", "sky_clusters", "capacity_watch", "market_search",
             "sky_places", "sky_strategy"}),
    ("rich", {"console"}),
    ("typer", {"cli", "cli_options", "cli_panels", "cli_offers", "cli_simulate", "config_cli",
               "controller_cli"}),
])
def test_a_heavy_package_has_one_home(package, homes):
    assert {path.stem for path in LAUNCHER if package in top(imported(path))} <= homes


@pytest.mark.parametrize("name", ["sky_engine.py", "sky_server.py", "sky_clusters.py", "capacity_watch.py",
                                  "sky_places.py"])
def test_what_asks_skypilot_imports_it_only_inside_functions(name):
    tree = ast.parse((ROOT / "launcher" / name).read_text())
    outside = [node for node in tree.body if not isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert "sky" not in top({name for node in outside for name in imports(node)})


@pytest.mark.parametrize("path", PURE, ids=lambda path: path.stem)
def test_pure_modules_take_clock_and_chance_as_arguments(path):
    assert not top(imported(path)) & IMPURE
    called = {node.func.attr for node in ast.walk(ast.parse(path.read_text()))
              if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)}
    assert not called & {"now", "utcnow", "today"}


def test_nothing_shadows_skypilot_or_our_own_packages():
    assert list((ROOT / "sky").rglob("*.py*")) == []
    assert not (ROOT / "sky.py").exists()
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_importing_the_command_line_loads_nothing_heavy():
    code = "import sys, json, launcher.cli; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not {name.partition(".")[0] for name in json.loads(done.stdout)} & HEAVY
