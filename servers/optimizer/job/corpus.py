"""Real English text that is on every machine: paragraphs of Python's own reference manual."""

from __future__ import annotations

from pydoc_data import topics


def texts(count: int) -> list[str]:
    """Return `count` different paragraphs of 40 to 1,500 characters, always the same ones.

    They are spread evenly over the alphabetical order of all, so that every topic has its share.
    """
    found = set()
    for text in topics.topics.values():
        for paragraph in text.split("\n\n"):
            line = " ".join(paragraph.split())
            if 40 <= len(line) <= 1500 and line[0].isupper() and line.endswith("."):
                found.add(line)
    ordered = sorted(found)
    count = min(count, len(ordered))
    return [ordered[i * len(ordered) // count] for i in range(count)]
