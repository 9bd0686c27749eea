"""Set up trackers: programs that record the numbers of a training in addition to metrics.jsonl, such as TensorBoard.

The callbacks are those of transformers, with three additional rules. A missing tracker is reported before anything is
loaded. Trackers write to the folder of the run (`trackers/`), not to the folder in which the command runs. And no data
leave the machine unless the user asks for it: a tracker that can work offline does so, unless its own environment
variable (`WANDB_MODE=online`, `MLFLOW_TRACKING_URI=...`) says otherwise. This module does not import transformers at
the top; `tracking.py` does.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import BeforeValidator

from posttrain.errors import MissingError, Problem

if TYPE_CHECKING:
    from transformers import TrainerCallback

__all__ = ["LOGS", "TRACKERS", "Tracker", "Trackers", "callback_of", "check_trackers", "chosen_trackers"]

LOGS = "trackers"
"""Name of the trackers' folder inside the folder of a run."""


class Tracker(NamedTuple):
    """How a tracker is found and set up.

    modules: one of them must be importable; package: what pip installs; paths, defaults: environment variables that are
    set to a path in the folder of logs or to a value, unless the user has set them; online: the variable and the value
    that switch sending on; finish: name of the module's function that ends a run; once: whether the path is read when
    the module is imported, so that all trainings of a process share the path of the first.
    """

    modules: tuple[str, ...]
    package: str
    paths: tuple[tuple[str, str], ...] = ()
    defaults: tuple[tuple[str, str], ...] = ()
    online: str = ""
    finish: str = ""
    once: bool = False


TRACKERS: dict[str, Tracker] = {
    "tensorboard": Tracker(
        ("tensorboard", "tensorboardX"), "tensorboard", (("TENSORBOARD_LOGGING_DIR", "{logs}/tensorboard"),)
    ),
    "wandb": Tracker(
        ("wandb",), "wandb", (("WANDB_DIR", "{logs}"),), (("WANDB_MODE", "offline"),), "WANDB_MODE=online", "finish"
    ),
    "mlflow": Tracker(
        ("mlflow",), "mlflow", (("MLFLOW_TRACKING_URI", "sqlite:///{logs}/mlflow.db"),), (),
        "MLFLOW_TRACKING_URI=<address>", "end_run",
    ),
    "trackio": Tracker(
        ("trackio",), "trackio", (("TRACKIO_DIR", "{logs}/trackio"),), (), "TRACKIO_SPACE_ID=<space>", once=True
    ),
    "swanlab": Tracker(
        ("swanlab",), "'swanlab[dashboard]'", (("SWANLAB_LOG_DIR", "{logs}/swanlab"),), (("SWANLAB_MODE", "local"),),
        "SWANLAB_MODE=cloud", "finish",
    ),
    "comet_ml": Tracker(
        ("comet_ml",), "comet-ml", (("COMET_OFFLINE_DIRECTORY", "{logs}"),), (("COMET_START_ONLINE", "false"),),
        "COMET_START_ONLINE=true", "end",
    ),
    "clearml": Tracker(
        ("clearml",), "clearml", (("CLEARML_CACHE_DIR", "{logs}/clearml"),), (("CLEARML_OFFLINE_MODE", "1"),),
        "CLEARML_OFFLINE_MODE=0",
    ),
    "neptune": Tracker(("neptune",), "neptune", (), (("NEPTUNE_MODE", "offline"),), "NEPTUNE_MODE=async"),
    "codecarbon": Tracker(("codecarbon",), "codecarbon"),
    "dvclive": Tracker(("dvclive",), "dvclive"),
    "dagshub": Tracker(("dagshub",), "dagshub mlflow"),
    "azure_ml": Tracker(("azureml.core",), "azureml-core"),
    "flyte": Tracker(("flytekit",), "flytekit"),
    "kubeflow": Tracker((), "kubeflow"),
}  # fmt: skip
"""The trackers that transformers knows, by their names in transformers."""


def _names(value: Any) -> Any:
    """Split a word, or words between commas, into names; `none` and null name no tracker. Raise ValueError for an
    unknown name, and for `none` together with other names."""
    if value is None:
        return ()
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        return value  # pydantic reports the expected type
    names = list(dict.fromkeys(value))
    if "none" in names and len(names) > 1:
        raise ValueError("'none' stands alone: leave it out, or leave the others out")
    unknown = [name for name in names if name not in TRACKERS and name not in ("all", "none")]
    if unknown:
        word = unknown[0].casefold().replace("-", "_")
        # these short words are similar to many words, so they need a closer match
        close = get_close_matches(word, ["all", "none"], n=1, cutoff=0.8) or get_close_matches(word, TRACKERS, 1, 0.5)
        mend = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(TRACKERS)}, all, none"
        raise ValueError(f"unknown tracker '{unknown[0]}'; {mend}")
    return tuple(name for name in names if name != "none")


Trackers = Annotated[tuple[str, ...], BeforeValidator(_names, json_schema_input_type=str | tuple[str, ...] | None)]
"""The type of the field `report_to` of trainings and studies."""


def _there(module: str) -> bool:
    """Return whether a module can be imported. A folder with the module's name, such as the `wandb/` that wandb writes,
    does not count as a module."""
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # the parent package is missing
        return False
    return spec is not None and spec.origin is not None


def _installed(name: str) -> bool:
    tracker = TRACKERS[name]
    if not tracker.modules:
        return "KUBEFLOW_TRAINER_SERVER_URL" in os.environ
    return any(_there(module) for module in tracker.modules)


def chosen_trackers(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names; `all` is replaced by every tracker that is installed."""
    if "all" not in names:
        return tuple(names)
    return tuple(name for name in TRACKERS if _installed(name))


def check_trackers(names: Sequence[str]) -> None:
    """Raise MissingError, with the pip command, for trackers that are missing or cannot be imported."""
    problems = []
    for name in chosen_trackers(names):
        tracker = TRACKERS[name]
        if not _installed(name):
            cause = f"the tracker {name} works within its own jobs only, and KUBEFLOW_TRAINER_SERVER_URL is not set"
            missing = Problem("report_to", cause, "take it out of report_to")
            if tracker.modules:
                missing = Problem("report_to", f"the tracker {name} is not installed", f"pip install {tracker.package}")
            problems.append(missing)
            continue
        if tracker.once:  # it is imported later, when its path is known
            continue
        try:
            callback_of(name)
        except (ImportError, RuntimeError) as error:
            cause = f"the tracker {name} is installed and cannot be used: {' '.join(str(error).split())}"
            problems.append(Problem("report_to", cause, "mend its installation, or take it out of report_to"))
    if "all" in names and not chosen_trackers(names):
        problems.append(Problem("report_to", "all, and no tracker is installed", "pip install tensorboard"))
    if problems:
        raise MissingError(*problems)


def callback_of(name: str) -> TrainerCallback:
    """Return the callback of transformers for a tracker, which is imported by this call."""
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    return INTEGRATION_TO_CALLBACK[name]()
