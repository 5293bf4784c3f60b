"""The cleaning rules, on a batch at a time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmos.servers.storage.data.content import digests, has_text
from llmos.servers.storage.data.faults import bad_data, bad_option
from llmos.servers.storage.data.model import Cleaning, Mode, Rule
from llmos.servers.storage.data.report import Tally
from llmos.servers.storage.data.roles import Roles
from llmos.servers.storage.data.seen import Scratch, Seen
from llmos.servers.storage.extras import need

# Known elements only: `<3` and `a<b` are no markup.
_TAG = re.compile(
    r"<!--|<!doctype|</?(?:a|abbr|article|b|blockquote|body|br|center|code|div|em|font|form|h[1-6]|"
    r"head|hr|html|i|img|input|li|link|meta|ol|option|p|pre|script|section|select|small|span|"
    r"strong|style|sub|sup|table|tbody|td|textarea|th|thead|title|tr|tt|u|ul)(?:\s[^<>]*|/)?>",
    re.I,
)
_UNSEEN = ["script", "style", "head", "noscript", "template"]
_TAGS = 2000  # of one part of HTML
_LANGUAGE_CHARS = 1000  # a language shows early
_TEXT_RULES = (Rule.HTML, Rule.LANGUAGE, Rule.LENGTH)


def strip_html(text: str) -> str:
    """Return what a reader of this HTML would see, with its white space collapsed.

    The parser's time grows with the square of the nesting: text of very many tags is taken in
    parts.
    """
    parser = need("selectolax.lexbor").LexborHTMLParser
    tags = text.split("<")
    found: list[str] = []
    for at in range(0, len(tags), _TAGS):
        part = "<".join(tags[at : at + _TAGS])
        tree = parser(part if at == 0 else f"<{part}")
        tree.strip_tags(_UNSEEN)
        found += (tree.text(separator=" ") or "").split()
    return " ".join(found)


def language_of(text: str) -> str:
    """Return the ISO 639-1 code of a text's language, of 97 (M. Lui and T. Baldwin, ACL 2012)."""
    return str(need("py3langid.langid").classify(text[:_LANGUAGE_CHARS])[0])


class Cleaner:
    """Applies the rules in their order and counts what they find."""

    def __init__(self, cleaning: Cleaning, roles: Roles, tally: Tally, scratch: Scratch) -> None:
        """Check the options. Raises BAD_OPTION."""
        self._cleaning = cleaning
        self._roles = roles
        self._tally = tally
        if cleaning.max_chars and cleaning.max_chars < cleaning.min_chars:
            raise bad_option(
                f"max_chars {cleaning.max_chars} is below min_chars {cleaning.min_chars}."
            )
        for rule in _TEXT_RULES:
            if self._mode(rule) is Mode.APPLY and not roles.text:
                raise bad_option(
                    f"Rule {rule.name.lower()} needs a text column; name it: --text-column."
                )
        if self._mode(Rule.LANGUAGE) is Mode.APPLY and not cleaning.languages:
            raise bad_option("Rule language needs the languages to keep, e.g. --language en.")
        for rule in list(Rule)[1:]:
            watched = self._mode(rule) in (Mode.REPORT, Mode.APPLY)
            if watched and (roles.text or rule not in _TEXT_RULES):
                tally.watch(rule, self._mode(rule))
        self._exact = Seen(scratch, "exact")
        self._normal = Seen(scratch, "normal")

    def _mode(self, rule: Rule) -> Mode:
        return self._cleaning.mode(rule)

    def clean(self, batch: Any) -> Any:
        """Return what stays of a batch. Raises BAD_DATA_FILE for a missing label."""
        first = self._tally.rows_read + 1
        rows = np.arange(first, first + batch.num_rows)
        self._tally.rows_read += batch.num_rows
        batch, rows = self._labels(batch, rows)
        batch = self._html(batch, rows)
        for rule, look in (
            (Rule.EMPTY, self._empty),
            (Rule.LENGTH, self._length),
            (Rule.LANGUAGE, self._language),
            (Rule.EXACT_DUPLICATE, self._exact_duplicate),
            (Rule.NORMALIZED_DUPLICATE, self._normal_duplicate),
        ):
            mode = self._mode(rule)
            if mode in (Mode.REPORT, Mode.APPLY) and batch.num_rows:
                found = look(batch)
                if found is not None:
                    batch, rows = self._drop(rule, mode, batch, rows, np.asarray(found, bool))
        self._tally.rows_kept += batch.num_rows
        text, label = self._roles.text, self._roles.label
        self._tally.keep(
            self._lengths(batch) if text else None,
            [(c["values"], c["counts"]) for c in batch.column(label).value_counts().to_pylist()]
            if label
            else None,
        )
        return batch

    def _drop(self, rule: Rule, mode: Mode, batch: Any, rows: Any, found: Any) -> tuple[Any, Any]:
        self._tally.found(rule, rows[found])
        if mode is not Mode.APPLY or not found.any():
            return batch, rows
        return batch.filter(pa.array(~found)), rows[~found]

    def _labels(self, batch: Any, rows: Any) -> tuple[Any, Any]:
        label = self._roles.label
        if not label:
            return batch, rows
        column = batch.column(label)
        found = pc.is_null(column, nan_is_null=True).to_numpy(zero_copy_only=False)
        if not found.any():
            return batch, rows
        mode = self._cleaning.rules.get(Rule.MISSING_LABEL, Mode.UNSPECIFIED)
        if mode is Mode.UNSPECIFIED:
            raise bad_data(
                "the source",
                f"column {label!r} has no label",
                "add it; or leave such rows out by --apply missing-label, or keep them by "
                "--off missing-label",
                row=int(rows[found][0]),
            )
        if mode is Mode.OFF:
            return batch, rows
        return self._drop(Rule.MISSING_LABEL, mode, batch, rows, found)

    def _html(self, batch: Any, rows: Any) -> Any:
        mode, name = self._mode(Rule.HTML), self._roles.text
        if not name or mode not in (Mode.REPORT, Mode.APPLY):
            return batch
        column = batch.column(name)
        likely = pc.match_substring_regex(column, "<[a-zA-Z/!]").to_numpy(zero_copy_only=False)
        found = [i for i in np.flatnonzero(likely == True) if _TAG.search(column[i].as_py())]  # noqa: E712  # it holds None as well
        self._tally.found(Rule.HTML, rows[found])
        if mode is not Mode.APPLY or not found:
            return batch
        texts = column.to_pylist()
        for i in found:
            texts[i] = strip_html(texts[i])
        index = batch.schema.get_field_index(name)
        return batch.set_column(index, batch.schema.field(index), pa.array(texts, column.type))

    def _empty(self, batch: Any) -> Any:
        text = self._roles.text
        found = np.ones(batch.num_rows, bool)
        for name in [text] if text else self._roles.content:
            column = batch.column(name)
            blank = pc.is_null(column, nan_is_null=True)
            if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
                blank = pc.equal(pc.fill_null(pc.utf8_trim_whitespace(column), ""), "")
            found &= blank.to_numpy(zero_copy_only=False)
        return found

    def _lengths(self, batch: Any) -> Any:
        lengths = pc.utf8_length(batch.column(self._roles.text))
        return pc.fill_null(lengths, 0).to_numpy(zero_copy_only=False)

    def _length(self, batch: Any) -> Any:
        if not self._roles.text:
            return None
        lengths, most = self._lengths(batch), self._cleaning.max_chars
        return (lengths < self._cleaning.min_chars) | ((lengths > most) if most else False)

    def _language(self, batch: Any) -> Any:
        if not self._roles.text:
            return None
        found = [language_of(text or "") for text in batch.column(self._roles.text).to_pylist()]
        self._tally.languages.update(found)
        keep = self._cleaning.languages
        return [bool(keep) and language not in keep for language in found]

    def _exact_duplicate(self, batch: Any) -> Sequence[bool]:
        return self._exact.add(digests(batch, self._roles.content, normal=False))

    def _normal_duplicate(self, batch: Any) -> Sequence[bool]:
        exact = self._mode(Rule.EXACT_DUPLICATE)
        if exact is Mode.APPLY and not has_text(batch.schema, self._roles.content):
            return [False] * batch.num_rows  # those that are left differ
        return self._normal.add(digests(batch, self._roles.content, normal=True))
