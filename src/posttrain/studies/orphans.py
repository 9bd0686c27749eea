"""Let processes of a study end with the process that started them.

The module imports nothing of posttrain: the process that only holds the queue of events starts without torch.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing.connection import wait

__all__ = ["end_with_parent"]


def end_with_parent() -> None:
    """Make this process end when its parent ends, for whatever reason. Ctrl-C then reaches only the parent."""
    os.setpgrp()
    parent = multiprocessing.parent_process()
    if parent is not None:
        sentinel = parent.sentinel

        def watch() -> None:
            wait([sentinel])
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()
