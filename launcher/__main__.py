"""Where the `ldlm` command begins: small, so that Ctrl-C finds a catcher while the rest is imported."""

import gc
import sys

_INTERRUPTED = 130
# What a command imports stays: to look for garbage after every 700 new objects, as Python does, is a seventh
# of its time (measured, recipes/LOG.md).
_GARBAGE_AFTER = 10_000


def main() -> None:
    """Run the command line. An interruption that nothing else has caught is one word."""
    gc.set_threshold(_GARBAGE_AFTER)
    try:
        from launcher.cli import main as run

        run()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
