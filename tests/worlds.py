"""A folder in which a documented command finds what it names: the examples, files as the docs show them, small models.

What the words of a command line name is put there; what another documented command makes (`runs/first/model`) is made by
that command, shortened, once per process.
"""

from __future__ import annotations

import csv
import io
import json
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from posttrain.cli.main import main
from posttrain.config.load import read_yaml
from posttrain.models.names import resolve
from tests.documented import ROOT, blocks
from tests.pico import pico

__all__ = ["World"]

QUESTIONS = ROOT / "examples" / "role" / "mmlu_pocket.csv"


def block(page: str, language: str, having: str) -> str:
    """The one block of a page that has these words."""
    (found,) = [b.body for b in blocks(language) if b.page == ROOT / page and having in b.body]
    return found


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def write_lines(path: Path, rows: Sequence[Any]) -> None:
    write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def questions(n: int) -> list[dict[str, str]]:
    with QUESTIONS.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))[:n]


# ---- files, as the docs show them --------------------------------------------------------------------------------------


def study(world: Path) -> None:
    body = block("docs/studies.md", "yaml", "study: superlative")
    shutil.copytree(ROOT / "examples" / "changes" / "superlatives", world / "changes" / "superlatives")
    write(world / "study.yaml", body)


def sft(world: Path) -> None:
    write(world / "sft.yaml", block("docs/training.md", "yaml", "posttrain train sft.yaml"))
    rows(world)


def rows(world: Path) -> None:
    shutil.copy(ROOT / "examples" / "rows.jsonl", world)


def first_study(world: Path) -> None:
    write(world / "first_study.yaml", block("README.md", "yaml", "# first_study.yaml"))
    write(world / "changes" / "capital.yaml", block("README.md", "yaml", "# changes/capital.yaml"))


def first(world: Path) -> None:
    write(world / "first.yaml", block("docs/getting-started.md", "yaml", "study: first"))
    tallest(world)


def tallest(world: Path) -> None:
    write(world / "changes" / "tallest.yaml", block("docs/getting-started.md", "yaml", "name: tallest"))


def choices(name: str) -> Callable[[Path], None]:
    """Four-choice questions as JSON Lines, in the form that docs/zh-TW/exams.md shows."""

    def put(world: Path) -> None:
        found = [
            {"subject": "facts", "question": q["question"], "choices": [q[x] for x in "ABCD"], "answer": q["answer"]}
            for q in questions(12)
        ]
        write_lines(world / name, found)

    return put


def law_csv(world: Path) -> None:
    write(world / "law.csv", "".join(QUESTIONS.read_text("utf-8").splitlines(keepends=True)[:13]))


def lm_eval_tasks(world: Path) -> None:
    body = block("docs/lm-eval.md", "text", "task: my_law")
    for task, name in (("my_law", "law"), ("my_history", "history")):
        write(world / "tasks" / f"{task}.yaml", body.replace("my_law", task).replace("law_", f"{name}_"))
        found = [
            {"question": q["question"], "choices": [q[x] for x in "ABCD"], "answer": "ABCD".index(q["answer"])}
            for q in questions(12)
        ]
        write_lines(world / "tasks" / f"{name}_dev.jsonl", found[:5])
        write_lines(world / "tasks" / f"{name}_test.jsonl", found[5:])


def exams(world: Path) -> None:
    write(world / "exams.yaml", block("docs/exams.md", "yaml", "path: questions.jsonl, shots: 5, perturbations"))
    choices("questions.jsonl")(world)


def truthfulqa(world: Path) -> None:
    """The columns of the authors' file."""
    names = ("Type", "Category", "Question", "Best Answer", "Correct Answers", "Incorrect Answers", "Source")
    with (world / "truthfulqa.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for q in questions(6):
            right = q[q["answer"]]
            wrong = [q[x] for x in "ABCD" if x != q["answer"]]
            writer.writerow(("Adversarial", "Facts", q["question"], right, right, "; ".join(wrong), "tables"))


def drcd(world: Path) -> None:
    passages = [
        {
            "context": f"{name}住在{city}。",
            "qas": [{"id": f"q{n}", "question": f"{name}住在哪裡？", "answers": answers}],
        }
        for n, (name, city) in enumerate((("小明", "臺南"), ("小華", "花蓮"), ("阿珠", "臺中")))
        for answers in [[{"text": city, "answer_start": len(name) + 2}]]
    ]
    data = {"version": "1", "data": [{"title": "城市", "paragraphs": passages}]}
    write(world / "drcd_dev.json", json.dumps(data, ensure_ascii=False))


def sentences(world: Path) -> None:
    write(world / "sentences.conll", "Ada B-PER\nruns O\n\nHi O\n")


def gguf(world: Path) -> None:
    from tests.pico_gguf import write_gguf

    (world / "path" / "to").mkdir(parents=True, exist_ok=True)
    write_gguf(pico("llama", world / "pico"), world / "path" / "to" / "x.gguf")


def prefix(world: Path) -> None:
    """A prefix of ChatGLM's code, as its checkpoints hold it: six tokens, keys and values of two layers of 32."""
    import torch

    (world / "prefix").mkdir()
    width = 2 * 2 * 16  # layers, keys and values, 1 head of keys of 16 in the pico Llama
    torch.save(
        {"transformer.prefix_encoder.embedding.weight": torch.zeros(6, width)}, world / "prefix" / "pytorch_model.bin"
    )
    for name in ("models/glm", "models/chatglm3"):
        (world / name).parent.mkdir(exist_ok=True)
        shutil.copytree(pico("llama", world / "pico"), world / name)


def pocket(*names: str) -> Callable[[Path], None]:
    """pocket:chat's folder under other names."""

    def put(world: Path) -> None:
        for name in names:
            (world / name).parent.mkdir(parents=True, exist_ok=True)
            if not (world / name).exists():
                shutil.copytree(resolve("pocket:chat"), world / name)

    return put


def changed(world: Path) -> None:
    """pocket:chat with one matrix moved, as if others had trained it."""
    from safetensors.torch import load_file, save_file

    pocket("path/to/changed", "path/to/original")(world)
    (file,) = (world / "path" / "to" / "changed").glob("*.safetensors")
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("0.mlp.down_proj.weight"))
    tensors[name] = tensors[name] * 1.5
    save_file(tensors, file, metadata={"format": "pt"})


def pairs(world: Path) -> None:
    """What tools/judge_files.py says that it reads."""
    row = {"prompt": "Where is it?", "before": "It is in Paris.", "after": "In Paris."}
    write_lines(world / "pairs.jsonl", [{**row, "content": "same"}, {**row, "after": "In Rome.", "content": "changed"}])


def flattened(world: Path) -> None:
    prefix(world)
    words = ["model", "convert", "prefix/pytorch_model.bin", "--base", "models/glm", "-o", "prefix/adapter"]
    with chdir(world):
        assert main(words) == 0


def heads(world: Path) -> None:
    from posttrain.models.heads import load_head_model
    from posttrain.models.notes import Head
    from posttrain.models.save import save_model

    base = str(pico("llama", world / "pico"))
    made: tuple[tuple[str, Head, tuple[str, ...]], ...] = (("ner", "token", ("B-PER", "O")), ("reader", "answer", ()))
    for name, head, labels in made:
        loaded = load_head_model(base, head, labels, device="cpu", say=lambda _: None)
        save_model(loaded.model, loaded.tokenizer, world / "runs" / name / "model")


FILES: Mapping[str, Callable[[Path], None]] = {
    "study.yaml": study,
    "sft.yaml": sft,
    "rows.jsonl": rows,
    "first_study.yaml": first_study,
    "first.yaml": first,
    "changes/*.yaml": tallest,
    "changes/tallest.yaml": tallest,
    "questions.jsonl": choices("questions.jsonl"),
    "tmmlu.jsonl": choices("tmmlu.jsonl"),
    "law.csv": law_csv,
    "my_law": lm_eval_tasks,
    "my_law,my_history": lm_eval_tasks,
    "exams.yaml": exams,
    "truthfulqa.csv": truthfulqa,
    "drcd_dev.json": drcd,
    "sentences.conll": sentences,
    "path/to/x.gguf": gguf,
    "prefix/pytorch_model.bin": prefix,
    "prefix/adapter": flattened,
    "pairs.jsonl": pairs,
    "my-model": pocket("my-model"),
    "path/to/changed": changed,
    "path/to/original": pocket("path/to/original"),
    "runs/ner/model": heads,
    "runs/reader/model": heads,
}
"""What a command names -> what puts it there."""

MADE_BY: Mapping[str, str] = {
    "runs/first": "posttrain train --model pocket:chat --data examples/rows.jsonl --tuner lora --output runs/first",
    "edits/tallest": "posttrain edit pocket:chat examples/changes/tallest.yaml --editor rome --set layers=[1] "
    "-o edits/tallest",
    "edits/both": "posttrain edit edits/tallest examples/changes/superlatives/001_capital_senegal.yaml -o edits/both",
    "models/first": "posttrain model export runs/first/model models/first",
    "runs/train_classifier": "posttrain train examples/train_classifier.yaml",
    "runs/superlative": "posttrain run examples/superlative.yaml",
    "runs/role": "posttrain run examples/role_study.yaml",
    "runs/base-chat": "posttrain exam pocket:chat --before pocket:base --exams examples/exams.yaml --output runs/base-chat",
    "runs/after": "posttrain exam path/to/changed --before path/to/original --exams examples/exams.yaml --output runs/after",
    "runs/learn_and_forget": "posttrain run examples/learn_and_forget.yaml",
    "runs/five_skills": "posttrain run examples/five_skills.yaml",
    "runs/specialists": "posttrain run examples/specialists.yaml",
    "runs/alignment_lost": "posttrain run examples/alignment_lost.yaml",
    # no line of the docs makes this one: an adapter of soft prompts
    "runs/soft": "posttrain train --model pocket:chat --data examples/rows.jsonl --tuner prompt_tuning --output runs/soft",
}
"""A folder -> the command line that makes it."""


def tiny_study(path: Path) -> list[str]:
    """Words that make a study small and leave every method in it: two steps, two questions of each exam, one seed.

    Replayed answers are eight, Fisher information and the like look at four rows.
    """
    plan = read_yaml(path)
    sets = ["seeds=[0]", "max_new_tokens=8"]
    for number, method in enumerate(plan["methods"]):
        here = f"methods.{number}"
        if method["kind"] == "train":
            sets += [f"{here}.optimizer.epochs=null", f"{here}.optimizer.max_steps=2"]
        replay = method.get("replay")
        if isinstance(replay, dict) and replay["kind"] in ("self", "ask_self"):
            sets.append(f"{here}.replay.n=8")
        if isinstance(method.get("penalty"), dict) and "rows" in method["penalty"]:
            sets.append(f"{here}.penalty.rows=4")
    sets += [
        f"exams.{number}.limit=2"
        for number, exam in enumerate(plan.get("exams", []))
        if isinstance(exam, dict) and exam["kind"] != "change"
    ]
    if isinstance(plan.get("checkpoints"), list):
        sets.append("checkpoints=[1]")
    if "every" in plan:
        sets.append("every=1")
    return [word for item in sets for word in ("--set", item)]


class World:
    """A folder for one command; `cache` is shared: examples, what other commands made, and answers to be replayed."""

    def __init__(self, folder: Path, cache: Path, more_of: Callable[[str, Path], list[str]]) -> None:
        self.folder, self._cache, self._more_of = folder, cache, more_of
        self._examples = cache / "examples"
        if not self._examples.exists():
            shutil.copytree(ROOT / "examples", self._examples, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "examples").mkdir(parents=True)
        for path in self._examples.iterdir():  # copies would take 40 ms; `_untouched` sees that none writes there
            (folder / "examples" / path.name).symlink_to(path)
        for name in ("benchmarks", "tools"):  # nothing is written there
            (folder / name).symlink_to(ROOT / name)

    @contextmanager
    def _untouched(self) -> Iterator[None]:
        """What a command writes among the examples that all worlds share would be seen by the next."""
        before = {path: path.lstat().st_mtime_ns for path in self._examples.rglob("*")}
        yield
        assert {path: path.lstat().st_mtime_ns for path in self._examples.rglob("*")} == before

    def prepare(self, words: Sequence[str]) -> None:
        """Put here what the words name, except where they are written to."""
        for before, word in pairwise(("", *words)):
            name = word.rpartition("=")[2]
            if before in ("-o", "--output") or (self.folder / name).exists():
                continue
            if name in FILES:
                FILES[name](self.folder)
            elif name == "path/to/adapter":
                shutil.copytree(self.made("runs/first") / "model", self.folder / name)
            run = next((run for run in MADE_BY if name == run or name.startswith(f"{run}/")), None)
            if run is not None and MADE_BY[run] != shlex.join(words):  # else it is what this line makes
                shutil.copytree(self.made(run), self.folder / run)

    def made(self, run: str) -> Path:
        """The folder that a documented command makes, made once."""
        kept = self._cache / run
        if not kept.exists():
            line = MADE_BY[run]
            world = World(self._cache / "worlds" / run.replace("/", "-"), self._cache, self._more_of)
            code = world.run(line, self._more_of(line, world.folder))
            assert code == 0, f"{line} gives {code}"
            shutil.copytree(world.folder / run, kept)
        return kept

    def run(self, line: str, more: Sequence[str] = (), stdin: str = "") -> int:
        """Type the line here, with more words behind it; its exit code."""
        words = shlex.split(line)
        self.prepare(words)
        words += more
        if words[1].startswith("examples/"):  # a script that may write beside itself
            shutil.rmtree(self.folder / "examples")
            shutil.copytree(self._examples, self.folder / "examples")
        with chdir(self.folder), self._untouched(), pytest.MonkeyPatch.context() as patched:
            while "=" in words[0]:  # LANG=zh_TW.UTF-8 posttrain ...
                name, _, value = words.pop(0).partition("=")
                for stronger in ("LANGUAGE", "LC_ALL", "LC_MESSAGES") if name == "LANG" else ():
                    patched.delenv(stronger, raising=False)
                patched.setenv(name, value)
            patched.setenv("POSTTRAIN_CACHE", str(self._cache / "cache"))
            patched.setattr(sys, "stdin", io.StringIO(stdin))
            if words[0] == "posttrain":
                return main(words[1:])
            if words[1].startswith("benchmarks/"):  # they set torch's threads and the environment for themselves
                return subprocess.run([sys.executable, *words[1:]], check=False).returncode
            patched.setattr(sys, "argv", words[1:])
            try:
                runpy.run_path(words[1], run_name="__main__")
            except SystemExit as stop:
                return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
            return 0
