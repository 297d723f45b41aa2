"""The version of our plugin: which source it speaks for, and what changes it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sky_server_lab import ROOT, checkout_in

from launcher.plugin_version import plugin_modules

SAY = "from launcher.plugin_version import plugin_version; print(plugin_version())"
LOADED = """
import json, sys
import launcher.sky_plugin
print(json.dumps([name for name in sys.modules if name.startswith(("launcher.", "trainer."))]))
"""


def said_in(checkout: Path, program: str = SAY) -> str:
    """What a program says that runs with the code of a checkout."""
    done = subprocess.run([sys.executable, "-c", program], cwd=checkout, text=True, capture_output=True,
                          env=os.environ | {"PYTHONPATH": str(checkout)}, check=True)
    return done.stdout.splitlines()[-1]


def test_it_speaks_for_every_module_that_the_plugin_brings_into_the_server_and_for_none_of_the_screens():
    pytest.importorskip("sky.server.plugins")
    named = set(plugin_modules())
    assert set(json.loads(said_in(ROOT, LOADED))) <= named
    assert named.isdisjoint({"launcher.cli", "launcher.commands", "launcher.console", "trainer.train"})


def test_it_is_that_of_any_other_checkout_with_the_same_code_until_a_module_of_the_plugin_changes(tmp_path):
    checkout = checkout_in(tmp_path)
    before = said_in(ROOT)
    assert len(before) == 12 and said_in(checkout) == before
    for name in ("launcher/cli.py", "trainer/train.py"):
        (checkout / name).write_text("# another\n")
    assert said_in(checkout) == before
    found = {before}
    for name in ("launcher/vast_search.py", "launcher/sky_plugin.py", "trainer/rental_terms.py"):
        (checkout / name).write_text((checkout / name).read_text() + "# another\n")
        found.add(said_in(checkout))
    assert len(found) == 4
