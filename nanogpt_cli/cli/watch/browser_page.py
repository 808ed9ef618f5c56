"""The process that draws the dashboard for one browser window; ``serve.py`` starts it."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

_GLANCE = 2.0  # seconds between two looks whether the server is still there


def main() -> None:
    """Open the dashboard as the only argument says, which ``serve.py`` writes as JSON."""
    from nanogpt_cli.tui.app import run_dashboard
    from nanogpt_cli.tui.state import far
    from nanogpt_cli.tui.state.workspace import Workspace

    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    settings = json.loads(sys.argv[1])
    folders, listed = ([Path(path) for path in settings.pop(k)] for k in ("folders", "listed"))
    workspace = Workspace(Path(settings.pop("root")), listed, readonly=settings["readonly"])
    run_dashboard([far.session(path) for path in folders], workspace=workspace, **settings)


def _end_with(server: int) -> None:
    """A server that was killed closes our input, which Textual takes for nothing."""
    while os.getppid() == server:
        time.sleep(_GLANCE)
    os._exit(1)


if __name__ == "__main__":
    main()
