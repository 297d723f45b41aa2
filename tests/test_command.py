"""How commands of the trainer's environment end."""

import subprocess
import sys

from tests.trainer_runs import ROOT

ANSWER = "from trainer.command import carry_out; import sys; sys.exit(carry_out(lambda: 'text\\n' * 100_000))"


def test_a_reader_who_has_had_enough_of_an_answer_gets_no_traceback() -> None:
    with subprocess.Popen([sys.executable, "-c", ANSWER], cwd=ROOT, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"text\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1
