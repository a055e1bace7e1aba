"""List the tools, with a sentence each.

python -m tools
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from utils.command import new_parser, run_script

ROOT = Path(__file__).resolve().parent.parent


def tools() -> Iterator[tuple[str, str]]:
    """Name and sentence of every tool, from its source: nothing is imported, which would take seconds."""
    for path in sorted((ROOT / "tools").rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        if 'if __name__ == "__main__":' in source and path != Path(__file__).resolve():
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
            yield name, " ".join((ast.get_docstring(ast.parse(source)) or "").partition("\n\n")[0].split())


def main(argv: list[str] | None = None) -> None:
    """Print a line for every tool."""
    new_parser(__doc__).parse_args(argv)
    listed = dict(tools())
    width = max(map(len, listed))
    for name, sentence in listed.items():
        sys.stdout.write(f"python -m {name:<{width}}  {sentence}\n")
    sys.stdout.write("\nEach says more with --help.\n")


if __name__ == "__main__":
    sys.exit(run_script(main))
