"""The process of one item: ``python -m nanogpt_cli.bench.on_gpu.child ITEM SETTING``."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from nanogpt_cli.bench.on_gpu.items import ITEMS
from nanogpt_cli.bench.on_gpu.process import GRACE_S, end_group
from nanogpt_cli.bench.on_gpu.report import Report, Setting


def main(name: str, setting: str) -> None:
    """Carry out an item.

    Args:
        name: a key of ``ITEMS``.
        setting: JSON of ``Setting``'s attributes, and ``parts``: the file to write parts to.
    """
    orphaned = threading.Event()
    threading.Thread(target=_end_with_parent, args=(orphaned,), daemon=True).start()
    given = json.loads(setting)
    against = Path(given["against"]) if given["against"] else None
    where = Setting(given["device"], given["tiny"], Path(given["folder"]), against)
    try:
        ITEMS[name].work(Report(Path(given["parts"])), where)
    finally:
        if orphaned.is_set():
            time.sleep(
                2 * GRACE_S
            )  # the other thread ends this process, and what is left beside it


def _end_with_parent(orphaned: threading.Event) -> None:
    """End this process and what it has started when the other end of stdin is gone.

    Whoever is killed cannot end its children, and one that goes on keeps the GPU busy.
    """
    while os.read(0, 1024):
        pass
    orphaned.set()
    end_group(os.getpid(), signal.SIGINT)  # programs that started others end them
    time.sleep(GRACE_S)
    end_group(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
