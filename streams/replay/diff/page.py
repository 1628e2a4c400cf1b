"""The comparison as a page: one file without outside resources, in light and dark."""

from __future__ import annotations

import json
from html import escape
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from streams.replay.diff.result import Diff, Difference, TopicDiff

LONGEST_VALUE: Final = 400
"""How many characters of a value are printed."""

_STYLE: Final = """
:root { color-scheme: light dark; --text: #1c2024; --dim: #60646c; --back: #fcfcfd; --card: #fff;
  --line: #e0e1e6; --good: #18794e; --bad: #ce2c31; --warn: #ad5700; --code: #f0f0f3; }
@media (prefers-color-scheme: dark) { :root { --text: #edeef0; --dim: #b0b4ba; --back: #111113;
  --card: #18191b; --line: #363a3f; --good: #3dd68c; --bad: #ff9592; --warn: #ffa057; --code: #212225; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 2rem 1rem; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 62rem; margin: 0 auto; }
h1 { margin: 0 0 .25rem; font-size: 1.75rem; line-height: 1.2; }
h2 { margin: 0; font-size: 1.15rem; overflow-wrap: anywhere; }
h3 { margin: 1.25rem 0 .5rem; font-size: 1rem; }
p { margin: .25rem 0; }
.dim { color: var(--dim); }
.good { color: var(--good); }
.bad { color: var(--bad); }
.warn { color: var(--warn); }
section { margin: 1.25rem 0; padding: 1.25rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .75rem .4rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
th { color: var(--dim); font-weight: 500; white-space: nowrap; }
tr:last-child td { border-bottom: 0; }
td.number, th.number { text-align: right; }
code { padding: .1em .3em; background: var(--code); border-radius: 4px; font-size: .875em;
  overflow-wrap: anywhere; }
summary { cursor: pointer; }
.bar { display: flex; height: .5rem; margin: .75rem 0; overflow: hidden; border-radius: 4px;
  background: var(--line); }
.bar span { display: block; }
"""


def page(diff: Diff, *, title: str, facts: Sequence[tuple[str, str]]) -> str:
    """The page as HTML. ``facts`` are lines about the runs, as names and texts."""
    different = [topic for topic in diff.topics if topic.differences]
    same = [topic for topic in diff.topics if not topic.differences]
    verdict = (
        '<p class="good">The results are equal.</p>'
        if diff.equal
        else f'<p class="bad">{sum(topic.differences for topic in different):,} records differ, '
        f"in {_count(len(different), 'topic')} of {len(diff.topics)}.</p>"
    )
    parts = [
        f"<h1>{escape(title)}</h1>",
        verdict,
        f"<section>{_table(['', ''], [[escape(name), escape(text)] for name, text in facts])}</section>",
        *(_noise(diff) if diff.noisy_fields or diff.noisy_topics else ()),
        *map(_topic, different),
    ]
    if same:
        rows = [[_code(topic.topic), topic.compared, f"{topic.equal:,}"] for topic in same]
        table = _table(["topic", "compared", "records"], rows, numbers={2})
        parts.append(f"<section><h2>Equal</h2>{table}</section>")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>'
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _noise(diff: Diff) -> list[str]:
    rows = [
        [_code(topic), " ".join(map(_code, fields)), "two runs of the old program have other values"]
        for topic, fields in diff.noisy_fields.items()
    ]
    rows += [
        [_code(topic), "", "two runs of the old program have other records: its counts below are not exact"]
        for topic in diff.noisy_topics
    ]
    table = _table(["topic", "fields", "reason"], rows)
    return [f'<section><h2 class="warn">Not compared</h2>{table}</section>']


def _topic(topic: TopicDiff) -> str:
    kinds = topic.kinds
    parts = [
        f"<h2>{_code(topic.topic)}</h2>",
        _dim(f"Compared: {topic.compared}. {topic.old_records:,} records before, {topic.new_records:,} now."),
        _bar(topic),
        _table(
            ["equal", "changed", "added", "missing"],
            [[f"{topic.equal:,}", *(f"{kinds[kind]:,}" for kind in ("changed", "added", "missing"))]],
            numbers={0, 1, 2, 3},
        ),
    ]
    if topic.changed_fields:
        rows = [[_code(path), f"{count:,}"] for path, count in topic.changed_fields.most_common()]
        parts += ["<h3>Fields that differ</h3>", _table(["field", "records"], rows, numbers={1})]
    parts.append("<h3>Examples</h3>")
    parts += [_sample(sample, opened=not at) for at, sample in enumerate(topic.samples)]
    return f"<section>{''.join(parts)}</section>"


def _dim(text: str) -> str:
    return f'<p class="dim">{escape(text)}</p>'


def _bar(topic: TopicDiff) -> str:
    total = max(1, topic.equal + topic.differences)
    pieces = (
        (topic.equal, "good", "equal"),
        (topic.kinds["changed"], "warn", "changed"),
        (topic.kinds["added"] + topic.kinds["missing"], "bad", "added or missing"),
    )
    spans = "".join(
        f'<span style="width:{100 * count / total:.2f}%;background:var(--{color})" '
        f'title="{count:,} {words}"></span>'
        for count, color, words in pieces
        if count
    )
    return f'<div class="bar">{spans}</div>'


def _sample(sample: Difference, *, opened: bool) -> str:
    color = "warn" if sample.kind == "changed" else "bad"
    head = (
        f'<span class="{color}">{sample.kind}</span> {_code(_text(sample.key))} '
        f'<span class="dim">{escape(sample.when)}</span>'
    )
    rows = [
        [_code(change.path), _code(_text(change.old)), _code(_text(change.new))] for change in sample.fields
    ]
    table = _table(["field", "before", "now"], rows)
    return f"<details{' open' if opened else ''}><summary>{head}</summary>{table}</details>"


def _table(names: Sequence[str], rows: Iterable[Sequence[str]], numbers: set[int] | None = None) -> str:
    right = numbers or set()

    def cell(kind: str, at: int, content: str) -> str:
        style = ' class="number"' if at in right else ""
        return f"<{kind}{style}>{content}</{kind}>"

    head = "".join(cell("th", at, escape(name)) for at, name in enumerate(names))
    body = "".join(
        f"<tr>{''.join(cell('td', at, content) for at, content in enumerate(row))}</tr>" for row in rows
    )
    heading = f"<thead><tr>{head}</tr></thead>" if any(names) else ""
    return f'<div class="scroll"><table>{heading}<tbody>{body}</tbody></table></div>'


def _code(text: str) -> str:
    return f"<code>{escape(text)}</code>"


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
