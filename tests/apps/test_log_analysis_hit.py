from __future__ import annotations

import io
import json
import os
import pickle
from collections import Counter
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import fastavro
import msgspec
import pytest
from hypothesis import given, strategies as st

from apps.log_analysis import hit as log
from apps.log_analysis.hit import MONTHS, Hit, MalformedLine, Memo, is_bot, milliseconds, parse

ROOT = Path(__file__).parents[2]

TIME = "17/May/2015:10:05:03 +0000"
LINE = (
    f'83.149.9.216 - ann [{TIME}] "GET /a/b.png?size=2 HTTP/1.1" 200 2326 "http://example.com/" "Mozilla/5.0"'
)


def line(
    *,
    client: str = "83.149.9.216",
    user: str = "-",
    time: str = TIME,
    request: str = "GET / HTTP/1.1",
    status: str = "200",
    size: str = "2326",
    rest: str = ' "-" "Mozilla/5.0"',
) -> str:
    return f'{client} - {user} [{time}] "{request}" {status} {size}{rest}'


def escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def written(time: datetime) -> str:
    minutes = round((time.utcoffset() or timedelta()).total_seconds() / 60)
    zone = f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02}{abs(minutes) % 60:02}"
    return f"{time.day:02}/{MONTHS[time.month - 1]}/{time.year:04}:{time:%H:%M:%S} {zone}"


def refusal(text: str) -> MalformedLine:
    with pytest.raises(MalformedLine) as caught:
        parse(text)
    return caught.value


def test_parses_the_combined_format():
    assert parse(LINE) == Hit(
        time=1_431_857_103_000,
        client="83.149.9.216",
        user="ann",
        method="GET",
        path="/a/b.png",
        query="size=2",
        protocol="HTTP/1.1",
        status=200,
        status_class="2xx",
        bytes=2326,
        referrer="http://example.com/",
        agent="Mozilla/5.0",
        bot=False,
    )


def test_parses_the_common_format_which_has_no_referrer_and_no_agent():
    hit = parse(line(rest=""))
    assert (hit.status, hit.bytes, hit.referrer, hit.agent, hit.bot) == (200, 2326, None, None, False)


def test_a_dash_is_no_user_no_referrer_no_agent_and_no_bytes():
    hit = parse(line(user="-", size="-", rest=' "-" "-"'))
    assert (hit.user, hit.referrer, hit.agent, hit.bytes) == (None, None, None, 0)


def test_line_breaks_at_the_end_are_no_part_of_the_line():
    assert parse(LINE + "\n") == parse(LINE + "\r\n") == parse(LINE)
    assert parse(line(rest="\n")) == parse(line(rest=""))


@pytest.mark.parametrize(
    "client", ["2001:db8::7334", "::1", "fe80::1%eth0", "crawl-66.example.com", "localhost"]
)
def test_parses_ipv6_clients_and_host_names(client):
    assert parse(line(client=client)).client == client


def test_a_user_name_may_hold_blanks():
    assert parse(line(user="Ann B. Lee")).user == "Ann B. Lee"


@pytest.mark.parametrize(
    ("request_text", "method", "path", "query", "protocol"),
    [
        ("GET /a HTTP/2.0", "GET", "/a", None, "HTTP/2.0"),
        ("GET /a? HTTP/1.1", "GET", "/a", "", "HTTP/1.1"),
        ("GET /a?b=1?c=2 HTTP/1.1", "GET", "/a", "b=1?c=2", "HTTP/1.1"),
        ("GET /", "GET", "/", None, "HTTP/0.9"),
        ("GET http://example.com/a?b HTTP/1.1", "GET", "http://example.com/a", "b", "HTTP/1.1"),
        ("OPTIONS * HTTP/1.0", "OPTIONS", "*", None, "HTTP/1.0"),
        ("CONNECT example.com:443 HTTP/1.1", "CONNECT", "example.com:443", None, "HTTP/1.1"),
        ("VERSION-CONTROL /a HTTP/1.1", "VERSION-CONTROL", "/a", None, "HTTP/1.1"),
        ("GET /my file.txt HTTP/1.1", "GET", "/my file.txt", None, "HTTP/1.1"),
        ("GET /a HTTP/1.1 HTTP/1.1", "GET", "/a HTTP/1.1", None, "HTTP/1.1"),
        (r"GET /say?\"hi\" HTTP/1.1", "GET", "/say", '"hi"', "HTTP/1.1"),
        (r"GET /caf\xc3\xa9 HTTP/1.1", "GET", r"/caf\xc3\xa9", None, "HTTP/1.1"),
    ],
)
def test_splits_a_request_into_method_path_query_and_protocol(request_text, method, path, query, protocol):
    hit = parse(line(request=request_text))
    assert (hit.method, hit.path, hit.query, hit.protocol) == (method, path, query, protocol)


@pytest.mark.parametrize(
    "request_text", ["-", r"\x16\x03\x01\x02", "quit", "get it", "GET", "GET  /", "?a=b"]
)
def test_a_request_that_is_not_http_is_a_hit_whose_path_is_its_text(request_text):
    hit = parse(line(request=request_text, status="408"))
    assert (hit.method, hit.path, hit.query, hit.protocol) == ("-", request_text, None, "-")
    assert (hit.status, hit.status_class) == (408, "4xx")


def test_escaped_quotes_and_backslashes_are_undone_and_other_escapes_kept():
    hit = parse(line(rest=r' "C:\\dir\\" "say \"hi\" \x80\t\\"'))
    assert hit.referrer == "C:\\dir\\"
    assert hit.agent == r'say "hi" \x80\t' + "\\"


@pytest.mark.parametrize(
    ("status", "status_class"), [(100, "1xx"), (204, "2xx"), (399, "3xx"), (499, "4xx"), (599, "5xx")]
)
def test_the_status_class_is_the_first_digit(status, status_class):
    hit = parse(line(status=str(status)))
    assert (hit.status, hit.status_class) == (status, status_class)


@pytest.mark.parametrize(
    "agent",
    [
        "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
        "Mozilla/5.0 (compatible; Yahoo! Slurp)",
        "BAIDUSPIDER",
        "curl/8.14.1",
        "python-requests/2.32.3",
        "Tiny Tiny RSS/1.11 (http://tt-rss.org/)",
        "Ezooms/1.0; help@moz.com",
    ],
)
def test_crawlers_libraries_and_feed_readers_are_bots(agent):
    assert is_bot(agent)
    assert parse(line(rest=f' "-" "{agent}"')).bot


@pytest.mark.parametrize(
    "agent",
    [
        "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:151.0) Gecko/20100101 Firefox/151.0",
        "Mozilla/5.0 (Linux; Android 9; CUBOT X19) AppleWebKit/537.36 Chrome/148.0 Mobile Safari/537.36",
        "Opera/9.80 (J2ME/MIDP; Opera Mini/7.1) Presto/2.12 Version/12.16",
    ],
)
def test_browsers_are_no_bots(agent):
    assert not is_bot(agent)


NOT_THE_FORMAT = "not a known format"


@pytest.mark.parametrize(
    ("text", "reason", "column"),
    [
        ("", NOT_THE_FORMAT, 1),
        ("hello", NOT_THE_FORMAT, 1),
        ("three words here", NOT_THE_FORMAT, 17),
        ("\x16\x03\x01\x00", NOT_THE_FORMAT, 1),
        (f" {LINE}", NOT_THE_FORMAT, 1),
        (f"\n{LINE}", NOT_THE_FORMAT, 1),
        (line(rest=' "-" "a" 0.002'), NOT_THE_FORMAT, 80),
        (line(rest=' "-" "a"b"'), NOT_THE_FORMAT, 80),
        (line(rest=" "), "line ends early", 72),
        (line(rest=' "-"'), "line ends early", 76),
        (line(rest=' "-" "Mozilla/5.0 (comp'), "line ends early", 76),
        (line(rest=' "-" "escaped \\"'), "line ends early", 76),
        (LINE[:30], "line ends early", 19),
        (LINE[:50], "line ends early", 48),
        (line(time="17/May/2015 10:05:03"), "bad time", 19),
        (line(time="2015-05-17T10:05:03Z"), "bad time", 19),
        (line(time=""), "bad time", 19),
        (line(request=""), "no request", 48),
        (line(request="  "), "no request", 48),
        (line(status="600"), "bad status", 64),
        (line(status="099"), "bad status", 64),
        (line(status="2xx"), "bad status", 64),
        (line(status="٢٠٠"), "bad status", 64),
        (line(size="12kB"), "bad size", 68),
        (line(size="-1"), "bad size", 68),
        (line(size="1_000"), "bad size", 68),
        (line(size="9" * 19), "bad size", 68),
        (line(size="9" * 5_000), "bad size", 68),
    ],
)  # fmt: skip
def test_a_malformed_line_is_refused_with_its_reason_and_column(text, reason, column):
    error = refusal(text)
    assert (error.reason, error.column) == (reason, column)


@pytest.mark.parametrize(
    "time",
    [
        "31/Apr/2015:10:05:03 +0000",
        "29/Feb/2015:10:05:03 +0000",
        "00/May/2015:10:05:03 +0000",
        "17/May/0000:10:05:03 +0000",
        "17/Mai/2015:10:05:03 +0000",
        "17/may/2015:10:05:03 +0000",
        "17/May/2015:24:05:03 +0000",
        "17/May/2015:10:60:03 +0000",
        "17/May/2015:10:05:60 +0000",
        "17/May/2015:10:05:03 +2400",
        "17/May/2015:10:05:03 +0060",
        "17/May/2015:10:05:03 0000",
        "17/May/2015:10:05:03",
        "17/May/2015:10:05:03 +0000 ",
        "31/Dec/1969:23:59:59 +0000",
        "01/Jan/1970:00:00:00 +0100",
    ],
)
def test_a_time_that_does_not_exist_or_lies_before_1970_is_bad(time):
    assert refusal(line(time=time)).reason == "bad time"


def test_the_first_thing_that_is_wrong_is_reported():
    assert refusal(line(time="-", status="abc", rest=' "')).reason == "bad time"
    assert refusal(line(status="abc", rest=' "')).reason == "bad status"


def test_a_refusal_says_what_was_needed_and_what_came():
    error = refusal(line(status="abc"))
    assert str(error) == "bad status at column 64: needed a status from 100 to 599, got 'abc'"
    assert (error.needed, error.got) == ("a status from 100 to 599", "abc")
    assert str(refusal(line(rest=' "-"'))).endswith("needed a quoted user agent, got nothing")


def test_a_refusal_shows_no_more_than_the_begin_of_a_long_text():
    assert len(str(refusal("x" * 10_000))) < 150


def test_a_refusal_can_be_pickled():
    error = refusal(line(size="12kB"))
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.reason, copy.column) == (str(error), error.reason, error.column)


# A server writes a NUL byte escaped.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60)
quoted = st.none() | texts.filter(lambda text: text != "-")
words = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters='[]"\\?'), min_size=1)
# A word that is only a dash is a separate field.
users = st.none() | st.lists(words.filter(lambda word: word != "-"), min_size=1, max_size=3).map(" ".join)
names = st.from_regex(
    r"([a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?\.){0,3}[a-z]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True
)
clients = st.ip_addresses().map(str) | names
zones = st.integers(-1_439, 1_439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
moments = st.datetimes(datetime(1970, 1, 2), datetime(9999, 12, 30), timezones=zones).map(  # noqa: DTZ001  # timezones= adds them
    lambda time: time.replace(microsecond=0)
)


@given(
    client=clients,
    user=users,
    time=moments,
    method=st.sampled_from(["GET", "POST", "HEAD", "PROPFIND", "M-SEARCH"]),
    path=words.map(lambda word: f"/{word}"),
    query=st.none() | words,
    protocol=st.sampled_from(["HTTP/1.0", "HTTP/1.1", "HTTP/2.0", "HTTP/3"]),
    status=st.integers(100, 599),
    size=st.none() | st.integers(0, 10**18 - 1),
    referrer=quoted,
    agent=quoted,
    combined=st.booleans(),
)
def test_parse_gives_back_every_field_a_server_wrote(
    client, user, time, method, path, query, protocol, status, size, referrer, agent, combined
):
    def dashed(text: str | None) -> str:
        return "-" if text is None else escaped(text)

    target = path if query is None else f"{path}?{query}"
    text = line(
        client=client,
        user="-" if user is None else user,
        time=written(time),
        request=escaped(f"{method} {target} {protocol}"),
        status=str(status),
        size="-" if size is None else str(size),
        rest=f' "{dashed(referrer)}" "{dashed(agent)}"' if combined else "",
    )
    assert parse(text) == Hit(
        time=round(time.timestamp()) * 1000,
        client=client,
        user=user,
        method=method,
        path=path,
        query=query,
        protocol=protocol,
        status=status,
        status_class=f"{status // 100}xx",
        bytes=size or 0,
        referrer=referrer if combined else None,
        agent=agent if combined else None,
        bot=combined and agent is not None and is_bot(agent),
    )


@given(moments)
def test_times_in_any_zone_are_those_that_strptime_reads(time):
    text = written(time)
    expected = datetime.strptime(text, "%d/%b/%Y:%H:%M:%S %z")
    assert milliseconds(text) == round(expected.timestamp()) * 1000


odd_times = st.from_regex(
    r"[0-3][0-9]/(Feb|Apr|May|Dec|Foo)/(19[67]|20[02])[0-9]"
    r":[0-2][0-9]:[0-6][0-9]:[0-5][0-9] [+-][0-2][0-9][0-6][0-9]",
    fullmatch=True,
)


@given(odd_times)
def test_times_are_refused_exactly_when_strptime_refuses_them_or_they_lie_before_1970(text):
    try:
        expected = datetime.strptime(text, "%d/%b/%Y:%H:%M:%S %z").timestamp() * 1000
    except ValueError:
        expected = -1
    if expected < 0:
        with pytest.raises(ValueError):
            milliseconds(text)
    else:
        assert milliseconds(text) == expected


def parsed_or_refused(text: str) -> Hit | MalformedLine:
    try:
        return parse(text)
    except MalformedLine as error:
        return error


def check_outcome(text: str) -> None:
    outcome = parsed_or_refused(text)
    if isinstance(outcome, Hit):
        assert msgspec.json.decode(msgspec.json.encode(outcome), type=Hit) == outcome
    else:
        assert text.startswith(outcome.got, outcome.column - 1)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_is_a_hit_or_malformed(text):
    check_outcome(text)


@given(
    st.lists(
        st.sampled_from(
            [*LINE.split(" "), " ", '"', "\\", "[", "]", "-", "\n", "HTTP/1.1", TIME, "200", "2", "é"]
        )
    ).map("".join)
)
def test_any_mixture_of_what_lines_are_made_of_is_a_hit_or_malformed(text):
    check_outcome(text)


@given(
    st.integers(0, len(LINE)),
    st.integers(0, 10),
    st.sampled_from(["", " ", '"', "\\", '\\"', "]", "[", "\n", "9", "x"]),
)
def test_a_line_with_a_piece_replaced_is_a_hit_or_malformed(at, length, piece):
    check_outcome(LINE[:at] + piece + LINE[at + length :])


@pytest.mark.parametrize(
    "text",
    [
        " " * 1_000_000,
        "a " * 500_000,
        "[" * 1_000_000,
        "- - - [" * 150_000,
        "a - b [" + "[" * 1_000_000,
        "a - " + "b [c " * 200_000,
        line(request="\\" * 999_999),
        line(request='\\"' * 500_000),
        line(request="GET /" + " HTTP/1.1" * 100_000),
        line(request="GET /" + " HTTP/1" * 100_000 + " "),
        line(request="GET /" + " A" * 500_000),
        line(request="A-" * 500_000),
        line(rest=' "' + '\\"' * 500_000),
        line(rest=' "' + "\\" * 1_000_000),
        line(rest=' "' + '" "' * 300_000),
        line(rest="\r\n" * 500_000 + "x"),
        line(size="1" * 1_000_000),
        line(time="1" * 1_000_000),
        line(rest=' "-" "' + "bo" * 500_000 + '"'),
    ],
    ids=lambda text: f"{text[-20:]!r}",
)
def test_a_line_of_a_million_characters_takes_no_more_than_linear_time(text):
    # A quadratic parser would take hours and run into the suite's time limit.
    check_outcome(text)


def test_a_memo_computes_once_and_holds_at_most_its_limit():
    computed: list[str] = []

    def length(text: str) -> int:
        computed.append(text)
        return len(text)

    memo = Memo(length, limit=3)
    assert [memo[text] for text in ["a", "bb", "a", "bb"]] == [1, 2, 1, 2]
    assert computed == ["a", "bb"]
    for number in range(100):
        assert memo[f"{number:03}"] == 3
        assert len(memo) <= 3


def test_a_memo_does_not_keep_long_texts():
    memo = Memo(len, longest=10)
    assert memo["x" * 11] == 11
    assert not memo


def test_a_memo_does_not_keep_failures():
    memo = Memo(int)
    for _ in range(2):
        with pytest.raises(ValueError):
            memo["x"]
    assert not memo


def test_what_parse_remembers_is_bounded():
    memos: list[Memo[Any]] = [log.times, log.requests, log.agents]
    many = max(memo.limit for memo in memos) + 100
    times = (written(datetime.fromtimestamp(second, UTC)) for second in range(many))
    for number, time in enumerate(times):
        parse(line(time=time, request=f"GET /{number} HTTP/1.1", rest=f' "-" "agent {number}"'))
        if number % 1000 == 0 or number > many - 200:
            assert all(0 < len(memo) <= memo.limit for memo in memos)


def test_hits_share_repeated_texts():
    first, second = (parse(text) for text in (LINE, LINE.replace("10:05:03", "10:05:04")))
    assert first.path is second.path
    assert first.agent is second.agent


def test_the_avro_schema_has_the_fields_of_a_hit_in_their_order_and_carries_them():
    definition = json.loads((ROOT / "schemas" / "log_analysis.Hit.avsc").read_text(encoding="utf-8"))
    assert [field["name"] for field in definition["fields"]] == list(Hit.__struct_fields__)
    assert all(field["doc"] for field in definition["fields"])
    schema = fastavro.parse_schema(definition)
    hits = [
        parse(LINE),
        parse(line(size="9" * 18, rest="")),
        parse(line(request="-", time="30/Dec/9999:23:59:59 +0000")),
    ]
    for hit in hits:
        written_hit = io.BytesIO()
        fastavro.schemaless_writer(written_hit, schema, msgspec.structs.asdict(hit))
        written_hit.seek(0)
        assert msgspec.convert(fastavro.schemaless_reader(written_hit, schema, None), Hit) == hit


def real_log() -> Path:
    folder = os.environ.get("STREAMS_SHARED_DATA")
    return (Path(folder) if folder else ROOT.parent / "shared" / "data") / "apache_access.log"


@pytest.mark.skipif(
    not real_log().is_file(), reason="no real log: STREAMS_SHARED_DATA names the folder of apache_access.log"
)
def test_a_real_log_of_10_000_lines_parses_but_for_the_one_line_that_was_cut():
    with real_log().open(encoding="utf-8") as lines:
        outcomes = [parsed_or_refused(text) for text in lines]
    hits = [outcome for outcome in outcomes if isinstance(outcome, Hit)]
    refused = [outcome for outcome in outcomes if isinstance(outcome, MalformedLine)]
    assert [(error.reason, error.column) for error in refused] == [("line ends early", 110)]
    assert len(hits) == 9_999
    assert Counter(hit.status_class for hit in hits) == {"2xx": 9_170, "3xx": 609, "4xx": 217, "5xx": 3}
    assert len({hit.client for hit in hits}) == 1_753
    assert len({hit.agent for hit in hits}) == 558
    assert sum(hit.bytes for hit in hits) == 2_747_282_505
    assert hits[0].path == "/presentations/logstash-monitorama-2013/images/kibana-search.png"
