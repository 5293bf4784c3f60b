"""Writes aligned English and Spanish verses as JSON lines: verse, english, spanish.

    python examples/verses/verses.py FILE [VERSES]

Both texts are in the public domain: the World English Bible and Reina-Valera 1909, Debian packages
sword-text-web and sword-text-sparv, read by mod2imp of libsword-utils. VERSES is how many to write,
for a quick try; all by default.
"""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
from itertools import islice
from pathlib import Path

MODULES = {"english": "engWEB2015eb", "spanish": "spaRV1909eb"}
_VERSE = re.compile(r"\$\$\$(.+ [1-9]\d*:[1-9]\d*)\n")
_BESIDE = re.compile(r"<(note|title)\b[^>]*>.*?</\1>", re.DOTALL)  # not the verse's own words
_TAG = re.compile(r"<[^>]*>")


def verses(module: str) -> dict[str, str]:
    """Return the verses of an installed SWORD module by their names, e.g. `Genesis 1:1`."""
    done = subprocess.run(["mod2imp", module], capture_output=True, text=True, check=True)
    pieces = _VERSE.split(done.stdout)
    found = {}
    for name, raw in zip(pieces[1::2], pieces[2::2], strict=True):
        text = _TAG.sub("", _BESIDE.sub(" ", raw.partition("$$$")[0]))
        if text := " ".join(html.unescape(text).split()):
            found[name] = text
    return found


def write(path: Path, most: int | None = None) -> int:
    """Write the verses that both have; return how many."""
    english, spanish = (verses(module) for module in MODULES.values())
    both = [name for name in english if name in spanish]
    with path.open("w", encoding="utf-8") as file:
        for name in islice(both, most):
            row = {"verse": name, "english": english[name], "spanish": spanish[name]}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return len(both[:most])


def main() -> None:
    """Do it for the words of the command line."""
    path, *most = sys.argv[1:] or [""]
    if not path or len(most) > 1 or not all(word.isdigit() for word in most):
        sys.exit(__doc__)
    print(f"{write(Path(path), *(int(word) for word in most)):,} verses")


if __name__ == "__main__":
    main()
