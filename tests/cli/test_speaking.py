"""The command line in Traditional Chinese: help, errors, progress, tables; JSON and exit codes as in English."""

from __future__ import annotations

import json
import logging
import re
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from posttrain import language
from posttrain.cli import main as cli
from posttrain.cli.options import take_global
from posttrain.cli.plain import column, fitted
from posttrain.cli.run import Watcher
from posttrain.data.readers import ReadResult
from posttrain.models.meter import Doing
from posttrain.studies.events import ExamEvent
from posttrain.training.progress import PlainProgress
from tests.training.tiny import PicoPath

ENGLISH = re.compile(r"\b[A-Za-z]{2,} [a-z]{2,} [a-z]{2,} [a-z]{2,}\b")
"""Four English words in a row: a sentence that nobody has translated."""

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def english_again() -> Iterator[None]:
    """Neither the language nor --quiet of one test is there in the next, of this file or another."""
    take_global([])
    language.speak("en")
    yield
    take_global([])
    language.speak("en")


def run(capsys: Capture, *words: str) -> tuple[int, str, str]:
    code = cli.main(list(words))
    out = capsys.readouterr()
    return code, out.out, out.err


SUBVERBS = [["data", "show"], ["data", "check"], ["data", "make", "changes"], ["model", "show"], ["model", "convert"]]


@pytest.mark.parametrize("words", [[], *([verb] for verb in cli.VERBS), *SUBVERBS], ids=" ".join)
def test_help(words: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, english, _ = run(capsys, *words, "--help")
    code_zh, chinese, _ = run(capsys, "--language", "zh-TW", *words, "--help")
    assert code == code_zh == 0
    assert not ENGLISH.findall("".join(line for line in chinese.splitlines() if "用法：" not in line))
    ends = {0: "從這裡開始：", 1: "到處可用："}.get(len(words), "")
    for word in ("用法：", "選項", "顯示這份說明後結束。", ends):
        assert word in chinese
    # options, their values and what is typed stay as they are
    typed = r"--[\w-]+|<\w+>|\b[A-Z]{3,}\b|\.yaml"
    assert set(re.findall(typed, english)) <= set(re.findall(typed, chinese)) | {"OPTIONS", "COMMAND", "ARGS", "JSON"}
    assert run(capsys, *words, "--help")[1] == english, "one language after the other in one process"


ALL_VERBS = [
    [],
    *([verb] for verb in cli.VERBS),
    *(["data", one] for one in ("show", "check", "make")),
    *(["data", "make", one] for one in ("changes", "prompts")),
    *(["model", one] for one in ("show", "convert", "export", "verify")),
]


@pytest.mark.parametrize("words", ALL_VERBS, ids=lambda words: " ".join(words) or "posttrain")
@pytest.mark.parametrize("language_of_help", ["en", "zh-TW"])
def test_help_cuts_nothing(
    words: list[str], language_of_help: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """rich ends with "…" what does not fit; Chinese, which has no spaces, hardly ever fits a column."""
    said: dict[int, str] = {}
    names: dict[int, set[str]] = {}
    for width in (60, 80, 100, 400):
        monkeypatch.setenv("COLUMNS", str(width))
        code, out, _ = run(capsys, *words, "--help", "--language", language_of_help)
        assert code == 0
        assert "…" not in out
        said[width] = "".join(sorted(re.sub(r"[\s│─╭╮╰╯]", "", out)))
        names[width] = set(re.findall(r"^│ (?:\* )? *(--[\w-]+)", out, flags=re.M))
    assert said[60] == said[80] == said[100] == said[400], "every letter of a wide terminal is there on a narrow one"
    assert names[60] == names[80] == names[100] == names[400] >= {"--help"}, "names are whole, to be copied"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run"], "缺少引數 'STUDY.yaml'。"),
        (["trin"], "沒有這個指令 'trin'。是不是想寫 'train'？"),
        (["run", "--foo"], "沒有這個選項：--foo"),
        (["exam", "m", "--limit", "0"], "'--limit' 的值無效：必須大於等於 1"),
        (["exam", "m", "--limit", "x"], "'--limit' 的值無效：必須是整數"),
        (["exam", "m", "--match", "x"], "'--match' 的值無效：'x' 不在 'says', 'first_sentence', 'exact' 之中。"),
        (["run", "a.yaml", "b.yaml"], "多出來的引數（b.yaml）"),
        (["run", "a.yaml", "--only"], "選項 '--only' 需要一個引數。"),
        (["data", "check", "x.jsonl"], "缺少選項 '--model'"),
    ],
)
def test_usage_errors(words: list[str], expected: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("LANGUAGE", "zh_TW")
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert expected in err
    assert "錯誤" in err
    assert not ENGLISH.findall(err)
    usage = "用法：" in err
    monkeypatch.setenv("LANGUAGE", "en")
    code, _, err = run(capsys, *words)
    assert code == 2
    assert "Error" in err
    assert ("Usage:" in err) is usage
    assert not re.search(r"[\u4e00-\u9fff]", err)


@pytest.mark.parametrize(
    ("environment", "words", "chinese"),
    [
        ({"LANG": "zh_TW.UTF-8"}, [], True),
        ({"LANG": "zh_CN.UTF-8"}, [], False),
        ({"LANG": "zh_TW.UTF-8"}, ["--language", "en"], False),
        ({"LANGUAGE": "zh_TW"}, ["--language=en"], False),
        ({"LANG": "en_US.UTF-8"}, ["--language=zh-TW"], True),
        ({"LC_ALL": "C", "LANGUAGE": "zh_TW"}, [], False),
        ({"LC_ALL": "C"}, ["--language", "zh_Hant"], True),
        ({"LANG": "en_US.UTF-8"}, ["-l", "zh-TW"], True),
        ({"LANG": "zh_TW.UTF-8"}, ["-l", "en"], False),
    ],
    ids=str,
)
def test_who_decides(
    environment: dict[str, str], words: list[str], chinese: bool, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    code, _, err = run(capsys, "run", "nowhere.yaml", *words)
    assert code == 3
    assert err.startswith("nowhere.yaml：沒有這個檔案；找過" if chinese else "nowhere.yaml: no such file; looked in")


@pytest.mark.parametrize("words", [["--language", "fr"], ["--language"], ["--language="]])
def test_a_language_that_is_not_there(words: list[str], capsys: Capture) -> None:
    code, _, err = run(capsys, "run", "x.yaml", *words)
    assert code == 2
    assert "known: en, zh-TW" in err


def test_every_problem_of_a_study(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        "study: x\nmodels: [pocket:chat]\nmethods:\n"
        "  - {name: a, kind: trian}\n"
        "  - {name: b, kind: train, tuner: {kind: lora, rank: -3, ranks: 2}}\n"
        "seeds: {}\noptimiser: 3\n",
        encoding="utf-8",
    )
    code, out, err = run(capsys, "run", str(path), "--language", "zh-TW", "--json")
    assert code == 2
    causes = [problem["cause"] for problem in json.loads(out)["problems"]]
    assert causes[1] == "methods.0: unknown method 'trian'; did you mean 'train'?"
    lines = [line.removeprefix(f"{path}") for line in err.splitlines()]
    assert set(lines) >= {
        ":4：methods.0：不認得的 method 'trian'；是不是想寫 'train'？",
        ":5：methods.1.tuner.rank：必須大於等於 1，卻是 -3",
        ":5：不認得的鍵 'ranks'；是不是想寫 'rank'？",
        ":6：seeds：這裡要寫清單",
    }
    assert any(line.startswith(":7：不認得的鍵 'optimiser'；可用的鍵：study, ") for line in lines)
    assert not ENGLISH.findall(err)


def test_training_is_told_in_chinese(
    tmp_path: Path, pico_path: PicoPath, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Progress and errors; what is printed as JSON is the same in both languages."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LANGUAGE", "zh_TW")
    talk = [{"role": "user", "content": "no such file"}, {"role": "assistant", "content": "loading it"}]
    Path("rows.jsonl").write_text(json.dumps({"messages": talk}) + "\n", encoding="utf-8")
    words = ["train", "--model", str(pico_path("llama")), "--data", "rows.jsonl", "--tuner", "lora"]
    words += ["--set", "optimizer.max_steps=1"]
    code, out, err = run(capsys, *words, "--output", "first", "--json")
    assert code == 0
    assert set(json.loads(out)) >= {"output", "steps", "loss_nats", "stopped"}
    assert "rows.jsonl：讀了 1 列，略過 0 列不能用的" in err
    assert re.search(r"[\d,]+ 個參數中有 [\d,]+ 個會動（[\d.]+%）", err)
    assert re.search(r"^第 1/1 步  損失 [\d.]+  每秒 [\d,]+ 個詞元  [\d.]+ GiB  剩 0 秒$", err, flags=re.M)
    assert "已儲存在 first/model" in err
    code, out, err = run(capsys, *words, "--output", "first")
    assert (code, out) == (0, "first/model\n")
    assert "first 已經完成（1 步）；--restart 會重新訓練" in err
    code, out, _ = run(capsys, *words, "--output", "other", "--dry-run")
    assert code == 0
    assert out.splitlines()[0].startswith("資料列      1 列，")
    assert not ENGLISH.findall(out)
    code, english, _ = run(capsys, "data", "check", "rows.jsonl", "-m", str(pico_path("llama")), "--json")
    code_en, chinese, _ = run(
        capsys, "data", "check", "rows.jsonl", "-m", str(pico_path("llama")), "--json", "--language", "en"
    )
    assert code == code_en
    assert english == chinese
    # what users wrote is not translated, though it is what a message says
    code, out, _ = run(capsys, "data", "show", "rows.jsonl", "-m", str(pico_path("llama")))
    assert code == 0
    assert "no such file" in out
    assert "loading it" in out


def test_what_is_logged_and_warned_is_said(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    cli.main(["list", "tuners", "--json", "--language", "zh-TW"])
    capsys.readouterr()
    logging.getLogger("posttrain.models.gguf").warning("loading x.gguf")
    ours = str(Path(cli.__file__))
    assert warnings.formatwarning("no such file", UserWarning, ours, 3) == "沒有這個檔案\n"
    assert "UserWarning: no such file" in warnings.formatwarning("no such file", UserWarning, "/elsewhere.py", 3)
    assert capsys.readouterr().err == "載入 x.gguf\n"
    cli.main(["list", "tuners", "--json", "--quiet"])
    capsys.readouterr()
    logging.getLogger("posttrain.models.gguf").warning("loading x.gguf")
    assert capsys.readouterr().err == ""


def test_progress_speaks(capsys: Capture) -> None:
    language.speak("zh-TW")
    progress = PlainProgress()
    progress.say("pocket:chat: 12 of 34 parameters move (35.29%)")
    progress.start(0, 9)
    entry = {"step": 1, "loss_nats": 1.25, "loss_new_nats": 1.5, "tokens_per_s": 2048.0, "peak_gib": 0.5}
    progress.step(entry)
    progress.step({"step": 2, "validation_loss_nats": 0.75})
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "pocket:chat：34 個參數中有 12 個會動（35.29%）"
    assert lines[1].startswith("第 1/9 步  損失 1.2500  新資料列 1.5000  每秒 2,048 個詞元  0.50 GiB  剩 ")
    assert lines[2].startswith("第 2/9 步  驗證損失 0.7500  剩 ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            str(Doing("measuring Fisher information", 3, 40, "rows", 2.0, 100, 76.0)),
            "正在量 Fisher 資訊：3/40 列  每秒 50 個詞元  剩 1 分 16 秒",
        ),
        (
            str(Doing("answering prompts for replay", 12, 328, "prompts", left_s=60.0, at_most=True)),
            "正在回答複習用的提示：12/328 個提示  最多再 1 分 00 秒",
        ),
        ("12/40  2,500 tokens/s  1 h 02 min left", "12/40  每秒 2,500 個詞元  剩 1 小時 02 分"),
        ("measuring drift: 40 probes", "正在量漂移：40 題"),
        ("stopped while measuring drift (3 of 40 probes)", "在「正在量漂移」時停止（40 題中完成 3 題）"),
        (
            "format   " + ReadResult([], 4, 0, [], {"Alpaca": 3, "graded answers": 1}).recognised(),
            "格式     Alpaca 3 列，評過的回答 1 列",
        ),
        (
            "3 of 40 common tensors differ; 2 are only in one (a.b, c.d); outputs differ by 1.20% of their spread; "
            "the chat templates render otherwise",
            "40 個共有的張量中有 3 個不同；有 2 個只在其中一邊（a.b, c.d）；輸出相差 1.20%（相對於離散程度）；"
            "對話模板套用的結果不同",
        ),
        (
            "turn 1 (assistant) holds the control token '<|end|>' in its reasoning",
            "第 1 輪（assistant） 的 reasoning 含有控制詞元 '<|end|>'",
        ),
        ("the text of 'messages' is not valid JSON: Expecting value", "'messages' 的文字不是有效的 JSON：這裡要有值"),
        ("Value error, 'x' is not one of 'says', 'exact'.", "'x' 不在 'says', 'exact' 之中。"),
        ("another run (process 123) is working in this folder", "另一個執行（行程 123）正在使用這個資料夾"),
    ],
)
def test_texts_made_of_parts(text: str, expected: str) -> None:
    """What is put together of columns, parts and tables is found again, each part in its own words."""
    language.speak("zh-TW")
    assert language.translate(text) == expected


def test_steps_of_a_cell(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    language.speak("zh-TW")
    watcher = Watcher()
    now[0] += 30.0
    watcher.step({"step": 5, "steps": 10, "loss_nats": 1.5, "tokens_per_s": 2048.4, "wall_s": 185.0})
    now[0] += 30.0
    watcher.step({"step": 5, "tokens_per_s": 2048.4})
    assert capsys.readouterr().err.splitlines() == [
        "：第 5/10 步、損失 1.500、每秒 2,048 個詞元、剩 3 分 05 秒",
        "：第 5 步、每秒 2,048 個詞元",
    ]


def test_columns_of_a_terminal() -> None:
    filled = [len(column(text, 9)) - len(text) for text in ("abc", "詞元", "é", "e\u0301", "（）")]
    assert filled == [6, 5, 8, 8, 5]
    assert column("詞元", 6) == "詞元  "
    assert column("資料列資料列", 6) == "資料列資料列"
    assert fitted("ab詞元", 4) == "ab詞"
    assert fitted("ab詞元", 5) == "ab詞"
    assert fitted("abc", 9) == "abc"


def test_names_of_exams_and_points_are_not_translated(capsys: pytest.CaptureFixture[str]) -> None:
    """`change` is a word of the catalogue, too: that of `4 changes`."""
    language.speak("zh-TW")
    watcher = Watcher()
    watcher.label = "[1/5]"
    watcher.last = watcher.shown = float("-inf")
    watcher.exam(ExamEvent("m", "after-1-train", "change", done=0, total=0))
    assert "after-1-train | change" in capsys.readouterr().err
