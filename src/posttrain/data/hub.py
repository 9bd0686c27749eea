"""Data sets of the Hugging Face hub, or a folder in its layout, to rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets

from posttrain.data.arrow import Cleaner, clean_rows
from posttrain.errors import DataError, MissingError, Problem

__all__ = ["hub_rows"]


def hub_rows(
    hub: str, subset: str | None, split: str, *, download: bool, notes: list[str]
) -> Iterator[tuple[str, Any]]:
    """(location, row or BadRow) of each row, classes by their names, without the nulls that Arrow inserted (see
    `arrow`)."""
    local = Path(hub).expanduser().is_dir()
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or not (download or local)
    progress = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(hub, subset, split=split)
    except (ConnectionError, FileNotFoundError, OSError) as error:
        mend = "check the name and the network" if download else "--download allows fetching it from the hub"
        raise MissingError(Problem(hub, f"the data set cannot be read: {_line(error)}", mend)) from error
    except (ValueError, datasets.exceptions.DatasetsError) as error:
        # an unknown split or configuration (the message lists the known ones), or a file that cannot be read
        raise DataError(Problem(hub, _line(error))) from error
    finally:
        datasets.config.HF_HUB_OFFLINE = before
        if progress:
            datasets.enable_progress_bars()
    classes = {column: _class_names(feature) for column, feature in rows.features.items()}
    cleaner = Cleaner(rows.data.table, decoded=True)
    placed = ((f"{hub}[{split}]:{number}", row) for number, row in enumerate(rows))
    yield from clean_rows(placed, cleaner, classes, notes)


def _class_names(feature: Any) -> list[str] | None:
    """The names of a column of classes, or of lists of classes, which the hub stores as numbers."""
    inner = feature.feature if isinstance(feature, datasets.List) else feature
    return list(inner.names) if isinstance(inner, datasets.ClassLabel) else None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
