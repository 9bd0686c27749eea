"""Processes of their own for tests that stop or kill them, or want two: forked from a server that imported torch once.

The workers of pytest-xdist come from it, too, and share it: tests/workers.py.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from posttrain.registry import SEAMS, kinds

__all__ = ["Started"]

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        *("pytest", "posttrain.studies.run", "posttrain.training.run", "posttrain.exams.lm_eval", "posttrain.cli.main"),
        *("lm_eval.models.huggingface", "sklearn.metrics", "nltk.translate.bleu_score", "sacrebleu", "altair"),
        *(f"{package}.{kind}" for seam, packages in SEAMS.items() for package in packages for kind in kinds(seam)),
    ]
)


class Started:
    """`call(*arguments)` in a process with this one's folder and environment; its result is the exit code.

    call: a function that can be imported. folder: where `out.txt` and `err.txt`, what it prints, are written.
    environment: what it has besides. threads: of torch.
    """

    def __init__(
        self,
        call: Callable[..., int | None],
        *arguments: Any,
        folder: Path,
        environment: Mapping[str, str] | None = None,
        threads: int = 1,
    ) -> None:
        self._files = (folder / "out.txt", folder / "err.txt")
        surroundings = dict(os.environ) | dict(environment or {})
        words = (call, arguments, Path.cwd(), surroundings, self._files, threads)
        self._process = SERVER.Process(target=_begin, args=words, daemon=True)
        self._process.start()

    def ended(self) -> bool:
        return self._process.exitcode is not None

    def wait_until(self, ready: Callable[[], bool], *, at_most_s: float = 200) -> None:
        """Return when `ready()` or when the process has ended; an AssertionError after `at_most_s` seconds."""
        end = time.monotonic() + at_most_s
        while not self.ended() and not ready():
            if time.monotonic() > end:
                self._process.kill()
                raise AssertionError(f"not ready after {at_most_s} s", self.finish())
            time.sleep(0.01)

    def send(self, signal: int) -> None:
        """Send the signal, if the process has not ended."""
        if not self.ended() and self._process.pid is not None:
            os.kill(self._process.pid, signal)

    def finish(self, *, at_most_s: float = 200) -> tuple[int, str, str]:
        """Wait for the end: the exit code (-n where signal n ended it), what was printed, what was complained."""
        self._process.join(at_most_s)
        code = self._process.exitcode
        if code is None:
            self._process.kill()
        out, err = (path.read_text(encoding="utf-8") if path.exists() else "" for path in self._files)
        assert code is not None, (f"still running after {at_most_s} s", out, err)
        return code, out, err


def _begin(
    call: Callable[..., int | None],
    arguments: tuple[Any, ...],
    here: Path,
    surroundings: Mapping[str, str],
    files: tuple[Path, Path],
    threads: int,
) -> None:
    """In the new process: stand where the parent stands, print to the files, call."""
    import torch

    gc.freeze()  # what was imported stays
    os.chdir(here)
    os.environ.clear()
    os.environ.update(surroundings)
    for path, descriptor in zip(files, (1, 2), strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    torch.set_num_threads(threads)
    sys.exit(call(*arguments))
