"""Where the `ldlm` command begins: small, so that Ctrl-C finds a catcher while the rest is imported."""

import sys

_INTERRUPTED = 130


def main() -> None:
    """Run the command line. An interruption that nothing else has caught is one word."""
    try:
        from launcher.cli import main as run

        run()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
