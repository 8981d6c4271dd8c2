"""Two processes of a gloo group: runs a worker script in each, and collects what it saved."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

SECONDS = 600  # processes that have not ended by then hang
WORLD = 2


def results_of(script: str, folder: Path) -> list[Any]:
    """What `script RANK WORLD FOLDER` left in FOLDER/RANK.pt, of every process."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if Path("/sys/class/net/lo").exists():  # gloo would look the machine's name up
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    logs = [folder / f"{rank}.log" for rank in range(WORLD)]
    running = []
    for rank, log in enumerate(logs):
        command = [sys.executable, script, str(rank), str(WORLD), str(folder)]
        with log.open("w") as file:
            running.append(subprocess.Popen(command, stdout=file, stderr=file, env=environment))
    try:
        ended = [process.wait(SECONDS) for process in running]
    finally:
        for process in running:
            process.kill()
    assert ended == [0] * WORLD, "\n".join(log.read_text() for log in logs)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]
