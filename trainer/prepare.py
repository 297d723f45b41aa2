"""`python -m trainer.prepare`, behind `ldlm data prepare`: text -> token shards in an object store. No torch.

Exit codes: those of the `ldlm` command. Little is imported here: Ctrl-C may come while the rest is.
"""

import sys

from trainer.interrupts import INTERRUPTED, NOT_BEGUN, ends_at_once


def main(argv: list[str] | None = None) -> int:
    """Prepare what the command line says. Returns the exit code."""
    try:
        with ends_at_once(NOT_BEGUN):
            from trainer.prepare_command import prepare_as_typed
        return prepare_as_typed(argv)
    except KeyboardInterrupt:
        print(NOT_BEGUN, file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
