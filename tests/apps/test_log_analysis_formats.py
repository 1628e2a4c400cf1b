"""Access logs as servers, proxies and load balancers write them: lines give the right hit or are refused."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings, strategies as st

from apps.log_analysis.formats.detection import FORMATS
from apps.log_analysis.hit import Hit, MalformedLine, configured_parser, is_bot, line_parser, parse
from streams import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]


@dataclass(frozen=True)
class Request:
    """A request, for the renderers below."""

    milliseconds: int
    client: str
    user: str | None
    method: str
    path: str
    query: str | None
    protocol: str
    status: int
    size: int
    referrer: str | None
    agent: str | None
    forwarded: str | None
    zone: int = 0
    """The server's offset from UTC in minutes."""

    @property
    def target(self) -> str:
        return self.path if self.query is None else f"{self.path}?{self.query}"

    @property
    def line(self) -> str:
        return f"{self.method} {self.target} {self.protocol}"

    def local(self) -> datetime:
        return datetime.fromtimestamp(self.milliseconds // 1000, timezone(timedelta(minutes=self.zone)))

    def utc(self) -> datetime:
        return datetime.fromtimestamp(self.milliseconds / 1000, UTC)

    def hit(self, **changes: Any) -> Hit:
        """The hit of a format with all fields and whole seconds, with these changes."""
        values: dict[str, Any] = {
            "time": self.milliseconds // 1000 * 1000,
            "client": self.client,
            "user": self.user,
            "method": self.method,
            "path": self.path,
            "query": self.query,
            "protocol": self.protocol,
            "status": self.status,
            "bytes": self.size,
            "referrer": self.referrer,
            "agent": self.agent,
        } | changes
        values["status_class"] = f"{self.status // 100}xx"
        values["bot"] = values["agent"] is not None and is_bot(values["agent"])
        return Hit(**values)

    def exact(self, **changes: Any) -> Hit:
        return self.hit(time=self.milliseconds, **changes)


def clf_time(request: Request) -> str:
    at = request.local()
    sign = "-" if request.zone < 0 else "+"
    zone = f"{sign}{abs(request.zone) // 60:02}{abs(request.zone) % 60:02}"
    return f"{at.day:02}/{MONTHS[at.month - 1]}/{at.year:04}:{at:%H:%M:%S} {zone}"


def iso(request: Request, digits: int = 3) -> str:
    fraction = f"{request.milliseconds % 1000:03}".ljust(digits, "0")
    return f"{request.utc():%Y-%m-%dT%H:%M:%S}.{fraction}Z"


def apache(text: str | None) -> str:
    return "-" if text is None else text.replace("\\", "\\\\").replace('"', '\\"')


def nginx(text: str | None) -> str:
    return "-" if text is None else text.replace("\\", "\\x5C").replace('"', "\\x22")


def common(request: Request, escape: Callable[[str | None], str] = apache) -> str:
    return (
        f"{request.client} - {escape(request.user)} [{clf_time(request)}] "
        f'"{escape(request.line)}" {request.status} {request.size}'
    )


def combined(request: Request, escape: Callable[[str | None], str] = apache) -> str:
    return f'{common(request, escape)} "{escape(request.referrer)}" "{escape(request.agent)}"'


def main(request: Request) -> str:
    return f'{combined(request, nginx)} "{nginx(request.forwarded)}"'


def traefik(request: Request) -> str:
    return (
        f"{request.client} - {request.user or '-'} [{clf_time(request)}] "
        f'"{request.line}" {request.status} {request.size} "{request.referrer or "-"}" '
        f'"{request.agent or "-"}" 1023 "shop@docker" "http://10.0.0.7:8080" 12ms'
    )


def haproxy(request: Request) -> str:
    at = request.utc()
    time = f"{at.day:02}/{MONTHS[at.month - 1]}/{at.year:04}:{at:%H:%M:%S}.{request.milliseconds % 1000:03}"
    return (
        f"{request.client}:50312 [{time}] https-in~ shop/web1 0/0/1/12/+13 {request.status} {request.size} "
        f'- - ---- 2/2/0/0/0 0/0 {{shop.test|Moz}} {{}} "{request.line}"'
    )


def syslog(request: Request) -> str:
    return f"<134>Jul 25 17:38:53 lb1 haproxy[14389]: {haproxy(request)}"


def socket(request: Request) -> str:
    return f"[{request.client}]:50312" if ":" in request.client else f"{request.client}:50312"


def alb(request: Request) -> str:
    return (
        f"h2 {iso(request, 6)} app/shop/50dc6c495c0c9188 {socket(request)} - -1 -1 -1 "
        f'{request.status} - 34 {request.size} "{request.method} https://shop.test:443{request.target} '
        f'{request.protocol}" "{nginx(request.agent)}" ECDHE-RSA-AES128-GCM-SHA256 TLSv1.2 '
        'arn:aws:elasticloadbalancing:eu-west-1:1:targetgroup/t/1 "Root=1-58337364-23a8" "shop.test" '
        f'"arn:aws:acm:eu-west-1:1:certificate/1" 0 {iso(request, 6)} "waf,forward" "-" "-" '
        '"10.0.0.7:80" "200" "-" "-" TID_f8d4f0d3a5a2b6'
    )


def elb(request: Request) -> str:
    return (
        f"{iso(request, 6)} shop {socket(request)} 10.0.0.7:80 0.000073 0.001048 0.000057 {request.status} "
        f'200 0 {request.size} "{request.method} http://shop.test:80{request.target} {request.protocol}" '
        f'"{nginx(request.agent)}" - -'
    )


def cloudfront(request: Request) -> str:
    def encoded(text: str | None) -> str:
        return "-" if text is None else quote(text, safe="/:;=+()")

    return "\t".join(
        [
            f"{request.utc():%Y-%m-%d}",
            f"{request.utc():%H:%M:%S}",
            *("FRA50-C1", str(request.size), request.client, request.method, "d1.cloudfront.net"),
            *(request.path, str(request.status), encoded(request.referrer), encoded(request.agent)),
            *(request.query or "-", "-", "Hit", "SOX4xwn4==", "shop.test", "https", "23", "0.001"),
            *("-", "TLSv1.3", "TLS_AES_128_GCM_SHA256", "Hit", request.protocol, "-", "-", "11040"),
            *("0.001", "Hit", "text/html", "78", "-", "-"),
        ]
    )


def s3(request: Request) -> str:
    owner = "79a59df900b949e55d96a1e698fbacedfd6e09d98eacf8f8d5218e7cd47ef2be"
    return (
        f"{owner} shop-images [{clf_time(request)}] {request.client} {request.user or '-'} 3E57427F3EXAMPLE "
        f'REST.GET.OBJECT logo.png "{apache(request.line)}" {request.status} - {request.size} 113 7 5 '
        f'"{apache(request.referrer)}" "{apache(request.agent)}" - s9lzHYrFp76ZVxRcpX9+5cj= SigV4 '
        "ECDHE-RSA-AES128-GCM-SHA256 AuthHeader shop-images.s3.amazonaws.com TLSv1.2 - -"
    )


def compact(entry: object) -> str:
    return json.dumps(entry, separators=(",", ":"))


def caddy(request: Request) -> str:
    headers = {"Accept": ["*/*"]}
    if request.agent is not None:
        headers["User-Agent"] = [request.agent]
    if request.referrer is not None:
        headers["Referer"] = [request.referrer]
    return compact(
        {
            "level": "info",
            "ts": request.milliseconds / 1000,
            "logger": "http.log.access.log0",
            "msg": "handled request",
            "request": {
                "remote_ip": request.client,
                "remote_port": "41342",
                "client_ip": request.forwarded or request.client,
                "proto": request.protocol,
                "method": request.method,
                "host": "shop.test",
                "uri": request.target,
                "headers": headers,
                "tls": {"resumed": False, "version": 772},
            },
            "bytes_read": 0,
            "user_id": request.user or "",
            "duration": 0.000929675,
            "size": request.size,
            "status": request.status,
            "resp_headers": {"Server": ["Caddy"]},
        }
    )


def traefik_json(request: Request) -> str:
    entry = {
        "ClientAddr": f"{request.client}:50312",
        "ClientHost": request.client,
        "ClientUsername": request.user or "-",
        "DownstreamContentSize": request.size,
        "DownstreamStatus": request.status,
        "Duration": 920_832,
        "OriginStatus": 502,
        "RequestMethod": request.method,
        "RequestPath": request.target,
        "RequestProtocol": request.protocol,
        "StartUTC": iso(request, 9),
        "level": "info",
        "msg": "",
        "request_User-Agent": request.agent,
        "request_Referer": request.referrer,
        "time": "2020-01-01T00:00:00Z",
    }
    return compact({name: value for name, value in entry.items() if value is not None})


def google(request: Request) -> str:
    asked = {
        "latency": "0.010999s",
        "remoteIp": request.client,
        "requestMethod": request.method,
        "requestUrl": f"https://shop.test{request.target}",
        "responseSize": str(request.size),
        "protocol": request.protocol,
        "status": request.status,
        "userAgent": request.agent,
        "referer": request.referrer,
    }
    kind = "type.googleapis.com/google.cloud.loadbalancing.type.LoadBalancerLogEntry"
    return compact(
        {
            "httpRequest": {name: value for name, value in asked.items() if value is not None},
            "insertId": "dlgbhuf4lqynu",
            "jsonPayload": {"@type": kind, "statusDetails": "response_sent_by_backend"},
            "logName": "projects/shop/logs/requests",
            "timestamp": iso(request, 6),
        }
    )


def application_gateway(request: Request) -> str:
    return compact(
        {
            "timeStamp": iso(request),
            "category": "ApplicationGatewayAccessLog",
            "operationName": "ApplicationGatewayAccess",
            "properties": {
                "clientIP": request.client,
                "clientPort": 45_057,
                "httpMethod": request.method,
                "originalRequestUriWithArgs": request.target,
                "requestUri": "/rewritten",
                "requestQuery": "",
                "userAgent": request.agent or "-",
                "httpStatus": request.status,
                "httpVersion": request.protocol,
                "sentBytes": request.size,
            },
        }
    )


def front_door(request: Request) -> str:
    return compact(
        {
            "time": iso(request, 7),
            "category": "FrontDoorAccessLog",
            "operationName": "Microsoft.Cdn/Profiles/AccessLog/Write",
            "properties": {
                "httpMethod": request.method,
                "httpVersion": f"{request.protocol.removeprefix('HTTP/')}.0.0",
                "requestUri": f"https://shop.test:443{request.target}",
                "clientIp": request.forwarded or request.client,
                "socketIp": request.client,
                "httpStatusCode": str(request.status),
                "responseBytes": str(request.size),
                "userAgent": request.agent or "",
            },
        }
    )


class Written:
    """A format's renderer, and the expected hit."""

    def __init__(
        self,
        name: str,
        render: Callable[[Request], str],
        expected: Callable[[Request], Hit],
        *limits: Callable[[Request], Request],
    ) -> None:
        self.name = name
        self.render = render
        self.expected = expected
        self._limits = limits

    def possible(self, request: Request) -> Request:
        """The request, changed to one that this server can log."""
        for limit in self._limits:
            request = limit(request)
        return request

    def __repr__(self) -> str:
        return self.render.__name__


def without_headers(request: Request) -> Hit:
    return request.hit(referrer=None, agent=None)


def balancer(request: Request) -> Hit:
    return request.exact(user=None, referrer=None)


def is_ip(request: Request) -> bool:
    return ":" in request.client or request.client.replace(".", "").isdigit()


def by_address(request: Request) -> Request:
    return request if is_ip(request) else replace(request, client="192.0.2.77")


def unescaped(request: Request) -> Request:
    """The text without characters that would have to be escaped."""
    referrer, agent = (
        text and text.replace('"', "'").replace("\\", "/") for text in (request.referrer, request.agent)
    )
    return replace(request, referrer=referrer, agent=agent)


def one_word_user(request: Request) -> Request:
    return replace(request, user=request.user and request.user.replace(" ", ""))


def vhost_combined(request: Request) -> str:
    return f"www.shop.test:443 {combined(request)}"


def vhost_common(request: Request) -> str:
    return f"127.0.1.1:80 {common(request)}"


def vhost_name(request: Request) -> str:
    return f"www.shop.test {combined(request)}"


def combined_nginx(request: Request) -> str:
    return combined(request, nginx)


WRITTEN = [
    Written("common", common, without_headers),
    Written("combined", combined, Request.hit),
    Written("combined", combined_nginx, Request.hit),
    Written("main", main, Request.hit),
    Written("vhost_combined", vhost_combined, Request.hit),
    Written("vhost_combined", vhost_name, Request.hit, by_address),
    Written("vhost_common", vhost_common, without_headers, by_address),
    Written("traefik", traefik, Request.hit, unescaped),
    Written(
        "haproxy",
        haproxy,
        lambda request: request.exact(user=None, referrer=None, agent=None),
        by_address,
    ),
    Written(
        "haproxy",
        syslog,
        lambda request: request.exact(user=None, referrer=None, agent=None),
        by_address,
    ),
    Written("alb", alb, balancer, by_address),
    Written("elb", elb, balancer, by_address),
    Written(
        "cloudfront",
        cloudfront,
        lambda request: request.hit(
            user=None, query=request.query if request.query not in {"", "-"} else None
        ),
        by_address,
    ),
    Written("s3", s3, Request.hit, by_address, one_word_user),
    Written("caddy", caddy, Request.exact, by_address),
    Written("traefik_json", traefik_json, Request.exact, by_address),
    Written("google", google, lambda request: request.exact(user=None), by_address),
    Written("azure_application_gateway", application_gateway, balancer, by_address),
    Written("azure_front_door", front_door, balancer, by_address),
]

# Ambiguous texts, drawn rather than generated: hundreds of lines a second.
TEXTS = [
    *(None, None, "Mozilla/5.0 (X11; Linux x86_64; rv:151.0) Gecko/20100101", "curl/8.14.1", "-x", "x"),
    *("a \\ b", "\\", "\\x22", "[17/May/2015:10:05:03 +0000]", "200 512 -", "https://shop.test/?a=b&c=d%20e"),
    *("203.0.113.66 - -", "{}|}", "a, b; c='d'", "%{x}i $y", "'; drop table hits --"),
]
QUOTED = ['say "hi"', '"', '\\"', '" 200 5 "-" "x"', '"]}', '" "', '\\\\"']
USERS = [None, None, "ann", "Ann B. Lee", "ann@shop.test", "a-b", "o'neill", "x:y"]
PATHS = ["/", "/a/b.png", "/caf%C3%A9", "/a:b@c,d;e", "/%22", "/-", "/a//b/../c", "/x=1&y", "/'q'"]
QUERIES = [None, None, "", "a=b&c=d", "q=%22oak+table%22", "a=[1]?", "x=/y:z", "-"]
ADDRESSES = [
    "203.0.113.9",
    "198.51.100.70",
    "8.8.8.8",
    "2001:db8::7334",
    "::1",
    "::ffff:192.0.2.1",
    "255.255.255.255",
]
NAMES = ["crawl-66.example.com", "localhost", "web_1", "a.b.c.d.example"]

requests = st.builds(
    Request,
    milliseconds=st.sampled_from([86_400_000, 1_431_857_103_999, 1_582_934_400_000, 4_102_444_800_001])
    | st.integers(86_400_000, 4_102_444_800_000),
    client=st.sampled_from([*ADDRESSES, *NAMES]),
    user=st.sampled_from(USERS),
    method=st.sampled_from(["GET", "POST", "PROPFIND", "VERSION-CONTROL"]),
    path=st.sampled_from(PATHS),
    query=st.sampled_from(QUERIES),
    protocol=st.sampled_from(["HTTP/1.0", "HTTP/1.1", "HTTP/2.0"]),
    status=st.sampled_from([100, 200, 304, 444, 499, 599]),
    size=st.sampled_from([0, 7, 512, 10**17]),
    referrer=st.sampled_from([*TEXTS, *QUOTED]),
    agent=st.sampled_from([*TEXTS, *QUOTED]),
    forwarded=st.sampled_from([None, "192.0.2.66", "192.0.2.66, 10.0.0.1"]),
    zone=st.sampled_from([0, 0, 120, 345, -210]),
)
addresses = st.sampled_from(ADDRESSES)
names = st.sampled_from(NAMES)
every_format = pytest.mark.parametrize("written", WRITTEN, ids=repr)


def outcome(line: str, parser: Callable[[str], Hit] = parse) -> Hit | None:
    """The hit, or nothing where the line is refused: coordinates must be those of what was refused."""
    try:
        return parser(line)
    except MalformedLine as refusal:
        error = refusal
    assert line.startswith(error.got, error.column - 1)
    return None


@every_format
@settings(max_examples=25)
@given(request=requests)
def test_each_format_gives_back_what_its_server_wrote(written, request):
    request = written.possible(request)
    line = written.render(request)
    for text in (line, f"{line}\n", f"{line}\r\n", f"\ufeff{line}"):
        assert outcome(text) == written.expected(request)
    if written.render is not syslog:
        assert outcome(line, line_parser(written.name)) == written.expected(request)


@every_format
@settings(max_examples=12)
@given(request=requests)
def test_no_other_format_makes_another_hit_of_a_line(written, request):
    request = written.possible(request)
    line = written.render(request)
    for name in FORMATS:
        found = outcome(line, line_parser(name))
        assert found is None or found == written.expected(request)


@every_format
@settings(max_examples=25)
@given(request=requests, data=st.data())
def test_a_line_that_was_cut_gives_its_hit_or_none(written, request, data):
    request = written.possible(request)
    line = written.render(request)
    at = data.draw(st.integers(0, len(line) - 1))
    whole = written.expected(request)
    assert outcome(line[:at] + "\0" * 9) in {None, whole}
    for cut in (line[:at], line[:at] + "\r\n"):
        found = outcome(cut)
        if found is None or found == whole:
            continue
        # A common line ends with the size, so a longer line that was cut there is not detected. If the longer
        # format is given, it is refused.
        assert written.name in {"common", "combined", "main", "vhost_common", "vhost_combined", "traefik"}
        assert line[:at].rpartition(" ")[2].isdigit()
        assert replace_rest(found, whole) == whole
        if "common" not in written.name:
            assert outcome(cut, line_parser(written.name)) is None


def replace_rest(found: Hit, whole: Hit) -> Hit:
    """The hit with the size and later fields of the other one."""
    return Hit(
        found.time,
        found.client,
        found.user,
        found.method,
        found.path,
        found.query,
        found.protocol,
        found.status,
        found.status_class,
        whole.bytes,
        whole.referrer,
        whole.agent,
        whole.bot,
    )


@every_format
@settings(max_examples=25)
@given(first=requests, second=requests, data=st.data())
def test_lines_that_run_together_give_one_of_their_hits_or_none(written, first, second, data):
    first, second = written.possible(first), written.possible(second)
    left, right = written.render(first), written.render(second)
    # A part of an address before another address may form a third one: cut after that field.
    client = left.index(first.client) + len(first.client)
    at = data.draw(st.integers(next(i for i in range(client, len(left)) if left[i] in ' \t"') + 1, len(left)))
    found = outcome(left[:at] + right)
    assert found is None or found in (written.expected(first), written.expected(second))


@every_format
@settings(max_examples=25)
@given(request=requests, data=st.data())
def test_a_hole_in_a_line_gives_none(written, request, data):
    request = written.possible(request)
    line = written.render(request)
    start = data.draw(st.integers(0, len(line)))
    end = data.draw(st.integers(start, len(line)))
    found = outcome(line[:start] + "\0" * max(1, end - start) + line[end:])
    # Fields that a hit does not have may contain NUL bytes.
    assert found is None or found == written.expected(request)


@settings(max_examples=100)
@given(
    request=requests,
    in_front=st.lists(addresses | names | st.just("-") | st.just("unknown"), min_size=1, max_size=3),
    separator=st.sampled_from([", ", ",", " "]),
    port=st.sampled_from(["", ":443", ":80", ":51234"]),
)
def test_what_stands_in_front_of_the_client_never_becomes_the_client(request, in_front, separator, port):
    request = by_address(request)
    found = outcome(f"{separator.join(in_front)}{port} {combined(request)}")
    assert found is None or found == request.hit()


@settings(max_examples=100)
@given(request=requests, behind=addresses | names)
def test_what_stands_after_the_client_never_becomes_the_client(request, behind):
    request = by_address(request)
    line = combined(request)
    found = outcome(line.replace(request.client, f"{request.client} {behind}", 1))
    assert found is None or found.client == request.client


# ---- Lines from public documentation and from practice.

TIME = "25/Jul/2026:17:38:53 +0000"
REST = f'[{TIME}] "GET /shop HTTP/1.1" 200 512'


@pytest.mark.parametrize(
    "line",
    [
        f'www.shop.test:443 203.0.113.9 - - {REST} "-" "Mozilla/5.0"',
        f'www.shop.test 203.0.113.9 - - {REST} "-" "Mozilla/5.0"',
        f"[2001:db8::80]:443 203.0.113.9 - - {REST}",
        f'*.shop.test:443 203.0.113.9 - - {REST} "-" "Mozilla/5.0"',
        f'- 203.0.113.9 - - {REST} "-" "Mozilla/5.0"',
        f'_ 203.0.113.9 - - {REST} "-" "Mozilla/5.0"',
        f'203.0.113.9 - - {REST} "-" "Mozilla/5.0" "-"',
        f'203.0.113.9 - - {REST} "-" "Mozilla/5.0" "198.51.100.7"',
        f'203.0.113.9 - - {REST} "-" "Mozilla/5.0" "198.51.100.7, 10.0.0.1"',
        f'203.0.113.9 - - {REST} "-" "Mozilla/5.0" "\' or 1=1 --"',
        f'<190>Jul 25 17:38:53 web1 nginx: 203.0.113.9 - - {REST} "-" "Mozilla/5.0" "-"',
        f"2026-07-25T17:38:53.123456+00:00 web1 nginx[7]: 203.0.113.9 - - {REST}",
        f"<134>1 2026-07-25T17:38:53.123Z web1 nginx 7 - - 203.0.113.9 - - {REST}",
    ],
)
def test_the_requesting_address_is_the_client(line):
    assert parse(line).client == "203.0.113.9"
    assert parse(line).user is None


@pytest.mark.parametrize(
    "start",
    [
        "198.51.100.7, 203.0.113.9 - -",
        "198.51.100.7,203.0.113.9 - -",
        "198.51.100.7 203.0.113.9 - -",
        "198.51.100.7:51234 203.0.113.9 - -",
        '"198.51.100.7, 10.0.0.1" 203.0.113.9 - -',
        "unknown, 203.0.113.9 - -",
        "www.shop.test:443 - -",
        "www.shop.test 198.51.100.7 203.0.113.9 - -",
        "203.0.113.9 www.shop.test - -",
        "client.example.com www.shop.test - -",
        "203.0.113.9 - - -",
        "- - -",
        ".216 - -",
        "49.9.216 - -",
        "3.1.4.1.5 - -",
        "300.1.1.1 - -",
    ],
)
def test_a_line_that_leaves_open_who_asked_is_refused(start):
    assert outcome(f'{start} {REST} "-" "Mozilla/5.0"') is None


@pytest.mark.parametrize(
    ("client", "read"),
    [("[2001:db8::1]", "2001:db8::1"), ("fe80::1%eth0", "fe80::1%eth0"), ("unix:", "unix:")],
)
def test_addresses_may_have_zones_and_brackets(client, read):
    assert parse(f"{client} - - {REST}").client == read


@pytest.mark.parametrize("status", ["444", "499", "520", "599"])
def test_statuses_of_proxies_are_statuses(status):
    assert parse(f'203.0.113.9 - - [{TIME}] "GET / HTTP/1.1" {status} 0 "-" "-"').status == int(status)


@pytest.mark.parametrize("status", ["000", "0", "-", "-1", "999"])
def test_a_request_without_a_status_is_refused(status):
    with pytest.raises(MalformedLine, match="bad status"):
        parse(f'203.0.113.9 - - [{TIME}] "GET / HTTP/1.1" {status} 0 "-" "-"')


def test_haproxy_and_balancers_without_an_answer_are_refused():
    with pytest.raises(MalformedLine, match="bad status"):
        parse(
            "203.0.113.9:33317 [06/Feb/2009:12:14:14.655] in static/<NOSRV> -1/-1/-1/-1/9 -1 0 - - CR-- "
            '1/1/1/1/0 0/0 "<BADREQ>"'
        )
    with pytest.raises(MalformedLine, match="bad status"):
        parse(
            "2015-05-13T23:39:43.945958Z lb 203.0.113.9:2817 10.0.0.1:80 0.001069 0.000028 0.000041 - - "
            '82 305 "- - - " "-" - -'
        )


@pytest.mark.parametrize(
    ("written", "path"),
    [
        (r"\x16\x03\x01\x02\x00\x01", r"\x16\x03\x01\x02\x00\x01"),
        ("-", "-"),
        (r"\n", r"\n"),
        ("quit", "quit"),
        (r"GET \"", 'GET "'),
    ],
)
def test_what_broken_clients_send_is_the_path_of_a_hit_without_a_method(written, path):
    hit = parse(f'203.0.113.9 - - [{TIME}] "{written}" 400 0 "-" "-"')
    assert (hit.path, hit.status) in {(path, 400), ('"', 400)}


def test_quotes_are_undone_however_they_are_escaped():
    hits = [
        parse(f'203.0.113.9 - - {REST} "-" "{agent}"')
        for agent in (r"a \"b\" \\ c", r"a \x22b\x22 \x5C c", r"a \x22b\" \x5C c")
    ]
    assert {hit.agent for hit in hits} == {'a "b" \\ c'}
    assert parse(f'203.0.113.9 - - {REST} "-" "\\\\x22"').agent == "\\x22"


@pytest.mark.parametrize(
    "line",
    [
        "#Version: 1.0",
        "#Fields: date time x-edge-location sc-bytes c-ip",
        (
            '{"level":"error","ts":1646861401.5,"logger":"http.log.error","msg":"dial tcp","request":'
            '{"remote_ip":"203.0.113.9","method":"GET","uri":"/","proto":"HTTP/1.1"},"status":502}'
        ),
        '{"level":"info","msg":"Configuration loaded","time":"2021-06-05T04:21:11Z"}',
        '{"ClientHost":"203.0.113.9"}',
        "[25/Jul/2026:17:38:53 +0000] 203.0.113.9",
        "2026/07/25 17:38:53 [error] 29#29: *1 open() failed (2: No such file), client: 203.0.113.9",
        "2026-07-25 17:38:53,123 INFO  [main] com.shop.Orders - order 5 placed",
        "id,name,price\n",
        '1,"a, b",2',
        "\x1f\x8b\x08\x00",
        "\0" * 4096,
        "[1, 2]",
        "{" * 100_000,
        '{"a":' * 100_000,
        "null",
        "\ufeff",
    ],
)
def test_what_is_no_access_log_line_is_refused(line):
    assert outcome(line) is None


def test_half_an_object_ends_early():
    with pytest.raises(MalformedLine, match="line ends early"):
        parse('{"level":"info","ts":1646861401.52,"logger":"http.log.access","request":{"remote_ip":"127')


def test_a_first_gateways_notes_are_no_part_of_the_query():
    line = (
        '{"time":"2021-10-14T22:17:11Z","category":"ApplicationGatewayAccessLog","properties":{"clientIP":'
        '"203.0.113.9","httpMethod":"GET","requestUri":"/a","requestQuery":"b=1&X-AzureApplicationGateway-CACHE'
        '-HIT=0&SERVER-STATUS=404","userAgent":"-","httpStatus":404,"httpVersion":"HTTP/1.1","sentBytes":5}}'
    )
    assert (parse(line).path, parse(line).query, parse(line).agent) == ("/a", "b=1", None)


# ---- Custom formats.


def directive_nginx(request: Request) -> str:
    return (
        f"{request.milliseconds // 1000}.{request.milliseconds % 1000:03}|{request.client}|"
        f"{nginx(request.user)}|{request.method}|{request.path}"
        f"{'' if request.query is None else f'?{request.query}'}|{request.protocol}|{request.status}|"
        f"{request.size}|10.0.0.7:80, 10.0.0.8:80 : 10.0.0.9:80"
    )


def json_nginx(request: Request) -> str:
    def escaped(text: str | None) -> str:
        return json.dumps(text or "")[1:-1]

    return (
        f'{{"at":"{request.utc():%Y-%m-%dT%H:%M:%S}+00:00","who":"{request.client}","user":'
        f'"{escaped(request.user)}","request":"{escaped(request.line)}","status":{request.status},'
        f'"size":{request.size},"referrer":"{escaped(request.referrer)}","agent":"{escaped(request.agent)}"}}'
    )


def timed_apache(request: Request) -> str:
    return f"www.shop.test:443 {combined(request)} 1203 0"


def old_apache(request: Request) -> str:
    at = request.utc()
    return f'{request.client} {at:%Y-%m-%d %H:%M:%S} "{apache(request.line)}" {request.status} {request.size}'


OWN = [
    (
        (
            "log_format parts '$msec|$remote_addr|$remote_user|$request_method|$uri$is_args$args|'\n"
            "  '$server_protocol|$status|$body_bytes_sent|$upstream_addr';"
        ),
        directive_nginx,
        lambda request: request.exact(referrer=None, agent=None),
    ),
    (
        (
            'log_format json escape=json \'{"at":"$time_iso8601","who":"$remote_addr","user":"$remote_user",'
            '"request":"$request","status":$status,"size":$bytes_sent,"referrer":"$http_referer",\'\n'
            ' \'"agent":"$http_user_agent"}\';'
        ),
        json_nginx,
        Request.hit,
    ),
    (
        r'LogFormat "%v:%p %h %l %u %t \"%r\" %>s %O \"%{Referer}i\" \"%{User-Agent}i\" %D %k" timed',
        timed_apache,
        Request.hit,
    ),
    (
        r"%h %{%Y-%m-%d %H:%M:%S}t \"%r\" %>s %b",
        old_apache,
        lambda request: request.hit(user=None, referrer=None, agent=None),
    ),
]


@pytest.mark.parametrize(("form", "render", "expected"), OWN, ids=lambda item: getattr(item, "__name__", ""))
@settings(max_examples=25)
@given(request=requests, data=st.data())
def test_a_format_of_ones_own_gives_back_what_the_server_wrote(form, render, expected, request, data):
    own = line_parser(form)
    line = render(request)
    assert outcome(line, own) == expected(request)
    at = data.draw(st.integers(0, len(line) - 1))
    found = outcome(line[:at], own)
    assert found is None or replace_rest(found, expected(request)) == expected(request)


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ("combinde", "unknown log format 'combinde'"),
        ("$remote_addr", "it lacks a time"),
        ('%h %t "%r"', r"it lacks a status \(\$status, %>s\)"),
        ('$remote_addr$status "$request" $time_local', "two values follow each other"),
        ('$remote_addr [$time_local] $request $status "$http_user_agent"', "the request may contain spaces"),
        ('%h %t "%r" %>s %', "'%' is not a directive"),
        ("log_format x escape=xml '$remote_addr [$time_local] \"$request\" $status';", "unknown escape=xml"),
        ('%h %{%Q}t "%r" %>s', "has %Q, which is not supported"),
        ('$http_x_forwarded_for [$time_local] "$request" $status', "it lacks a client"),
    ],
)
def test_a_format_that_cannot_be_read_is_refused_with_the_reason(form, says):
    with pytest.raises(ConfigurationError, match=says):
        line_parser(form)


def test_the_forwarded_address_is_the_client_for_who_asks_for_it():
    forwarded = line_parser(client="forwarded")
    for text, client in (
        ("-", "203.0.113.9"),
        ("198.51.100.7", "198.51.100.7"),
        ("198.51.100.7, 10.0.0.1", "198.51.100.7"),
        ("198.51.100.7:51234, 10.0.0.1", "198.51.100.7"),
        ("[2001:db8::7]:51234", "2001:db8::7"),
    ):
        assert forwarded(f'203.0.113.9 - - {REST} "-" "-" "{text}"').client == client
    for text in ("unknown", "' or 1=1", "198.51.100", ""):
        with pytest.raises(MalformedLine, match="bad client"):
            forwarded(f'203.0.113.9 - - {REST} "-" "-" "{text}"')
    only = line_parser('$http_x_forwarded_for [$time_local] "$request" $status', client="forwarded")
    assert only(f'198.51.100.7, 10.0.0.1 [{TIME}] "GET / HTTP/1.1" 200').client == "198.51.100.7"


@settings(max_examples=25)
@given(request=requests, written=st.sampled_from(WRITTEN))
def test_without_being_requested_a_forwarded_address_is_never_the_client(request, written):
    request = written.possible(replace(request, forwarded="192.0.2.66"))
    hit = parse(written.render(request))
    assert hit.client == request.client


def test_times_without_an_offset_are_in_the_given_zone():
    line = (
        "203.0.113.9:33317 [06/Jul/2009:12:14:14.655] in static/srv1 10/0/30/69/109 200 2750 - - ---- "
        '1/1/1/1/0 0/0 "GET / HTTP/1.1"'
    )
    at = datetime(2009, 7, 6, 10, 14, 14, 655_000, UTC).timestamp() * 1000
    assert line_parser(time_zone="Europe/Berlin")(line).time == at
    assert parse(line).time == at + 7_200_000
    # Other formats include the offset.
    assert line_parser(time_zone="Europe/Berlin")(f"203.0.113.9 - - {REST}") == parse(
        f"203.0.113.9 - - {REST}"
    )


def test_the_environment_chooses_the_parser():
    assert configured_parser({}) is parse
    chosen = configured_parser(
        {"LOG_ANALYSIS_FORMAT": "main", "LOG_ANALYSIS_CLIENT": "forwarded", "LOG_ANALYSIS_TIME_ZONE": "UTC"}
    )
    assert chosen(f'203.0.113.9 - - {REST} "-" "-" "198.51.100.7"').client == "198.51.100.7"
    assert outcome(f"203.0.113.9 - - {REST}", chosen) is None
    several = configured_parser({"LOG_ANALYSIS_FORMAT": '%h %t "%r" %>s', "LOG_ANALYSIS_ALSO": "common s3"})
    assert several(f'203.0.113.9 [{TIME}] "GET / HTTP/1.1" 200') == several(
        f'203.0.113.9 - - [{TIME}] "GET / HTTP/1.1" 200 0'
    )
    assert outcome(f'203.0.113.9 - - {REST} "-" "-"', several) is None
    for wrong in (
        {"LOG_ANALYSIS_CLIENT": "proxy"},
        {"LOG_ANALYSIS_TIME_ZONE": "Berlin"},
        {"LOG_ANALYSIS_FORMAT": "main", "LOG_ANALYSIS_ALSO": "proxy"},
    ):
        with pytest.raises(ConfigurationError, match=r"proxy|Berlin"):
            configured_parser(wrong)
