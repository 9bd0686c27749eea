"""Fixtures for every test: pico models, built once per session, and no network."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["LANGUAGE"] = "en"  # what is said is compared in English, whatever the machine speaks
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does: spinning threads starve each other

from posttrain.errors import MissingError
from posttrain.language import ENGLISH, speak
from posttrain.models.names import REAL, resolve
from tests.pico import pico

# The machine may be busy, and then time says nothing of the code: no deadline, and no complaint about slow drawing.
settings.register_profile("posttrain", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("posttrain")


WORKERS = 3
"""One more than the cores of the machine that counts: tests of processes wait a sixth of their time."""


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """No garbage is looked for while everything is imported, nor in what was imported later: 5 % of all the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Folders of tests run in a few processes; named files, `-s`, `--pdb` and `--trace` in this one. `-n` overrules."""
    if "PYTEST_XDIST_WORKER" in os.environ or not config.pluginmanager.hasplugin("xdist"):
        return
    option = config.option
    said = option.numprocesses is not None or option.tx or option.dist != "no" or option.distload
    watched = option.usepdb or option.trace or option.capture == "no"
    if not said and not watched and any(Path(word.partition("::")[0]).is_dir() for word in config.args):
        option.numprocesses, option.dist = WORKERS, "worksteal"
    if option.numprocesses:
        os.environ.setdefault(
            "OMP_NUM_THREADS", "1"
        )  # the workers share the processor; each reads it as torch comes in


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes() -> None:
    from tests.workers import fork_workers

    fork_workers()


@pytest.fixture(scope="session", autouse=True)
def disk_is_not_waited_for() -> Generator[None, None, None]:
    """Files are flushed so that they outlast a loss of power, which no test brings about: 2 ms for each of thousands."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(autouse=True)
def spoken_to_as_before() -> None:
    """A command that an earlier test ran in this process has not left its language behind."""
    speak(ENGLISH)


@pytest.fixture
def loud_again() -> Generator[None, None, None]:
    """A test that says --quiet leaves the next one as it was."""
    from posttrain.cli.options import take_global

    yield
    take_global([])


@pytest.fixture(scope="session")
def pico_path(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`pico_path("llama")` is the folder of that family's pico model; read only, shared by the session."""
    root = tmp_path_factory.mktemp("pico")
    made: dict[str, Path] = {}

    def path(family: str) -> Path:
        if family not in made:
            made[family] = pico(family, root)
        return made[family]

    return path


@pytest.fixture(scope="session")
def documented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the worlds of tests/worlds.py share: examples, what other commands made; answers, with other workers, too."""
    folder = tmp_path_factory.mktemp("documented")
    base = tmp_path_factory.getbasetemp()
    answers = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "answers"
    answers.mkdir(exist_ok=True)
    (folder / "cache").symlink_to(answers)
    return folder


@pytest.fixture(scope="session")
def real_model() -> Path:
    """The folder of the real model (`make real-model`), for tests marked `real`; without it they are skipped."""
    try:
        return Path(resolve(REAL)).absolute()
    except MissingError as error:
        pytest.skip(str(error))
