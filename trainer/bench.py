"""`python -m trainer.bench`: the second document of a task, as nodes start it (`trainer/bench_document.py`).

`python -m trainer.bench generate`: generation without a run (`trainer/bench_command.py`).
"""

import sys


def main() -> int:
    """Do what was typed. Returns the exit code; of the document, its node reads a file."""
    if sys.argv[1:2] == ["generate"]:
        from trainer.bench_command import main as generate

        return generate(sys.argv[2:])
    from trainer.bench_document import main as document

    document()
    return 0


if __name__ == "__main__":
    sys.exit(main())
