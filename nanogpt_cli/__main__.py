"""The program's entry, as ``nanogpt`` and as ``python -m nanogpt_cli``."""

import sys


def main() -> None:
    """Run the program; Ctrl-C ends it quietly with exit code 130 while it still loads, too."""
    try:
        from nanogpt_cli.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("error: stopped\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
