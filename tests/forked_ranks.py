"""A script as the N ranks of one job, which meet over gloo; run as a program by the tests.

The ranks are forked from a process that has imported PyTorch but computed nothing. PyTorch's own
launcher starts an interpreter for each, which takes most of the time of a test.

Arguments: N, the script, and its arguments.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import traceback
from pathlib import Path

import torch._dynamo  # which the first optimizer would import in every rank
import torch.distributed as dist
import torch.distributed.tensor  # noqa: F401 - as does each rank

# No rank lives longer, whatever it waits for; whoever runs this waits a little longer.
LIMIT_S = 110


def fork(rank: int, world: int, told: int, script: str, arguments: list[str]) -> int:
    """Start a rank that runs the script once it is ``told`` the store's port; its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    signal.alarm(LIMIT_S)
    try:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
            "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
            "MASTER_PORT": os.read(told, 5).decode(), "OMP_NUM_THREADS": "1",
            # As under PyTorch's launcher: the store is there already, whichever rank comes first.
            "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0",
            "TORCHELASTIC_RUN_ID": "forked",  # by which the program knows that it is a rank
        }  # fmt: skip
        sys.argv = [script, *arguments]
        sys.path.insert(0, str(Path(script).parent))
        runpy.run_path(script, run_name="__main__")
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def main(count: str, script: str, *arguments: str) -> int:
    """The exit code of the job; a rank that fails ends the others."""
    world = int(count)
    told, tell = os.pipe()
    ranks = {fork(rank, world, told, script, list(arguments)) for rank in range(world)}
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    os.write(tell, f"{store.port:5d}".encode() * world)
    code = 0
    while ranks:
        pid, status = os.waitpid(-1, 0)
        ranks.discard(pid)
        if status:
            code = 1
            for other in ranks:
                os.kill(other, signal.SIGKILL)
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
