"""Java's ``.properties`` files, as Debezium's users have them: a name and a value on a line."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from streams.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_BLANKS: Final = " \t\f"
_LINE_END: Final = re.compile(r"\r\n|\r|\n")
_NAME_AND_VALUE: Final = re.compile(
    rf"((?:\\.|[^\\=:{_BLANKS}])*)([{_BLANKS}]*[=:][{_BLANKS}]*|[{_BLANKS}]+|$)(.*)"
)
_ESCAPE: Final = re.compile(r"\\(u[0-9a-fA-F]{4}|.)")
_CONTROLS: Final = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}
_VARIABLE: Final = re.compile(r"\$\{([a-zA-Z]\w*):([^}]*)\}")


def read_properties(path: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """The properties in a file, in UTF-8. ``${env:NAME}`` in a value is a variable of ``environment``.

    Raises ``ConfigurationError`` with the line for what is no property, and for variables that are not set.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"{path} is not in UTF-8: byte {error.start}", hint="save it as UTF-8, or write \\u00e9 for é"
        ) from error
    found: dict[str, str] = {}
    lines: dict[str, int] = {}
    for number, line in _logical_lines(text):
        try:
            name, value = _name_and_value(line, environment)
        except ValueError as error:
            raise ConfigurationError(f"{path}, line {number}: {error}") from error
        if name in found:
            raise ConfigurationError(f"{path}, line {number}: {name} is given in line {lines[name]} already")
        found[name], lines[name] = value, number
    return found


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines that are neither empty nor comments, joined where one ends in a backslash."""
    natural = enumerate(_LINE_END.split(text), 1)
    for number, line in natural:
        logical = line.lstrip(_BLANKS)
        if logical.startswith(("#", "!")):
            continue
        while _is_continued(logical):
            _, more = next(natural, (0, ""))
            logical = logical[:-1] + more.lstrip(_BLANKS)
        if logical:
            yield number, logical


def _is_continued(line: str) -> bool:
    # Two backslashes are one that ends the value.
    return (len(line) - len(line.rstrip("\\"))) % 2 == 1


def _name_and_value(line: str, environment: Mapping[str, str]) -> tuple[str, str]:
    match = _NAME_AND_VALUE.match(line)
    assert match is not None, "every text matches"
    name, separator, value = match.groups()
    if not name or not separator:
        raise ValueError(f"{line.split(maxsplit=1)[0]:.40} is no property: write NAME=VALUE")
    return _unescaped(name), _with_variables(_unescaped(value), environment)


def _unescaped(text: str) -> str:
    def character(match: re.Match[str]) -> str:
        code: str = match[1]
        if code == "u":
            raise ValueError("\\u needs four hexadecimal digits; write \\\\ for a backslash")
        return chr(int(code[1:], 16)) if len(code) > 1 else _CONTROLS.get(code, code)

    plain = _ESCAPE.sub(character, text)
    try:
        # Java writes characters beyond U+FFFF as two.
        return plain.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError:
        raise ValueError("\\u is half of a character") from None


def _with_variables(value: str, environment: Mapping[str, str]) -> str:
    def variable(match: re.Match[str]) -> str:
        provider, name = match.groups()
        if provider != "env":
            raise ValueError(f"${{{provider}:…}} is not supported: only ${{env:NAME}}")
        if name not in environment:
            raise ValueError(f"the environment variable {name} is not set")
        return environment[name]

    return _VARIABLE.sub(variable, value)
