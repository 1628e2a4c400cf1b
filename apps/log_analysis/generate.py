"""Generates an access log in the combined format, for demos, tests and measurements.

It resembles the log of a shop: few paths, clients and agents make most of the traffic, a few hits in a
thousand are unusual, some lines are malformed, and for a few minutes one path answers with errors. The same
arguments give the same lines on any machine: it uses only ``Random.random``, whose sequence Python
guarantees.

::

    python -m apps.log_analysis.generate --lines 1000000 --out access.log
"""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from bisect import bisect
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar

from apps.log_analysis.formats.fields import MONTHS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    Draw = Callable[[], float]

V = TypeVar("V")

INCIDENT_PATH: Final = "/api/orders"
"""The path that fails for a few minutes."""
INCIDENT: Final = (0.40, 0.46)
"""Start and end of the incident, as shares of the log's duration: in one hour, 24:00 to 27:36."""
INCIDENT_FAILURES: Final = 0.7
"""The share of requests for that path that fail during the incident, all with a status of 5xx."""

_CLIENTS: Final = 1_500


class _Choice(Generic[V]):
    """Draws values at random, in proportion to their weights."""

    def __init__(self, values: Iterable[tuple[V, float]]) -> None:
        pairs = list(values)
        self._values = [value for value, _ in pairs]
        self._cumulative = list(accumulate(weight for _, weight in pairs))
        self._total = self._cumulative[-1]
        self._last = len(pairs) - 1

    def draw(self, random: Draw) -> V:
        return self._values[bisect(self._cumulative, random() * self._total, 0, self._last)]


class _Client(NamedTuple):
    address: str
    user: str
    agent: str
    protocol: str
    is_program: bool


class _Resource(NamedTuple):
    method: str
    path: str
    queries: Sequence[str]
    """The possible queries, each with its question mark; one of them is drawn for a hit."""
    size: float
    """The body's size in bytes: exact for a file, the median of its log-normal sizes for a page."""
    is_file: bool


_CHROME: Final = "AppleWebKit/537.36 (KHTML, like Gecko) Chrome"
_SAFARI: Final = "AppleWebKit/605.1.15 (KHTML, like Gecko) Version"
_BROWSERS: Final = (
    f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {_CHROME}/148.0.0.0 Safari/537.36",
    f"Mozilla/5.0 (Linux; Android 10; K) {_CHROME}/148.0.0.0 Mobile Safari/537.36",
    f"Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) {_SAFARI}/18.5 Mobile/15E148 Safari/604.1",
    f"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) {_SAFARI}/18.5 Safari/605.1.15",
    f"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) {_CHROME}/147.0.0.0 Safari/537.36",
    f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {_CHROME}/148.0.0.0 Safari/537.36 Edg/148.0.0.0",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:151.0) Gecko/20100101 Firefox/151.0",
    f"Mozilla/5.0 (X11; Linux x86_64) {_CHROME}/146.0.0.0 Safari/537.36",
    "Mozilla/5.0 (X11; Ubuntu; Linux x86_64; rv:150.0) Gecko/20100101 Firefox/150.0",
    f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {_CHROME}/147.0.0.0 Safari/537.36 OPR/131.0.0.0",
    f"Mozilla/5.0 (iPad; CPU OS 17_7 like Mac OS X) {_SAFARI}/17.7 Mobile/15E148 Safari/604.1",
    "Mozilla/5.0 (Windows NT 6.1; WOW64; Trident/7.0; rv:11.0) like Gecko",
    f"Mozilla/5.0 (Linux; Android 14; SM-S921B) {_CHROME}/139.0.0.0 Mobile Safari/537.36",
    r"Mozilla/5.0 (X11; FreeBSD amd64; \"home build\") Gecko/20100101 Firefox/128.0",
    "-",
)
_PROGRAMS: Final = (
    "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
    "Mozilla/5.0 (compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm)",
    "Mozilla/5.0 (compatible; YandexBot/3.0; +http://yandex.com/bots)",
    "Mozilla/5.0 (compatible; AhrefsBot/7.0; +http://ahrefs.com/robot/)",
    "facebookexternalhit/1.1 (+http://www.facebook.com/externalhit_uatext.php)",
    "Mozilla/5.0 (compatible; Baiduspider/2.0; +http://www.baidu.com/search/spider.html)",
    "python-requests/2.32.3",
    "curl/8.14.1",
    "Wget/1.25.0",
    "Go-http-client/2.0",
    "FeedBurner/1.0 (http://www.FeedBurner.com)",
    "Pingdom.com_bot_version_1.4_(http://www.pingdom.com/)",
)
_REFERRERS: Final = _Choice(
    [
        ("-", 40),
        ("https://shop.example/", 20),
        ("https://shop.example/products", 12),
        ("https://www.google.com/", 12),
        ("https://shop.example/search?q=garden+chair", 6),
        ("https://www.bing.com/", 3),
        ("https://duckduckgo.com/", 3),
        ("https://t.co/4xkQ2b", 2),
        ("https://news.example/2026/05/best-of-spring", 1.5),
        (r"https://forum.example/?title=\"which+lamp\"", 0.5),
    ]
)
_ADJECTIVES: Final = (
    "garden",
    "oak",
    "linen",
    "copper",
    "winter",
    "folding",
    "small",
    "blue",
    "round",
    "travel",
)
_NOUNS: Final = (
    "chair",
    "lamp",
    "table",
    "kettle",
    "blanket",
    "basket",
    "mirror",
    "shelf",
    "mug",
    "clock",
    "bench",
)
_ARTICLES: Final = [(adjective, noun) for noun in _NOUNS for adjective in _ADJECTIVES]
"""The shop's products."""
_PROBES: Final = (
    *("/wp-login.php", "/.env", "/xmlrpc.php", "/admin/", "/favicon.ico.bak", "/phpmyadmin/index.php"),
    *("/.git/config", "/old/catalogue.pdf", "/products/retired-lamp", "/images/banner-2019.png"),
)
# Well-formed too: no request before the time-out, TLS on the plain port, HTTP/0.9, proxy requests.
_ODD_REQUESTS: Final = (
    '"-" 408 -',
    r'"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" 400 226',
    '"GET /" 400 0',
    '"OPTIONS * HTTP/1.0" 200 -',
    '"GET http://shop.example/robots.txt HTTP/1.1" 404 196',
    '"CONNECT mail.example:25 HTTP/1.1" 405 230',
    r'"GET /search?q=\"oak table\" HTTP/1.1" 400 226',
)
_ODD_SHARE: Final = 0.002


def generate_lines(
    count: int = 200_000,
    seed: int = 7,
    malformed_share: float = 0.005,
    start_ms: int = 1_779_098_400_000,
    duration_ms: int = 3_600_000,
) -> Iterator[str]:
    """``count`` log lines without line breaks, in the order of their times.

    Times are spread evenly over ``duration_ms`` milliseconds from ``start_ms`` (milliseconds since the epoch;
    2026-05-18 10:00 UTC unless given) and written in whole seconds. Exactly
    ``round(count * malformed_share)`` lines, anywhere among the others, are refused by ``parse``.
    Raises ``ValueError`` on an argument out of range.
    """
    if count < 0:
        raise ValueError(f"count must be 0 or more lines, got {count}")
    if not 0 <= malformed_share <= 1:
        raise ValueError(f"malformed_share must be from 0 to 1, got {malformed_share}")
    if start_ms < 0 or duration_ms <= 0:
        raise ValueError(f"start_ms must be 0 or more, duration_ms above 0, got {start_ms} and {duration_ms}")
    return _lines(count, Random(seed).random, round(count * malformed_share), start_ms, duration_ms)  # noqa: S311  # nothing here is a secret


def closing_lines(at_ms: int, count: int = 32) -> list[str]:
    """Well-formed lines at one time (milliseconds since the epoch), each with another client and path.

    Windows close when later records come, separately in each partition: these lines reach all partitions, up
    to about 8, whether they are partitioned by client or by path.
    """
    stamp = _stamp(at_ms // 1000)
    return [
        f'closing-{number}.invalid - - [{stamp}] "GET /closing/{number} HTTP/1.1" 204 - "-" "-"'
        for number in range(count)
    ]


def _lines(count: int, random: Draw, malformed: int, start_ms: int, duration_ms: int) -> Iterator[str]:
    clients = _clients(random)
    resources = _resources(random)
    incident_begin, incident_end = (start_ms + int(share * duration_ms) for share in INCIDENT)
    factors = [_log_normal(random, 0.5) for _ in range(1_024)]
    second, stamp = -1, ""
    for position in range(count):
        # One time in each of ``count`` equal parts of the duration: ordered without sorting.
        at = start_ms + int((position + random()) * duration_ms / count)
        if at // 1000 != second:
            second = at // 1000
            stamp = _stamp(second)
        client = clients.draw(random)
        if random() < _ODD_SHARE:
            answer = _any(_ODD_REQUESTS, random)
            line = f'{client.address} - - [{stamp}] {answer} "-" "-"'
        else:
            answer = _answer(
                resources.draw(random), client, incident_begin <= at < incident_end, factors, random
            )
            referrer = "-" if client.is_program else _REFERRERS.draw(random)
            line = f'{client.address} - {client.user} [{stamp}] {answer} "{referrer}" "{client.agent}"'
        # The probability is the remaining share of malformed lines, so that their number is exact.
        if malformed and random() * (count - position) < malformed:
            malformed -= 1
            line = _any(_DAMAGES, random)(line, random)
        yield line


def _answer(
    resource: _Resource, client: _Client, incident: bool, factors: Sequence[float], random: Draw
) -> str:
    """Request, status and size as in the line."""
    method, path, queries, size, is_file = resource
    target = path + queries[int(random() * len(queries))] if queries else path
    if not is_file:
        size *= factors[int(random() * len(factors))]
    luck = random()
    if incident and path == INCIDENT_PATH and luck < INCIDENT_FAILURES:
        # Mostly the proxy's status for a service that is down, sometimes the service's own.
        status, size = (503, 299) if luck < 0.5 else (502, 157) if luck < 0.65 else (500, 612)
    elif luck < 0.001:
        status, size = 500, 612
    elif luck < 0.03 or (client.is_program and luck < 0.08):
        method, target, status, size = "GET", _any(_PROBES, random), 404, 196
    elif luck < 0.035:
        status, size = 403, 199
    elif method == "POST":
        status = 201 if luck < 0.8 else 200 if luck < 0.95 else 422
    elif luck < 0.05:
        status, size = 301, 162
    elif is_file and luck < 0.3:
        return f'"{method} {target} {client.protocol}" 304 -'
    elif is_file and luck < 0.305:
        status, size = 206, min(size, 65_536)
    else:
        status = 200
    return f'"{method} {target} {client.protocol}" {status} {int(size)}'


def _clients(random: Draw) -> _Choice[_Client]:
    browsers = _Choice(_zipf(_BROWSERS, 1.0))
    programs = _Choice(_zipf(_PROGRAMS, 1.0))
    clients: list[_Client] = []
    for number in range(_CLIENTS):
        is_program = random() < 0.08
        protocol = "HTTP/1.1" if is_program or random() < 0.4 else "HTTP/2.0"
        agent = (programs if is_program else browsers).draw(random)
        user = f"customer{number}" if not is_program and random() < 0.04 else "-"
        clients.append(_Client(_address(random), user, agent, protocol, is_program))
    return _Choice(_zipf(clients, 0.7))


def _address(random: Draw) -> str:
    """An address from the ranges reserved for tests and documentation."""
    if random() < 0.15:
        return (
            f"2001:db8:{int(random() * 65_536):x}:{int(random() * 65_536):x}::{int(random() * 65_535) + 1:x}"
        )
    return f"198.{18 + int(random() * 2)}.{int(random() * 256)}.{int(random() * 254) + 1}"


def _resources(random: Draw) -> _Choice[_Resource]:
    searches = [
        f"?q={adjective}+{noun}&page={1 + number % 3}" for number, (adjective, noun) in enumerate(_ARTICLES)
    ]
    listings = ["", "", "?sort=price", "?sort=new&page=2", "?category=kitchen", "?category=garden&page=3"]
    campaigns = ["", "", "", "?utm_source=newsletter", "?utm_source=partner&utm_medium=banner", "?ref=t"]
    most_wanted = [
        _Resource("GET", "/", campaigns, 18_000, is_file=False),
        _Resource("GET", "/assets/app.js", ["?v=241"], 148_213, is_file=True),
        _Resource("GET", "/assets/style.css", ["?v=241"], 38_904, is_file=True),
        _Resource("GET", "/products", listings, 31_000, is_file=False),
        _Resource("POST", INCIDENT_PATH, [], 480, is_file=False),
        _Resource("GET", "/search", searches, 22_000, is_file=False),
        _Resource("GET", "/api/cart", [], 900, is_file=False),
        _Resource("GET", "/images/logo.svg", [], 4_127, is_file=True),
        _Resource("POST", "/login", [], 350, is_file=False),
        _Resource("HEAD", "/health", [], 0, is_file=False),
    ]
    others: list[_Resource] = []
    for adjective, noun in _ARTICLES:
        article = f"{adjective}-{noun}"
        image_size = 60_000 * _log_normal(random, 0.8)
        others.append(_Resource("GET", f"/products/{article}", campaigns, 24_000, is_file=False))
        others.append(_Resource("GET", f"/images/{article}.jpg", [], image_size, is_file=True))
    return _Choice(_zipf([*most_wanted, *others], 0.9))


def _zipf(values: Sequence[V], exponent: float) -> Iterator[tuple[V, float]]:
    """The values with weights that fall with their rank, like the visits of a site's pages."""
    return ((value, float(rank) ** -exponent) for rank, value in enumerate(values, start=1))


def _log_normal(random: Draw, sigma: float) -> float:
    """A factor with median 1, by Box and Muller's formula."""
    return math.exp(sigma * math.sqrt(-2 * math.log(1 - random())) * math.cos(math.tau * random()))


def _any(values: Sequence[V], random: Draw) -> V:
    return values[int(random() * len(values))]


def _stamp(second: int) -> str:
    at = datetime.fromtimestamp(second, UTC)
    # Not strftime, as its names of months depend on the locale.
    return f"{at.day:02}/{MONTHS[at.month - 1]}/{at.year:04}:{at.hour:02}:{at.minute:02}:{at.second:02} +0000"


# Corruptions: each takes a well-formed line and returns a malformed one.

_ANSWER: Final = re.compile(r'" ([0-9]{3}) ([0-9]+|-) "')


def _answer_in(line: str) -> re.Match[str]:
    match = _ANSWER.search(line)
    assert match is not None  # the lines given are in the combined format
    return match


def _replaced(line: str, span: tuple[int, int], text: str) -> str:
    return f"{line[: span[0]]}{text}{line[span[1] :]}"


def _with_bad_status(line: str, random: Draw) -> str:
    return _replaced(line, _answer_in(line).span(1), _any(("2O0", "-", "000", "99", "2000", "OK"), random))


def _with_bad_size(line: str, random: Draw) -> str:
    return _replaced(line, _answer_in(line).span(2), _any(("12kB", "-1", "1,024", "0x1F", "3.5"), random))


def _with_bad_time(line: str, random: Draw) -> str:
    times = (
        "32/May/2026:10:20:30 +0000",
        "18/Mai/2026:10:20:30 +0200",
        "2026-05-18T10:20:30Z",
        "1779099630",
        "-",
    )
    return _replaced(line, (line.index("[") + 1, line.index("]")), _any(times, random))


def _without_request(line: str, random: Draw) -> str:
    return _replaced(line, (line.index('"') + 1, _answer_in(line).start()), _any(("", " "), random))


def _cut_in_request(line: str, random: Draw) -> str:
    return line[: 1 + int(random() * _answer_in(line).start())]


def _cut_in_agent(line: str, random: Draw) -> str:
    quote = line.rindex(' "') + 1
    return line[: quote + 1 + int(random() * (len(line) - quote - 1))]


def _run_together(line: str, random: Draw) -> str:
    return f"{line}{line[: 40 + int(random() * 40)]}"


def _foreign(line: str, random: Draw) -> str:
    process = int(random() * 30_000)
    client = line.partition(" ")[0]
    return _any(
        (
            f"[core:error] [pid {process}] [client {client}] AH00126: Invalid URI in request",
            f'  File "/srv/shop/orders.py", line {process % 900}, in place_order',
            f"kernel: Out of memory: Killed process {process} (shop-worker)",
            f'{{"level":"warn","pid":{process},"client":"{client}"}}',
        ),
        random,
    )


def _garbage(line: str, random: Draw) -> str:
    # Any characters but line breaks, those of Unicode included.
    characters = [chr(code) for code in (*range(1, 9), *range(14, 28), *range(160, 256))]
    return "".join(_any(characters, random) for _ in range(len(line) // 3))


_DAMAGES: Final = (
    *(_cut_in_request, _cut_in_agent, _with_bad_time, _with_bad_status, _with_bad_size),
    *(_without_request, _run_together, _foreign, _garbage),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a log to a file or to standard output."""
    parser = argparse.ArgumentParser(
        prog="python -m apps.log_analysis.generate",
        description="Write a generated access log in the combined format.",
    )
    parser.add_argument(
        "--lines", type=int, default=200_000, metavar="N", help="number of lines (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=7, help="seed of the random numbers (%(default)s)")
    parser.add_argument(
        "--malformed",
        type=float,
        default=0.005,
        metavar="SHARE",
        help="share of malformed lines, from 0 to 1 (%(default)s)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="the file to write (standard output)")
    options = parser.parse_args(arguments)
    try:
        lines = generate_lines(options.lines, options.seed, options.malformed)
    except ValueError as error:
        parser.error(str(error))
    encoded = (f"{line}\n".encode() for line in lines)
    if options.out is not None:
        with options.out.open("wb") as file:
            file.writelines(encoded)
        return
    try:
        sys.stdout.buffer.writelines(encoded)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        # The reader has closed the pipe, as ``head`` does. Python must not write the rest to it at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
