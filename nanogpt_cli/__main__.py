"""`python -m nanogpt_cli` is the same program as `nanogpt`."""

from nanogpt_cli.cli import main

if __name__ == "__main__":
    main()
