"""`responses.jsonl`: what a model answered lm-eval's requests, kept as it comes, so that a kill loses nothing.

Each line carries the key of the model (weights, template, how text is cut) and the request's hash; the answers of
another model are never taken for this one's. lm-eval's own cache of responses stores pickles without the model's
name in the key; files that a person may pass on are never unpickled here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from operator import itemgetter
from pathlib import Path
from typing import Any

from posttrain.errors import ConfigError, Problem
from posttrain.exams.sample_log import append_row, cut_torn, rows_in

__all__ = ["KeptResponses", "request_id"]


def request_id(kind: str, arguments: Iterable[Any]) -> str:
    """The same only for the same kind of request with the same arguments."""
    text = json.dumps([kind, *arguments], ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class KeptResponses:
    """Responses by request. Without a path they are in memory only.

    Under torchrun each process appends to a file of its own (`responses-1.jsonl` beside the first's) and reads all.
    """

    def __init__(self, path: Path | None, key: str, *, rank: int = 0, discard: bool = False) -> None:
        """ConfigError when a file holds another model's responses; with `discard` it is thrown away instead."""
        self.path = path and (path.with_stem(f"{path.stem}-{rank}") if rank else path)
        self.key = key
        self.found: dict[str, Any] = {}
        if path is not None:
            for each in sorted({path, *path.parent.glob(f"{path.stem}-*{path.suffix}")}):
                self._read(each, own=each == self.path, discard=discard)

    def _read(self, path: Path, *, own: bool, discard: bool) -> None:
        if not path.exists():
            return
        rows = rows_in(path, itemgetter("exam", "request", "response"), "not a response to a request")
        foreign = sum(key != self.key for key, _, _ in rows)
        if foreign and discard:
            path.unlink(missing_ok=True)
            return
        if foreign:
            cause = f"holds {foreign} responses of another model (other weights, template or limits)"
            raise ConfigError(Problem(str(path), cause, "give another --output, or --restart"))
        self.found |= {request: response for _, request, response in rows}
        if own:
            cut_torn(path)

    def append(self, request: str, response: Any) -> None:
        """Add one response; given to the system whole when this returns."""
        self.found[request] = response
        if self.path is not None:
            append_row(self.path, {"exam": self.key, "request": request, "response": response})
