"""Update or check the catalogue of posttrain's messages in Traditional Chinese: `python tools/messages.py [--check]`.

It finds every text of `src/posttrain` that is shown to people (`message_texts.py`). It adds new messages to the `.po`
file with an empty translation, removes messages that the source no longer has, and lists messages without a translation
with their locations. Then it compiles the `.mo` file that the package reads. With --check nothing is written, and the
exit code is 1 when something is missing or wrong.

To translate, write the `msgstr` into `src/posttrain/locale/zh_TW/LC_MESSAGES/messages.po`, and run this again. A
translation must have all placeholders of its message, such as `{path}`. Use the words of the table in
`docs/zh-TW/words.md`. `REFUSED` lists words that are not used.
"""

from __future__ import annotations

import argparse
import io
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

from babel.messages import Catalog
from babel.messages.pofile import read_po, write_po

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from posttrain.registry import SEAMS, listed  # noqa: E402  (run as a file, the root is no path)
from tools.message_texts import Found, escaped, messages_in, placeholders  # noqa: E402

SOURCE = ROOT / "src" / "posttrain"
FOLDER = SOURCE / "locale" / "zh_TW" / "LC_MESSAGES"
PO, MO = FOLDER / "messages.po", FOLDER / "messages.mo"

HEADER = (
    "Language: zh_TW\nMIME-Version: 1.0\nContent-Type: text/plain; charset=UTF-8\nContent-Transfer-Encoding: 8bit\n"
)

OTHER_ROOMS = ("reports",)
"""The folders of the source that are left out: the report has its own catalogues."""

REFUSED = {
    "變更": "改變（change）；設定或檔案則用「改動」",
    "普遍性": "推廣性（generality）",
    "外洩": "外溢（leak）",
    "鄰近事實": "相鄰事實（neighbouring）",
    "無關問題": "不相關（unrelated）",
    "學到與忘掉": "學到與遺忘（learned against forgotten）",
    "同型": "同句型（same pattern）",
    "保住": "守住（kept）",
    "調法": "微調方式（tuner）",
    "調整器": "微調方式（tuner）",
    "重播": "複習（replay）",
    "權杖": "詞元（token）",
    "令牌": "詞元（token）",
    "文件夾": "資料夾",
    "文件夹": "資料夾",
    "目錄": "資料夾",
    "默認": "預設",
    "缺省": "預設",
    "內存": "記憶體",
    "程序": "程式、行程",
    "網絡": "網路",
    "數據": "資料",
    "信息": "訊息、資訊",
    "運行": "執行",
    "加載": "載入",
    "字符": "字元",
    "字段": "欄位",
    "用戶": "使用者",
    "支持": "支援",
    "命令行": "命令列",
    "服務器": "伺服器",
    "緩存": "快取",
    "進程": "行程",
    "線程": "執行緒",
    "代碼庫": "原始碼",
    "優化": "最佳化",
    "適配器": "adapter",
    "噪聲": "雜訊",
    "視頻": "影片",
}
"""Chinese word that is not used -> the word to use instead: one word for one thing, and the words of Taiwan."""


def source_messages() -> list[Found]:
    """Return every message of the source, in the order of the files, and what `posttrain list` says of each kind."""
    files = [path for path in SOURCE.rglob("*.py") if path.relative_to(SOURCE).parts[0] not in OTHER_ROOMS]
    kinds = (row for seam in SEAMS for row in listed(seam))
    summaries = (Found(escaped(row.summary), f"{row.module.replace('.', '/')}.py", 1) for row in kinds)
    return [*messages_in(SOURCE, files), *(f._replace(file=f.file.removeprefix("posttrain/")) for f in summaries)]


def read_catalogue() -> dict[str, str]:
    """Return message -> translation from the `.po` file. A message without a translation has ""."""
    if not PO.is_file():
        return {}
    with PO.open("rb") as file:
        return {str(one.id): str(one.string) for one in read_po(file, locale="zh_TW") if one.id}


def catalogue_of(found: Sequence[Found], translations: dict[str, str]) -> Catalog:
    """Return the catalogue of the messages found, with the translations that are known."""
    catalogue = Catalog(locale="zh_TW", project="posttrain", version="", fuzzy=False, charset="utf-8")
    catalogue.header_comment = "# Traditional Chinese of posttrain; written by tools/messages.py, translated by hand."
    for one in found:
        catalogue.add(one.message, translations.get(one.message, ""), locations=[(one.file, 0)])
    return catalogue


def as_po(catalogue: Catalog) -> bytes:
    """Return the bytes of the `.po` file, without dates and line numbers, so that only changed messages change it."""
    file = io.BytesIO()
    write_po(file, catalogue, width=120, omit_header=True, include_lineno=False)
    lines = "".join(f'"{line}\\n"\n' for line in HEADER.splitlines())
    header = f'msgid ""\nmsgstr ""\n{lines}\n'
    return f"{catalogue.header_comment}\n{header}{file.getvalue().decode('utf-8')}".encode()


def as_mo(translations: dict[str, str]) -> bytes:
    """Return the bytes of the `.mo` file of a catalogue. They are the same on every machine and at any time.

    Format: https://www.gnu.org/software/gettext/manual/html_node/MO-Files.html, without the hash table, which is
    optional.
    """
    pairs = sorted((one.encode(), two.encode()) for one, two in {"": HEADER, **translations}.items() if two)
    texts = [one for one, _ in pairs] + [two for _, two in pairs]
    at = 7 * 4 + len(texts) * 8
    places = []
    for text in texts:
        places += [len(text), at]
        at += len(text) + 1
    table = len(pairs) * 8
    head = struct.pack("<7I", 0x950412DE, 0, len(pairs), 28, 28 + table, 0, 28 + 2 * table)
    return head + struct.pack(f"<{len(places)}I", *places) + b"".join(text + b"\0" for text in texts)


def faults(found: Sequence[Found], translations: dict[str, str]) -> list[str]:
    """Return all faults with their locations: missing or wrong translations, and messages that left the source."""
    told = []
    for one in found:
        translation = translations.get(one.message, "")
        at = f"src/posttrain/{one.file}:{one.line}" if one.file != "others" else "tools/message_texts.py (OTHERS)"
        if not translation:
            told.append(f"{at}: not translated: {one.message!r}")
            continue
        if sorted(placeholders(one.message)) != sorted(placeholders(translation)):
            told.append(f"{at}: other placeholders than {one.message!r}: {translation!r}")
        told += [
            f"{at}: '{word}' is not used, but {REFUSED[word]}: {translation!r}" for word in refused_in(translation)
        ]
    there = {one.message for one in found}
    told += [f"messages.po: no longer in the source: {message!r}" for message in translations if message not in there]
    return told


def refused_in(text: str) -> list[str]:
    """Return the refused words that a text has."""
    return [word for word in REFUSED if word in text]


def main(arguments: Sequence[str] | None = None) -> int:
    """Update the catalogue, or only check it. Return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when something is to be done")
    check: bool = parser.parse_args(arguments).check
    found, translations = source_messages(), read_catalogue()
    told = faults(found, translations)
    if check:
        if not MO.is_file() or MO.read_bytes() != as_mo(translations):
            told.append("messages.mo is not that of messages.po: run python tools/messages.py")
    else:
        told = [line for line in told if not line.startswith("messages.po: no longer")]
        kept = {one.message: translations.get(one.message, "") for one in found}
        FOLDER.mkdir(parents=True, exist_ok=True)
        PO.write_bytes(as_po(catalogue_of(found, kept)))
        MO.write_bytes(as_mo(read_catalogue()))
    for line in told:
        print(line)
    print(f"{len(found)} messages, {sum(not translations.get(one.message) for one in found)} without a translation")
    return 1 if told else 0


if __name__ == "__main__":
    raise SystemExit(main())
