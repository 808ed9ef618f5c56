"""What runs on the far machine: a loop of a POSIX shell that answers questions about run folders.

It needs ``sh``, ``tail``, ``head``, ``dd`` and ``ls`` there, and uses ``stat``, ``ps`` and
``flock`` where they exist. Nothing is installed and no process outlives the connection, for the
loop ends with its input. Each line of it is a question, where ``I`` counts the paths from 1:

``p I PID PROBE``
    About the folder: ``p y|n NOW ALIVE HELD``, then a line about each of ``FILES``. ``ALIVE`` is of
    the process, ``HELD`` of the lock, which is tried if ``PROBE`` is 1; both are y, n or ?.
``r I NAME OFFSET COUNT``
    Exactly ``COUNT`` bytes of a file, followed by a line about it. Where the file has become
    shorter meanwhile, zeros stand for what is missing, and the line tells.
``c I NAME LENGTH``
    Then ``LENGTH`` bytes follow: a command file for the trainer. ``c ok`` or ``c refused``.
``l I``
    The runs in a folder: ``l TIME NAME`` for each, at last ``l.``.

A line about a file is ``INODE SIZE TIME``, ``absent`` or ``unreadable``.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

MAGIC = b"nanogpt-mirror-1"
# What a dashboard reads of a run folder; checkpoints stay where they are.
LOG, OUTPUT, RECIPE = FILES = ("events.jsonl", "stdout.log", "recipe.toml")

_LOOP = r"""
LC_ALL=C; export LC_ALL
nl='
'
if stat -L -c %i . >/dev/null 2>&1; then st() { stat -L -c '%i %s %Y' "$1"; }
elif stat -L -f %i . >/dev/null 2>&1; then st() { stat -L -f '%i %z %m' "$1"; }
else st() { ls -ilndL "$1" | { read -r n x x x x s x && echo "$n $s 0"; }; }
fi
about() {
  if [ ! -f "$1" ]; then echo absent
  elif [ ! -r "$1" ]; then echo unreadable
  else st "$1" 2>/dev/null || echo absent
  fi
}
alive() {
  case $1 in ''|0|*[!0-9]*) echo '?'; return;; esac
  if ! m=$(kill -0 "$1" 2>&1); then
    case $m in *ermitted*) ;; *) echo n; return;; esac
  fi
  if [ -r "/proc/$1/stat" ]; then read -r m <"/proc/$1/stat"; m=${m##*) }
  else m=$(ps -o stat= -p "$1" 2>/dev/null) || m=
  fi
  case $m in Z*) echo n;; *) echo y;; esac
}
held() {
  if [ "$2" != 1 ] || [ ! -f "$1" ] || ! command -v flock >/dev/null 2>&1; then echo '?'; return; fi
  flock -s -n "$1" true 2>/dev/null
  case $? in 0) echo n;; 1) echo y;; *) echo '?';; esac
}
echo "MAGIC $(uname -n)"
while read -r k i a b c; do
  eval "d=\${$i}"
  case $k in
  p)
    if [ -d "$d" ]; then e=y; else e=n; fi
    echo "p $e $(date +%s) $(alive "$a") $(held "$d/lock" "$b")"
    for f in FILES; do about "$d/$f"; done;;
  r)
    { tail -c "+$((b + 1))" "$d/$a" 2>/dev/null; cat /dev/zero; } 2>/dev/null | head -c "$c"
    about "$d/$a";;
  c)
    t=$d/control/.tmp-$a
    if [ -d "$d" ] && mkdir -p "$d/control" 2>/dev/null && { : >"$t"; } 2>/dev/null; then
      if [ "$b" != 0 ]; then dd bs=1 count="$b" >"$t" 2>/dev/null; fi
      if mv -f "$t" "$d/control/$a" 2>/dev/null; then echo 'c ok'; else echo 'c refused'; fi
    else
      if [ "$b" != 0 ]; then dd bs=1 count="$b" >/dev/null 2>&1; fi
      echo 'c refused'
    fi;;
  l)
    for e in "$d"/*/; do
      e=${e%/}; f=$e/events.jsonl
      [ -f "$f" ] || f=$e/recipe.toml
      [ -f "$f" ] || continue
      case $e in *"$nl"*) continue;; esac
      m=$(st "$f" 2>/dev/null) && echo "l ${m##* } ${e##*/}"
    done
    echo l.;;
  esac
done
"""


def script(paths: Sequence[str]) -> bytes:
    """The loop for these folders."""
    loop = _LOOP.replace("MAGIC", MAGIC.decode()).replace("in FILES", f"in {' '.join(FILES)}")
    return os.fsencode(f"set -- {' '.join(map(shlex.quote, paths))}\n{loop}")


def command(length: int) -> str:
    """What ``ssh`` is told to run: it reads a script of ``length`` bytes from its input.

    In single quotes it means the same to sh, csh and fish, whichever the login shell is; and unlike
    ``sh -s``, it reads no byte of what follows the script.
    """
    return f"exec sh -c 'eval \"$(dd bs=1 count={length} 2>/dev/null)\"'"
