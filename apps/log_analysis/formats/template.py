r"""The user's own format: nginx's ``log_format`` or Apache's ``LogFormat``, compiled to a ``TextFormat``.

The input is the directive as in the server's configuration, or only its text::

    log_format main '$remote_addr - $remote_user [$time_local] "$request" '
                    '$status $body_bytes_sent $request_time';
    LogFormat "%v:%p %h %l %u %t \"%r\" %>s %O %D" timed
    escape=json {"time":"$time_iso8601","client":"$remote_addr","request":"$request","status":$status}

A format must contain the time, the client, the request (or method and path) and the status. A value ends at
the text that follows it in the format, so there must be such a text, and a value that may contain spaces must
not be followed by a space: formats that violate this are refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

import msgspec

from apps.log_analysis.formats import fields
from apps.log_analysis.formats.text import QUOTED_TEXT, READERS, USER, TextFormat
from streams import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Escape: TypeAlias = Literal["default", "json", "none"]
Reader: TypeAlias = "Callable[[str], Any]"


class Value(NamedTuple):
    """A variable of a format: its field, and its parser if not the field's default.

    ``field`` is ``None`` for variables that a hit does not have. Of several for one field the one with the
    lowest ``rank`` is used.
    """

    field: str | None
    rank: int = 0
    reader: Reader | None = None
    pattern: str | None = None
    """The regular expression of the value, if it does not simply end at the following text."""
    blanks: bool = False
    """Whether it may contain spaces."""
    local: bool = False


Token: TypeAlias = str | Value

CLF_TIME: Final = r"[0-9]{2}/[A-Z][a-z]{2}/[0-9]{4}:[0-9:]{8} [+-][0-9]{4}"
IGNORED: Final = Value(None)

_NGINX: Final = {
    "remote_addr": Value("client"),
    "realip_remote_addr": Value("client", rank=1),
    "http_x_forwarded_for": Value("forwarded", blanks=True),
    "proxy_add_x_forwarded_for": Value("forwarded", rank=1, blanks=True),
    "remote_user": Value("user", blanks=True),
    "time_local": Value("time", pattern=CLF_TIME),
    "time_iso8601": Value("time", rank=1, reader=fields.iso_milliseconds),
    "msec": Value("time", rank=2, reader=fields.epoch_milliseconds),
    "request": Value("request", blanks=True),
    "request_method": Value("method"),
    "request_uri": Value("target", blanks=True),
    "uri": Value("target", rank=1, blanks=True),
    "document_uri": Value("target", rank=2, blanks=True),
    "args": Value("query", blanks=True),
    "query_string": Value("query", rank=1, blanks=True),
    "server_protocol": Value("protocol"),
    "status": Value("status"),
    "body_bytes_sent": Value("size"),
    "bytes_sent": Value("size", rank=1),
    "http_referer": Value("referrer", blanks=True),
    "http_user_agent": Value("agent", blanks=True),
}
_QUERY_WITH_MARK: Final = Value("query", pattern="")
"""A query with its question mark, or nothing."""

_APACHE: Final = {
    "h": Value("client"),
    "a": Value("client", rank=1),
    "u": Value("user", blanks=True),
    "t": Value("time", pattern=CLF_TIME),
    "r": Value("request", blanks=True),
    "m": Value("method"),
    "U": Value("target", blanks=True),
    "q": _QUERY_WITH_MARK,
    "H": Value("protocol"),
    ">s": Value("status"),
    "s": Value("status", rank=1),
    "<s": Value("status", rank=2),
    "B": Value("size"),
    "b": Value("size", rank=1),
    "O": Value("size", rank=2),
}
_APACHE_HEADERS: Final = {
    "referer": Value("referrer", blanks=True),
    "user-agent": Value("agent", blanks=True),
    "x-forwarded-for": Value("forwarded", blanks=True),
}
_APACHE_EPOCHS: Final = {"sec": 1, "msec": 1_000, "usec": 1_000_000}
_STRFTIME: Final = {
    "a": "[A-Za-z]{3}",
    "b": "[A-Z][a-z]{2}",
    "d": "[0-9]{2}",
    "e": "[ 0-9][0-9]",
    "F": "[0-9]{4}-[0-9]{2}-[0-9]{2}",
    "H": "[0-9]{2}",
    "m": "[0-9]{2}",
    "M": "[0-9]{2}",
    "S": "[0-9]{2}",
    "T": "[0-9]{2}:[0-9]{2}:[0-9]{2}",
    "y": "[0-9]{2}",
    "Y": "[0-9]{4}",
    "z": "[+-][0-9]{4}",
    "%": "%",
}

_VARIABLE: Final = re.compile(r"\$is_args\$(?:args|query_string)|\$(?:\{([a-z0-9_]+)\}|([a-z0-9_]+))")
_DIRECTIVE: Final = re.compile(
    r"%(?:!?[0-9]{3}(?:,[0-9]{3})*)?([<>]?)(?:\{([^}]*)\})?(\^[A-Za-z]{2}|[A-Za-z]|%)|%"
)
_NGINX_STATEMENT: Final = re.compile(
    r"\s*log_format\s+\S+\s+(?:escape=(\w+)\s+)?((?:'[^']*'|\"(?:[^\"\\]|\\.)*\"|\s)+);?\s*"
)
_NGINX_PIECE: Final = re.compile(r"'([^']*)'|\"((?:[^\"\\]|\\.)*)\"")
_APACHE_STATEMENT: Final = re.compile(
    r"\s*LogFormat\s+\"((?:[^\"\\]|\\.)*)\"(?:\s+[^\s\"]+)?\s*", re.IGNORECASE
)


def compile_format(text: str, *, forwarded: bool = False) -> TextFormat:
    """The format of a ``log_format``, a ``LogFormat`` or the text in one.

    With ``forwarded``, ``X-Forwarded-For`` is sufficient as the client. Raises ``ConfigurationError`` if a
    required field is missing or the values cannot be separated.
    """
    tokens, escape = _parsed(text)
    return _compiled(tokens, escape, forwarded=forwarded)


def _parsed(text: str) -> tuple[list[Token], Escape]:
    escape: Escape = "default"
    statement = _NGINX_STATEMENT.fullmatch(text)
    if statement is not None:
        escape = _escape(statement[1])
        text = "".join(
            single or double.replace('\\"', '"') for single, double in _NGINX_PIECE.findall(statement[2])
        )
        return list(_nginx_tokens(text)), escape
    apache = _APACHE_STATEMENT.fullmatch(text)
    if apache is not None:
        return list(_apache_tokens(apache[1])), "default"
    if text.startswith("escape="):
        given, _, text = text.partition(" ")
        escape = _escape(given.removeprefix("escape="))
    if _VARIABLE.search(text) is not None:
        return list(_nginx_tokens(text)), escape
    return list(_apache_tokens(text)), "default"


def _escape(name: str | None) -> Escape:
    if name == "json":
        return "json"
    if name == "none":
        return "none"
    if name in {None, "default"}:
        return "default"
    raise ConfigurationError(f"log format: unknown escape={name}", hint="nginx has default, json and none")


def _nginx_tokens(text: str) -> Iterator[Token]:
    at = 0
    for match in _VARIABLE.finditer(text):
        yield text[at : match.start()]
        name = match[1] or match[2]
        yield _QUERY_WITH_MARK if name is None else _NGINX.get(name, IGNORED)
        at = match.end()
    yield text[at:]


_APACHE_ESCAPES: Final = {"n": "\n", "t": "\t"}


def _apache_tokens(text: str) -> Iterator[Token]:
    text = re.sub(r"\\(.)", lambda match: _APACHE_ESCAPES.get(match[1], match[1]), text)
    at = 0
    for match in _DIRECTIVE.finditer(text):
        yield text[at : match.start()]
        at = match.end()
        which, argument, letter = match.groups()
        if letter is None:
            raise ConfigurationError(
                f"log format: {text[match.start() : match.start() + 6]!r} is not a directive of Apache",
                hint="a percent sign by itself is written %%",
            )
        if letter == "%":
            yield "%"
        elif letter == "t":
            yield from _apache_time(argument)
        elif letter == "i":
            yield _APACHE_HEADERS.get((argument or "").lower(), IGNORED)
        elif letter == "a" and argument == "c":
            yield Value("client", rank=2)
        elif argument is not None:
            yield IGNORED
        else:
            yield _APACHE.get(which + letter, IGNORED)
    yield text[at:]


def _apache_time(argument: str | None) -> Iterator[Token]:
    form = "" if argument is None else re.sub(r"\A(?:begin|end):", "", argument)
    if not form:
        yield "["
        yield _APACHE["t"]
        yield "]"
    elif form in _APACHE_EPOCHS:
        unit = _APACHE_EPOCHS[form]

        def read(text: str) -> int:
            return fields.epoch_milliseconds(_whole(text, unit))

        yield Value("time", 2, read, "[0-9]{1,17}")
    elif form in {"msec_frac", "usec_frac"}:
        yield Value(None, pattern="[0-9]{1,6}")
    else:
        yield _strftime(form)


def _whole(text: str, unit: int) -> str:
    seconds, rest = divmod(int(text), unit)
    return f"{seconds}.{rest * 1_000_000 // unit:06}"


def _strftime(form: str) -> Value:
    pattern = ""
    at = 0
    for match in re.finditer(r"%(.)", form):
        pattern += re.escape(form[at : match.start()])
        if match[1] not in _STRFTIME:
            raise ConfigurationError(
                f"log format: time %{{{form}}}t has %{match[1]}, which is not supported",
                hint=f"supported are {', '.join(f'%{letter}' for letter in _STRFTIME)}",
            )
        pattern += _STRFTIME[match[1]]
        at = match.end()
    pattern += re.escape(form[at:])
    # strptime knows the parts, not their abbreviations.
    parts = form.replace("%T", "%H:%M:%S").replace("%F", "%Y-%m-%d").replace("%e", "%d")
    has_offset = "%z" in form

    def reader(text: str) -> int:
        # The text has an offset if the format does.
        time = datetime.strptime(text, parts)  # noqa: DTZ007 - as above
        seconds = (time if has_offset else time.replace(tzinfo=UTC)).timestamp()
        if seconds < 0:
            raise ValueError(text)
        return int(seconds) * 1000

    return Value("time", 1, reader, pattern, local=not has_offset)


@dataclass(slots=True)
class _Compilation:
    """The pattern so far, and the parsers of its groups."""

    chosen: dict[str, Value]
    escape: Escape
    pattern: str = ""
    readers: dict[str, Reader] = field(default_factory=dict[str, Any])

    def add(self, value: Value, before: str, after: str) -> None:
        content = self._content(value, before, after)
        name = value.field
        if name is None or self.chosen[name] is not value or name in self.readers:
            self.pattern += f"(?:{content})"
            return
        self.pattern += f"(?P<{name}>{content})"
        quoted = before.endswith('"') and after.startswith('"')
        self.readers[name] = value.reader or self.reader(name, quoted=quoted)

    def _content(self, value: Value, before: str, after: str) -> str:
        if value is _QUERY_WITH_MARK:
            return rf'(?:\?(?:[^\s"\\{re.escape(after[:1])}]|\\.)*+)?'
        if value.pattern is not None:
            return value.pattern
        if before.endswith('"') and after.startswith('"'):
            return '[^"]*+' if self.escape == "none" else QUOTED_TEXT
        if not after:
            # At the end of the line; also nginx's lists of several upstream servers.
            return r".*+" if value.blanks else r"[^ ]*+(?:(?<=,) [^ ]++| : [^ ]++)*+"
        stop = after[0]
        if stop != " ":
            return f"[^{re.escape(stop)}]*+"
        if value.field == "user" and after.startswith(" ["):
            return USER
        if value.field == "forwarded":
            return r"[^ ]++(?:(?<=,) [^ ]++)*+"
        if value.blanks and value.field != "user":
            raise ConfigurationError(
                f"log format: the {value.field} may contain spaces, and is followed by one",
                hint='put it in quotes, as in "$http_user_agent" or \\"%{User-Agent}i\\"',
            )
        return r"[^ ]++(?:(?<=,) [^ ]++| : [^ ]++)*+"

    def reader(self, name: str, *, quoted: bool) -> Reader:
        if self.escape == "default":
            return READERS[name]
        undo = _json_text if self.escape == "json" and quoted else fields.plain_text
        inner = _UNESCAPED_READERS[name]
        return lambda text: inner(undo(text))


def _json_text(text: str) -> str:
    return msgspec.json.decode(f'"{text}"', type=str)


def _dashed(text: str) -> str | None:
    """A text that is ``-`` or empty if the client did not send it."""
    return None if text in {"-", ""} else fields.plain_text(text)


def _request_of(text: str) -> tuple[str, str, str | None, str]:
    if not text or text.isspace():
        raise ValueError(text)
    return fields.split_request(text)


_UNESCAPED_READERS: Final[dict[str, Reader]] = {
    **READERS,
    "forwarded": _dashed,
    "request": _request_of,
    "method": fields.plain_text,
    "target": fields.plain_text,
    "query": fields.plain_text,
    "protocol": fields.plain_text,
    "referrer": _dashed,
    "agent": _dashed,
}


def _compiled(tokens: list[Token], escape: Escape, *, forwarded: bool) -> TextFormat:
    merged = _merged(tokens)
    values = [token for token in merged if isinstance(token, Value)]
    chosen: dict[str, Value] = {}
    for value in sorted(values, key=lambda value: value.rank):
        if value.field is not None:
            chosen.setdefault(value.field, value)
    _require(chosen, forwarded=forwarded)
    if "request" in chosen:
        # The request contains these fields already.
        for part in ("method", "target", "query", "protocol"):
            chosen[part] = IGNORED
    compilation = _Compilation(chosen, escape)
    for position, token in enumerate(merged):
        if isinstance(token, str):
            compilation.pattern += re.escape(token)
            continue
        before, after = (merged[at] if 0 <= at < len(merged) else "" for at in (position - 1, position + 1))
        if isinstance(after, Value) and after.pattern is None:
            raise ConfigurationError(
                "log format: two values follow each other without a separator",
                hint="separate them by a space, a tab or quotes",
            )
        # The next value may be empty, such as a query: then the following text ends this value.
        ahead = next((each for each in merged[position + 1 :] if isinstance(each, str)), "")
        if isinstance(after, Value):
            compilation.pattern += _up_to_query(compilation, token, ahead)
            continue
        compilation.add(token, before if isinstance(before, str) else "", ahead)
    return TextFormat(
        "given",
        compilation.pattern,
        readers=compilation.readers,
        local=chosen["time"].local,
    )


def _up_to_query(compilation: _Compilation, value: Value, ahead: str) -> str:
    """A path that a query follows directly."""
    name = value.field
    stop = re.escape(ahead[:1]) or r"\n"
    content = rf"[^?{stop}]*+"
    if name is None or compilation.chosen[name] is not value:
        return f"(?:{content})"
    compilation.readers[name] = compilation.reader(name, quoted=False)
    return f"(?P<{name}>{content})"


def _merged(tokens: list[Token]) -> list[Token]:
    """The tokens with adjacent texts merged, and without empty ones."""
    merged: list[Token] = []
    for token in tokens:
        if token == "":
            continue
        if isinstance(token, str) and merged and isinstance(merged[-1], str):
            merged[-1] += token
        else:
            merged.append(token)
    return merged


def _require(chosen: dict[str, Value], *, forwarded: bool) -> None:
    has_request = "request" in chosen or {"method", "target"} <= chosen.keys()
    missing = [
        what
        for what, there in (
            ("a time ($time_local, %t)", "time" in chosen),
            ("a client ($remote_addr, %h)", "client" in chosen or (forwarded and "forwarded" in chosen)),
            ("a request ($request, %r)", has_request),
            ("a status ($status, %>s)", "status" in chosen),
        )
        if not there
    ]
    if missing:
        raise ConfigurationError(
            f"log format: it lacks {', '.join(missing)}",
            hint="a hit needs a time, a client, a request and a status",
        )
