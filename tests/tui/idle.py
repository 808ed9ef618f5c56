"""When a dashboard has done all it was told; to wait for that takes no longer than the work.

Textual's own ``wait_for_idle`` sleeps for 20 ms at least, twice a key, and takes a process that has
used little time for an idle one; its pilot sends each widget a message at every pause, which were
three quarters of all messages. Here an app is idle when its loop has no task that could run and its
screen nothing to draw. What timers and threads bring is to be waited for by ``helpers.until``.
"""

from __future__ import annotations

import asyncio
from typing import Any

from textual._context import active_app

_TURNS = 100  # no key draws so often


async def wait_for_idle(*_: float) -> None:
    """In place of ``textual._wait.wait_for_idle``."""
    await _nothing_ready()
    app = active_app.get()
    for _turn in range(_TURNS):
        if not app.screen_stack or not _waits_to_be_drawn(app.screen):
            return
        app.screen._on_timer_update()  # a sixtieth of a second earlier than its timer
        await _nothing_ready()


async def wait_for_screen(*_: Any, **__: Any) -> bool:
    """In place of ``Pilot._wait_for_screen``: a widget with a message has a task that could run."""
    await wait_for_idle()
    return True


def _waits_to_be_drawn(screen: Any) -> bool:
    return bool(
        screen._layout_required
        or screen._scroll_required
        or screen._repaint_required
        or screen._recompose_required
        or screen._dirty_widgets
        or screen._callbacks
    )


async def _nothing_ready() -> None:
    """Let all tasks run until each waits for a timer, a thread or the test."""
    loop: Any = asyncio.get_running_loop()
    quiet = 0
    while quiet < 2:  # after one turn, the loop has looked for what came from outside
        await asyncio.sleep(0)
        quiet = 0 if loop._ready else quiet + 1
