"""A bounded run that was interrupted is continued, with the results of an undisturbed one."""

from __future__ import annotations

import importlib
import shutil
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings as hypothesis_settings, strategies as st

from streams import App, Json, Text, TopicPartition, Tumbling, fail
from streams.broker import NewTopic
from streams.durations import milliseconds
from streams.errors import ProcessingError
from streams.replay.bounded import publish as publishing, run as running
from streams.replay.bounded.run import BoundedRun, RunReport, RunRequest
from streams.replay.positions import AtOffsets, Earliest, Latest
from tests.replay.inputs import memory_broker, readings, send, written

if TYPE_CHECKING:
    from pathlib import Path

    from streams.broker.memory import MemoryBroker

RECORDS = 400
TOPICS = ("seen", "final", "updates", "shop-dead-letters")


class Killed(BaseException):
    """Stands for SIGKILL: what is on the disk at that moment is what the next run finds."""


class Fuse:
    """Kills the run at the n-th call of the program's functions."""

    def __init__(self) -> None:
        self.calls = 0
        self.kill_at: int | None = None
        self.folder: Path | None = None

    def burn(self) -> None:
        self.calls += 1
        if self.calls == self.kill_at:
            assert self.folder is not None
            shutil.copytree(self.folder, self.folder.with_name("image"))
            raise Killed


def program(fuse: Fuse, *, finals: str = "final") -> App:
    def divided(sale: dict[str, Any]) -> int:
        fuse.burn()
        return int(100 // (sale["size"] % 50))

    def passed_on(count: Any) -> Any:
        fuse.burn()
        return count

    app = App("shop", state_store="memory", create_topics=True)
    sales = app.stream("sales", key=Text(), value=Json(dict[str, Any]))
    sales.map(divided, name="divide").to("seen", value=Json())
    by_size = sales.group_by(lambda sale: str(sale["size"] % 7))
    windows = by_size.window(Tumbling(milliseconds(500)), grace=milliseconds(300)).count("sizes")
    windows.final().map(passed_on).to(finals, value=Json())
    windows.updates().to("updates", value=Json())
    return app


@pytest.fixture
def broker() -> MemoryBroker:
    made = memory_broker({"sales": 3})
    send(made, "sales", readings(1, RECORDS))
    return made


def bounded(
    broker: MemoryBroker,
    folder: Path,
    fuse: Fuse,
    name: str = "again",
    app: App | None = None,
    **request: Any,
) -> BoundedRun:
    wanted: dict[str, Any] = {"name": name, "begin": Earliest(), "end": Latest()} | request
    return BoundedRun(app or program(fuse), RunRequest(**wanted), broker=broker, folder=folder)


def complete(run: BoundedRun) -> RunReport:
    report = run.process(run.plan())
    run.publish(report)
    return report


def kill(run: BoundedRun, folder: Path, fuse: Fuse, at: int) -> bool:
    """Kill the run at that call; ``False`` if it had fewer."""
    image = folder.with_name("image")
    fuse.calls, fuse.kill_at, fuse.folder = 0, at, folder
    try:
        run.process(run.plan())
    except Killed:
        shutil.rmtree(folder, ignore_errors=True)
        image.rename(folder)
        return True
    finally:
        fuse.kill_at = None
    return False


def results(broker: MemoryBroker, name: str) -> dict[str, Any]:
    return {topic: written(broker, f"{topic}-{name}") for topic in TOPICS}


@pytest.fixture
def undisturbed(broker: MemoryBroker, tmp_path: Path) -> tuple[RunReport, int]:
    """The report of a run that nobody kills, and how often it called the program's functions."""
    fuse = Fuse()
    return complete(bounded(broker, tmp_path / "undisturbed", fuse, "undisturbed")), fuse.calls


@given(kills=st.lists(st.integers(1, RECORDS + 100), min_size=1, max_size=3))
@hypothesis_settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_run_that_is_killed_anywhere_ends_with_the_results_of_an_undisturbed_one(
    broker: MemoryBroker, tmp_path: Path, undisturbed: tuple[RunReport, int], kills: list[int]
):
    fuse, folder = Fuse(), tmp_path / "state"
    shutil.rmtree(folder, ignore_errors=True)
    expected, everything = undisturbed
    killed = [at for at in kills if kill(bounded(broker, folder, fuse), folder, fuse, at)]
    fuse.calls = 0
    report = complete(bounded(broker, folder, fuse))
    assert results(broker, "again") == results(broker, "undisturbed")
    assert report.counts == expected.counts
    assert (fuse.calls < everything) == (report.plan.continues > 0)
    # The first stage has three tasks, of which each calls a function for every third of the records.
    assert report.plan.continues or not killed or max(killed) < RECORDS / 2
    assert [path for path in folder.rglob("*") if path.is_file()] == []


def test_results_that_were_being_written_are_written_again_without_processing(
    broker: MemoryBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fuse = Fuse()
    complete(bounded(broker, tmp_path / "undisturbed", fuse, "undisturbed"))
    write = publishing.write_results

    def killed(*arguments: Any) -> Any:
        write(*arguments)
        raise Killed

    monkeypatch.setattr(running, "write_results", killed)
    with pytest.raises(Killed):
        complete(bounded(broker, tmp_path / "state", fuse))
    monkeypatch.undo()
    fuse.calls = 0
    complete(bounded(broker, tmp_path / "state", fuse))
    assert fuse.calls == 0
    assert results(broker, "again") == results(broker, "undisturbed")


def test_relative_positions_stay_those_of_the_interrupted_run(broker: MemoryBroker, tmp_path: Path):
    fuse, folder = Fuse(), tmp_path / "state"
    complete(bounded(broker, tmp_path / "undisturbed", fuse, "undisturbed"))
    assert kill(bounded(broker, folder, fuse), folder, fuse, RECORDS - 10)
    send(broker, "sales", readings(2, 50))
    complete(bounded(broker, folder, fuse))
    assert results(broker, "again") == results(broker, "undisturbed")


@pytest.mark.parametrize("what", ["program", "range", "restart", "topic"])
def test_another_run_begins_again(broker: MemoryBroker, tmp_path: Path, what: str):
    fuse, folder = Fuse(), tmp_path / "state"
    assert kill(bounded(broker, folder, fuse), folder, fuse, RECORDS - 10)
    assert bounded(broker, folder, fuse).plan().continues == 2
    request: dict[str, Any] = {}
    if what == "program":
        request["app"] = program(fuse, finals="finals")
    elif what == "range":
        request["end"] = AtOffsets({TopicPartition("sales", number): 80 for number in range(3)})
    elif what == "restart":
        request["restart"] = True
    else:
        with closing(broker.admin()) as admin:
            admin.delete_topics(["sales"])
            admin.create_topics([NewTopic(name="sales", partitions=3)])
        send(broker, "sales", readings(1, RECORDS))
    again = bounded(broker, folder, fuse, **request)
    assert again.plan().continues == 0
    fuse.calls = 0
    complete(again)
    assert fuse.calls > 200


def test_a_program_of_other_source_files_begins_again(
    broker: MemoryBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fuse, folder, code = Fuse(), tmp_path / "state", tmp_path / "code"
    code.mkdir()
    (code / "replayed_program.py").write_text("LIMIT = 1\n")
    monkeypatch.syspath_prepend(str(code))
    importlib.import_module("replayed_program")
    assert kill(bounded(broker, folder, fuse), folder, fuse, RECORDS - 10)
    assert bounded(broker, folder, fuse).plan().continues == 2
    (code / "replayed_program.py").write_text("LIMIT = 2\n")
    assert bounded(broker, folder, fuse).plan().continues == 0


def test_the_error_of_a_step_leaves_nothing_to_continue(broker: MemoryBroker, tmp_path: Path):
    def divided(sale: dict[str, Any]) -> int:
        # Of the last records only, so that other tasks are complete before.
        return 1 if sale["n"] < RECORDS - 1 else 1 // 0

    app = App("failing", state_store="memory")
    app.stream("sales", value=Json(dict[str, Any])).map(divided, on_error=fail).to("copy", value=Json())
    with pytest.raises(ProcessingError):
        complete(bounded(broker, tmp_path, Fuse(), app=app))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
