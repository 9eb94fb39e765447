"""What an all-reduce costs on a CPU: on the board that ranks of a host share, over MPI (ours both), and by gloo, in one run.

    python benchmarks/collectives.py --ranks 2,4

A decode step makes two all-reduces a layer of as many floats as the model is wide, so this is what sharding on a CPU
costs a token.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

WIDTHS = (256, 4096)
ROUNDS, CALLS = 7, 100

os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))


def measure(rank: Any, folder: str) -> dict[tuple[str, int], list[float]]:
    """Return microseconds per all-reduce of float32, one value per round, taking the backends in turn."""
    import torch
    import torch.distributed as dist

    from lens_magic.ranks import collectives

    collectives.connect(rank)
    store = dist.FileStore(f"{folder}/gloo-{rank.size}", rank.size)
    gloo = dist.ProcessGroupGloo(store, rank.rank, rank.size, timedelta(seconds=60))
    options = dist.AllreduceOptions()
    without_board = collectives.MPIProcessGroup(rank.communicator, rank.wait_for)
    backends = {
        "MPI": lambda tensor: without_board.reduce_in_place(tensor, dist.ReduceOp.SUM),
        "gloo": lambda tensor: gloo.allreduce([tensor], options).wait(),
    }
    if rank.board is not None:
        backends = {"board": rank.all_reduce, **backends}
    found: dict[tuple[str, int], list[float]] = {(name, width): [] for width in WIDTHS for name in backends}
    for _ in range(ROUNDS):
        for (name, width), figures in found.items():
            tensor = torch.zeros(width)
            begun = time.perf_counter()
            for _ in range(CALLS):
                backends[name](tensor)
            figures.append((time.perf_counter() - begun) / CALLS * 1e6)
    return found


def main() -> None:
    from lens_magic.ranks import collectives
    from lens_magic.ranks.environment import runtime_folder
    from lens_magic.ranks.group import Group

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", default="2,4")
    counts = [int(word) for word in parser.parse_args().ranks.split(",")]
    import collectives as this  # the ranks import this file by name, not as __main__

    print(f"{platform.machine()}, {os.cpu_count()} cores; µs an all-reduce, median (min–max) of {ROUNDS}")
    for count in counts:
        group = Group(count)
        try:
            found = group.call(this.measure, str(runtime_folder()))[0]
        finally:
            group.close()
            collectives.disconnect()
        for (name, width), figures in found.items():
            line = f"{statistics.median(figures):8.0f} ({min(figures):.0f}–{max(figures):.0f})"
            print(f"{count} ranks  {width:5} floats  {name:5}{line}")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
