"""What the words and marks of each page mean, for its help."""

from __future__ import annotations

from collections.abc import Sequence

from nanogpt_cli.tui.drawing import heat

_SMOOTHED = (
    "smoothed over N steps",
    "moving average; the band behind it, raw, is the range of the single steps",
)
_MAP = (
    ("heat map", "a row is a layer (h.0 reads the text), right is later in the training"),
    ("12.3  12.3!  ×", "newest value; ! outside the usual range; × not a finite number"),
    ("1 < 2 ░▒▓█ 8 < 9", "2 and 8 end the colour scale; the values reach from 1 to 9"),
    (
        "most extreme of each 4 layers",
        "four layers share a row's colour: that of the value farthest from normal",
    ),
)
_WORDS = {
    "overview": (
        _SMOOTHED,
        ("train, val", "loss in nats per token: of the batches, and ● of the validation split"),
        ("▲ above the loss", "an alarm was raised there; 5 tells which"),
        ("clipped 30%", "share of steps whose gradient was scaled down to optim.grad_clip"),
        ("MFU", "arithmetic done for the model, as a share of what the device can do at most"),
        *_MAP,
    ),
    "layers": (
        *_MAP,
        ("theory", "what the initialisation makes it before the first step, ±10 %"),
        ("first, now", "the first measurement and the newest, or that at the crosshair"),
    ),
    "compare": (
        _SMOOTHED,
        ("by 76.8k tokens", "best validation loss of each run until it had read as many tokens"),
        ("+ not opened", "another run of the folder; enter opens it"),
        ("- a run", "opened but hidden; enter shows it"),
        ("what differs", "keys of the recipes that are not equal; d shows them on a narrow screen"),
    ),
    "samples": (
        ("temperature", "how freely the text was drawn: 0 takes the likeliest token, 1 follows "
         "the model"),
        ("earlier", "the sample before, from the same prompt; d marks the words that are new"),
    ),
    "logs": (
        ("✖  ▲  ✓", "an alarm that is an error, one that is a warning, one that has cleared"),
        ("alarm", "a condition that needs attention; nanogpt explain NAME tells all about it"),
        ("incident", "a step that went wrong and was recorded; nanogpt replay repeats it"),
        ("evaluation", "the loss on the validation split, of which best so far is kept"),
    ),
    "system": (
        ("minute, run", "seconds of the trainer in the last minute, and in the whole run"),
        ("forward/backward", "with the exchange between ranks; on a GPU also the wait for all "
         "that was queued before, the last update included"),
        ("other", "the start, compiling, commands, the log and its sinks"),
        ("CPU", "of all the machine's cores, by all programs; this run: the trainer and its "
         "children, in cores"),
        ("its limit", "of the control group: what a container or job may use"),
        ("trainer", "memory that the trainer's process holds (RSS)"),
        ("GPU busy", "share of the time in which any kernel ran; it says nothing about how much "
         "of the GPU that kernel used"),
        ("torch", "memory of tensors, what PyTorch took from the driver for them (reserved), and "
         "the most so far (peak)"),
        ("clock held back", "the driver lowers the GPU's clock, and for what reason"),
    ),
    "runs": (
        ("■  ★  ·", "selected for Compare, pinned to the top, hidden"),
        ("loss curve", "training loss along the run, by a few dozen of its steps"),
        ("best, ≤ 1.5", "lowest validation loss; ≤ until all of a long log has been searched"),
        ("▲2", "two alarms are active"),
        ("age", "time since the run began"),
        ("column↓", "the list is sorted by it, the largest first; ↑ the smallest first"),
        ("filter", "words match names; field:text holds it; = != < <= > >= compare; - before a "
         "term means not; a,b is a or b. Fields: name, state, tag, note, step, loss, best, speed, "
         "alarms, age, parameters, and keys of recipes such as optim.lr, or lr"),
    ),
}  # fmt: skip


def on_page(page: str, statistics: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Words and their meanings; on the page of layers also the statistics that were measured."""
    found = list(_WORDS[page])
    if page == "layers":
        known = [heat.statistic(name) for name in heat.order(statistics)]
        found += [(stat.label, stat.about) for stat in known if stat.about]
    return found


def plain(text: str) -> str:
    """A word with ASCII marks, for terminals that have no others."""
    return text.translate(str.maketrans("✖▲✓×●░▒▓█■★·≤↓↑", "x!vxo.:+##*.<v^"))
