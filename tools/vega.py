"""Write the JavaScript that draws the report's charts: Vega, Vega-Lite and Vega-Embed as vl-convert bundles them.

    python tools/vega.py [--output FILE]

The file is made once per version and is part of the source, because bundling takes several seconds. A test fails when
the file is old.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import vl_convert

FILE = Path(__file__).parents[1] / "src" / "posttrain" / "reports" / "templates" / "vega.js"
LICENCE = "BSD-3-Clause, University of Washington Interactive Data Lab and contributors, https://vega.github.io"


def versions() -> str:
    """Return the names and versions of the bundled libraries, as in the first line of the script."""
    lite = vl_convert.get_vegalite_versions()[-1]
    return f"Vega {vl_convert.get_vega_version()}, Vega-Lite {lite}, Vega-Embed {vl_convert.get_vega_embed_version()}"


def bundle() -> str:
    """Return the script. It defines `vegaEmbed` and no other name."""
    code = vl_convert.javascript_bundle("globalThis.vegaEmbed = vegaEmbed;").strip()
    return f"/*! {versions()}; {LICENCE} */\n(() => {{{code}\n}})();\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=FILE, help="the file to write; the report's own by default")
    file = parser.parse_args().output
    file.write_text(bundle(), encoding="utf-8")
    print(f"{file}: {file.stat().st_size:,} bytes, {versions()}")
