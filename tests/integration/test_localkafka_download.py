"""Local Kafka: it is downloaded once, and each file is the pinned one."""

import io
import os
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from streams.devstack import kafka
from streams.devstack.kafka import LocalKafka
from streams.errors import LocalKafkaError

pytestmark = pytest.mark.kafka


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A local Maven repository that serves the files downloaded for the other tests."""
    repository = Path(kafka.prepare().class_path.split(os.pathsep)[0])
    while repository.name != "maven":
        repository = repository.parent

    replaced: dict[str, bytes] = {}

    class Quiet(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            body = replaced.get(self.path)
            if body is None:
                super().do_GET()
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class names it so
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(repository)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    configuration = tmp_path / "jgo.conf"
    configuration.write_text(f"[repositories]\nmirror = http://127.0.0.1:{server.server_port}\n")
    monkeypatch.setenv("JGO_CONFIG_FILE", str(configuration))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("STREAMS_CACHE_DIR", str(tmp_path / "cache"))
    yield SimpleNamespace(shutdown=server.shutdown, server_close=server.server_close, replaced=replaced)
    server.shutdown()
    server.server_close()


def test_a_jar_that_is_not_the_pinned_one_is_refused(mirror, tmp_path):
    name = "org/slf4j/slf4j-simple/1.7.36/slf4j-simple-1.7.36.jar"
    other = io.BytesIO()
    with zipfile.ZipFile(other, "w") as jar:
        jar.writestr("org/slf4j/impl/Stranger.class", b"not what was published")
    mirror.replaced[f"/{name}"] = other.getvalue()
    with pytest.raises(LocalKafkaError, match=rf"{name} has the SHA-256 \w+, 2f39bed9\w+ is pinned"):
        kafka.prepare()
    assert not (tmp_path / "cache" / "kafka-4.3.0" / "maven" / name).exists()


def test_an_interrupted_download_is_repaired_and_clean_removes_it(mirror, tmp_path):
    home = tmp_path / "cache" / "kafka-4.3.0"
    cut_short = home / "maven" / "org" / "slf4j" / "slf4j-api" / "1.7.36" / "slf4j-api-1.7.36.jar"
    cut_short.parent.mkdir(parents=True)
    cut_short.write_bytes(b"PK\x03\x04 and no more")
    said: list[str] = []
    installation = kafka.prepare(said.append)
    assert [line.split()[0] for line in said] == ["Downloading", "Downloaded", "Preparing", "Prepared"]
    assert installation.start_cache is not None
    assert cut_short.stat().st_size > 10_000

    manifest = (home / "manifest.json").read_text()
    (home / "manifest.json").unlink()
    mirror.shutdown()
    assert kafka.prepare() == installation
    assert (home / "manifest.json").read_text() == manifest

    kafka.clean()
    assert not home.exists()


def test_a_download_without_network_says_so(mirror, tmp_path):
    mirror.shutdown()
    mirror.server_close()
    with pytest.raises(LocalKafkaError, match=r"could not be downloaded[\s\S]*network"):
        LocalKafka.start(tmp_path / "data")
