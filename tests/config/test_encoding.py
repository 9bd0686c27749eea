"""The mend of a file that is not UTF-8 is a command that works, and whose copy is read as what it is."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.config.encoding import guess
from posttrain.data.readers import DataSource, read_records
from posttrain.errors import DataError

ROWS = "prompt,completion\n臺灣最高的山是哪一座,玉山\n台北在哪裡,在北部\n" * 3


@pytest.mark.parametrize(
    ("codec", "name", "command"),
    [
        ("big5", "cook.csv", "iconv -f BIG5 -t UTF-8 cook.csv > cook.utf8.csv"),
        ("utf-16", "cook.csv", "iconv -f UTF-16 -t UTF-8 cook.csv > cook.utf8.csv"),
        ("gb18030", "cook.tsv", "iconv -f GB18030 -t UTF-8 cook.tsv > cook.utf8.tsv"),
        ("big5", "my rows.csv", "iconv -f BIG5 -t UTF-8 'my rows.csv' > 'my rows.utf8.csv'"),
        ("big5", "食譜.yaml", "iconv -f BIG5 -t UTF-8 食譜.yaml > 食譜.utf8.yaml"),
        ("big5", "a/b.c/cook", "iconv -f BIG5 -t UTF-8 a/b.c/cook > a/b.c/cook.utf8"),
        ("big5", "cook.csv.gz", "gzip -dc cook.csv.gz | iconv -f BIG5 -t UTF-8 > cook.utf8.csv"),
    ],
)
def test_the_copy_keeps_the_ending(codec: str, name: str, command: str) -> None:
    text = "这里的山很高，他们说好的，我们去看看吧\n" * 3 if codec == "gb18030" else ROWS
    assert command in guess(text.encode(codec), name).mend


@pytest.mark.skipif(sys.platform == "win32", reason="no iconv there")
@pytest.mark.parametrize("name", ["cook.csv", "cook.csv.gz", "my cook.csv"])
def test_the_mend_does_what_it_says(tmp_path: Path, name: str) -> None:
    data = ROWS.encode("big5")
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    with pytest.raises(DataError) as caught:
        read_records(DataSource(path=str(tmp_path / name)))
    mend = caught.value.problems[0].mend
    command = mend.partition("or: ")[2].rstrip(")") if "or: " in mend else mend.partition("(")[2].rstrip(")")
    subprocess.run(["sh", "-c", command], check=True, timeout=240)
    copy = tmp_path / name.removesuffix(".gz").replace(".csv", ".utf8.csv")
    header = read_records(DataSource(path=str(copy)))
    assert len(header.records) == 8
