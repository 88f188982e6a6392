"""Fits that end themselves by SIGKILL, each at another moment: the next one goes on from there.

One process reads the libraries and starts the fits by `fork`, before JAX has started anything of
its own: each costs a fraction of a second, and none knows of the others but by the folder.
"""

import os
import re
import signal
import sys
import warnings
from pathlib import Path

import chip_worker

# What Python is about to do when a fit is killed, in the order in which the fits are.
MOMENTS = {
    "before the first checkpoint": ("os.mkdir", r"/states/1\.\S*tmp "),
    "its arrays are written, but not in place": ("os.rename", r"/states/1\.\S*tmp \S+/states/1 "),
    "its arrays are in place, its seal is not written": ("open", r"/seals/\.\S+part w"),
    "the second one's seal is written, but not in place": ("os.rename", r"part \S+/seals/2 "),
    "the first one is about to be deleted": ("shutil.rmtree", r"/states/1 "),
    "a file of it is deleted": ("os.remove", r"/seals/1 "),
    "between two checkpoints": ("progress", ""),
    "the third one is whole": ("os.remove", r"/seals/\.\S+part "),
    "after the last": ("open", r"/never\.npz w"),
}


def kill_at(moment: str) -> None:
    """Have this process killed when the moment comes."""
    kind, words = MOMENTS[moment]
    if kind == "progress":
        chip_worker.between = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        return

    def watch(event: str, arguments: tuple) -> None:
        if event == kind and re.search(words, " ".join(map(str, arguments))):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def main(folder: Path) -> None:
    """Kill a fit at every moment, then let one end; tell how each of them ended."""
    # Forking is what this is about, and nothing runs beside it yet.
    warnings.filterwarnings("ignore", message=r".*fork\(\)", category=Warning)
    for moment in (*MOMENTS, None):
        if (child := os.fork()) == 0:
            if moment is not None:
                kill_at(moment)
            out = "never.npz" if moment else "resumed.npz"
            chip_worker.main([str(folder / out), "--checkpoint", str(folder / "kept")])
            os._exit(0)
        _, status = os.waitpid(child, 0)
        seals = sorted(int(path.name) for path in (folder / "kept" / "seals").glob("[0-9]*"))
        print(os.waitstatus_to_exitcode(status), *seals, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
