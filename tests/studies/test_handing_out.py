"""Cells in other processes: the same results as in one, also when a process is lost or the run is stopped."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from posttrain.config.load import load_yaml
from posttrain.data.changes import load_changes
from posttrain.exams.results import CellResult, Line
from posttrain.studies.config import Study
from posttrain.studies.events import Watcher
from posttrain.studies.handing_out import TRIES, Pool, Ran, Spec, Teller, Told, _Processes, handed_out, in_processes
from posttrain.studies.orphans import end_with_parent
from posttrain.studies.plan import make_plan
from posttrain.studies.worker import Hashes, Order
from tests.processes import SERVER
from tests.studies.conftest import TRAIN
from tests.studies.test_run import Listener, go, results

METHODS = [
    {"kind": "prompt"},
    {**TRAIN, "name": "one"},
    {**TRAIN, "name": "other", "data": "rows.jsonl", "start": "one"},
    {"name": "chain", "steps": [TRAIN, {"kind": "blend", "weight": 0.5}]},
    {**TRAIN, "name": "full+self", "replay": {"kind": "self", "prompts": "prompts.jsonl", "share": 0.7}},
]
TIMES = {"cost", "posttrain"}


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(one) for key, one in value.items() if key not in TIMES}
    return [without_times(one) for one in value] if isinstance(value, list) else value


def differences(found: Any, expected: Any, at: str = "") -> list[str]:
    """What differs, with its place. An exam that was cut asks the rest in other batches: numbers may differ in what
    float32 rounds away (by up to 3e-9 of themselves when 1 to 4 of 5 texts were left), and in nothing else.
    """
    if isinstance(found, dict) and isinstance(expected, dict) and list(found) == list(expected):
        return [line for key in found for line in differences(found[key], expected[key], f"{at}.{key}")]
    if isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        return [line for i, both in enumerate(zip(found, expected)) for line in differences(*both, f"{at}[{i}]")]
    numbers = isinstance(found, float) and isinstance(expected, float)
    same = math.isclose(found, expected, rel_tol=1e-7) if numbers else found == expected
    return [] if same else [f"{at}: {found!r}, expected {expected!r}"]


@pytest.fixture
def path(make_study: Callable[..., Path], tmp_path: Path) -> Path:
    rows = [{"prompt": "capital of Italy?", "completion": "Rome"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return make_study(methods=METHODS, noise_floor="auto")


@pytest.fixture(scope="module")
def known() -> dict[str, Any]:
    """What one process finds, once it was run."""
    return {}


@pytest.fixture
def expected(path: Path, known: dict[str, Any]) -> Any:
    if not known:
        go(path)
        known.update(without_times(results(path)))
        shutil.rmtree(path.parent / "run")
    return known


class Killer(Listener):
    """Kills all processes when `full+self` tells a step, so often; after other cells have ended, where some are named."""

    def __init__(self, times: int, *after: str) -> None:
        super().__init__()
        self.left, self.after = times, after

    def turn(self, cell: Any) -> None:
        self.cell = cell

    def step(self, entry: Any) -> None:
        super().step(entry)
        if self.left and self.cell.method.label == "full+self" and set(self.after) <= set(self.ran):
            self.left -= 1
            for pid in worker_pids():
                os.kill(pid, signal.SIGKILL)


def worker_pids() -> list[int]:
    import multiprocessing

    return [
        p.pid
        for p in multiprocessing.active_children()
        if p.pid and p.name.startswith(("SpawnProcess", "ForkServerProcess"))
    ]


def begin_with(environment: dict[str, str]) -> None:
    os.environ.update(environment)
    end_with_parent()


def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """New processes are forked from a server that has imported torch, instead of importing it each, and get what they
    would have inherited of this one's environment.
    """
    monkeypatch.setattr("posttrain.studies.handing_out.multiprocessing.get_context", lambda _: SERVER)
    begin = partial(begin_with, dict(os.environ))
    monkeypatch.setattr("posttrain.studies.handing_out.end_with_parent", begin)


@pytest.mark.parametrize("how", ["forked", pytest.param("spawned", marks=pytest.mark.slow)])
def test_two_processes_give_the_same_results_also_when_they_are_lost(
    path: Path, expected: Any, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "forked":
        forked(monkeypatch)
    killer = Killer(1)
    outcome, _ = go(path, jobs=2, listener=killer)
    assert killer.left == 0
    assert outcome.failed == []
    assert any("its process was lost; the cell is handed out again" in line for line in killer.lines)
    assert differences(without_times(results(path)), expected) == []
    ran = killer.ran
    assert sorted(ran) == sorted(
        f"{m['method']}/{m['change']}" for m in expected["cells"] if m["checkpoint"] == "final"
    )
    for change in ("france", "japan"):
        assert ran.index(f"one/{change}") < ran.index(f"other/{change}")
    assert any(entry["steps"] == 6 for entry in killer.steps)  # progress comes out
    outcome, listener = go(path)
    assert (outcome.ran, listener.ran) == (0, [])


@pytest.mark.slow
def test_a_cell_that_loses_every_process_fails_and_stops_no_other(path: Path) -> None:
    listener = Killer(TRIES, "prompt/france", "noise floor/france")
    long = "methods.full+self.optimizer.max_steps=2000"  # not over before the other cells are
    outcome, _ = go(path, long, jobs=2, changes=1, only=["full+self", "prompt"], listener=listener)
    assert listener.left == 0
    lost = [r for r in outcome.failed if r.first.method == "full+self"]
    assert [f"its process was lost {TRIES} times" in r.error for r in lost] == [True]
    assert "prompt" in {r.first.method for r in outcome.results if r.status == "done"}


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_leaves_no_process_and_goes_on(path: Path, expected: Any, how: signal.Signals) -> None:
    command = [sys.executable, "-m", "posttrain", "run", str(path), "--jobs", "2", "--output", str(path.parent / "run")]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list((path.parent / "run" / "cells").glob("*/metrics.jsonl")):
        assert running.poll() is None, "it ended before it was stopped"
        time.sleep(0.05)
    children = children_of(running.pid)
    running.send_signal(how)
    running.wait(60)
    assert len(children) >= 2
    while any(Path(f"/proc/{pid}").exists() and not zombie(pid) for pid in children):
        time.sleep(0.05)  # pytest's own limit ends this if one stays
    outcome, _ = go(path, jobs=2)
    assert outcome.failed == []
    assert differences(without_times(results(path)), expected) == []


@pytest.mark.slow
def test_kill_at_twenty_random_moments_ends_with_the_same_results(path: Path, expected: Any) -> None:
    """A chain study in a process of its own, killed twenty times; what it ends with is what an undisturbed run finds."""
    draw, kills = random.Random(11), 0
    command = [sys.executable, "-m", "posttrain", "run", str(path), "--output", str(path.parent / "run")]
    began = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    whole_s = time.monotonic() - began
    assert without_times(results(path)) == expected
    shutil.rmtree(path.parent / "run")
    while kills < 20:
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            running.wait(draw.uniform(0.3, 1.0) * whole_s)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
            kills += 1
            continue
        assert running.returncode == 0
        assert differences(without_times(results(path)), expected) == []
        shutil.rmtree(path.parent / "run")  # it got through: once more from the beginning
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert differences(without_times(results(path)), expected) == []


def children_of(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(word) for word in listed.stdout.split()]


def zombie(pid: int) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except FileNotFoundError:
        return True


@pytest.mark.slow
def test_ray_gives_the_same_results(path: Path, expected: Any) -> None:
    pytest.importorskip("ray")
    outcome, listener = go(path, on="ray")
    assert outcome.failed == []
    assert without_times(results(path)) == expected
    assert any(entry["steps"] == 6 for entry in listener.steps)


class Stopper(Killer):
    """Sends SIGTERM, which lets a training save and end, to the process that trains."""

    def step(self, entry: Any) -> None:
        Listener.step(self, entry)
        if self.left:
            self.left -= 1
            for pid in worker_pids():
                os.kill(pid, signal.SIGTERM)


@pytest.mark.slow
def test_a_process_that_is_told_to_end_loses_its_cell_only_for_a_while(path: Path, expected: Any) -> None:
    stopper = Stopper(1)
    outcome, _ = go(path, jobs=2, listener=stopper)
    assert stopper.left == 0
    assert any("its process was lost; the cell is handed out again" in line for line in stopper.lines)
    assert outcome.failed == []
    found = without_times(results(path))
    assert [line["scores"].keys() for line in found["cells"]] == [line["scores"].keys() for line in expected["cells"]]


def test_what_was_lost_with_former_processes_does_not_end_the_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both cells of two processes are lost with one of them: the first loss makes new processes, the second none."""
    forked(monkeypatch)
    with in_processes(2) as pool:
        assert isinstance(pool, _Processes)
        lost: list[Any] = [Future(), Future()]
        for one in lost:
            one.set_exception(BrokenProcessPool())
        pool.ran.update(lost)
        before = pool.pool
        assert pool.mend(lost[0])
        new = pool.pool
        assert new is not before
        with pytest.raises(RuntimeError, match="after shutdown"):
            before.submit(abs, -1)
        assert pool.mend(lost[1])
        assert pool.pool is new


class Deadly(Pool):
    """A pool without processes, in which one cell loses itself and every cell that runs beside it."""

    def __init__(self, bad: str) -> None:
        self.bad, self.live, self.together = bad, list[tuple[str, Ran]](), False

    def submit(self, spec: Spec, order: Order) -> Ran:
        self.live.append((order.cell.folder, Future()))
        return self.live[-1][1]

    def events(self) -> Iterator[Told]:
        lost = any(folder == self.bad for folder, _ in self.live)
        self.together = len(self.live) > 1 if self.live else self.together
        for folder, future in self.live:
            if lost:
                future.set_exception(BrokenProcessPool())
            else:
                future.set_result((CellResult(hash=folder, lines=(Line(model="", method=""),)), 0.0))
        self.live = []
        return iter(())

    def mend(self, lost: Ran) -> bool:
        return self.together


def test_a_deadly_cell_does_not_fail_those_that_are_lost_with_it(path: Path) -> None:
    study = load_yaml(path, Study)
    plan = make_plan(study, load_changes(study.changes, path.parent), path.parent)
    spec = Spec(study, (), path.parent, path.parent / "run", 1)
    orders = {cell.folder: partial(Order, cell, Hashes("", cell.folder), {}) for cell in plan}
    needs = dict.fromkeys(orders, frozenset[str]())
    handed = handed_out(Deadly(plan[1].folder), spec, orders, needs, Watcher(), 2)
    found = {one.cell.folder: one.result.error for one in handed}
    assert found.keys() == orders.keys()
    assert [folder for folder, error in found.items() if error] == [plan[1].folder]
    assert f"its process was lost {TRIES} times" in found[plan[1].folder]


def test_the_first_event_of_every_cell_is_sent_however_soon_it_comes() -> None:
    sent: list[Any] = []
    teller = Teller(SimpleNamespace(put=sent.append))
    for cell in ("one", "other"):
        teller.turn(cell)  # type: ignore[arg-type]
        for number in (1, 2):
            teller.step({"step": number})
    assert [(told.cell, told.value["step"]) for told in sent] == [("one", 1), ("other", 1)]
