"""The states of a slice, of tasks with and without state."""

from __future__ import annotations

import pytest

from streams import App, Text
from streams.records import TopicPartition
from streams.runtime.slice import Slice, SliceState
from streams.runtime.status import Progress
from streams.runtime.task import Task, TaskId
from streams.state.memory import MemoryDatabases
from streams.testing import TopologyDriver

S = SliceState
SOURCE = (TopicPartition("in", 0), Progress())


def task(*, stateful: bool) -> Task:
    app = App("app")
    if stateful:
        app.stream("in", key=Text(), value=Text()).group_by_key().count("counts").to("out")
    else:
        app.stream("in", value=Text()).to("out")
    topology = app.topology
    return Task(
        TaskId(0, 0),
        topology.subtopologies[0],
        TopologyDriver(app),
        application="app",
        dead_letter_topic="app-dead-letters",
        database=MemoryDatabases().open(["counts"], 0) if stateful else None,
    )


def shown(found: Slice) -> tuple[object, object, object]:
    return found.task, found.input, found.retrying


def at(state: SliceState) -> Slice:
    found = Slice()
    if state is not S.CLOSED:
        found.open(task(stateful=True), SOURCE)
    if state is S.COMMIT_FIRST:
        found.restart_after_commit()
    if state is S.ABANDONED:
        found.abandon()
    assert found.state is state
    return found


def test_a_slice_has_a_task_and_its_input_as_long_as_it_is_open():
    found, own = Slice(), task(stateful=False)
    found.open(own, SOURCE)
    found.retrying = "step", "error"
    assert shown(found) == (own, SOURCE, ("step", "error"))
    found.close()
    assert shown(found) == (None, None, None)


@pytest.mark.parametrize("state", S)
def test_closing_is_fine_at_any_time_and_twice(state):
    found = at(state)
    for _ in range(2):
        found.close()
        # The required commit is remembered until the slice begins again.
        assert found.state is (S.COMMIT_FIRST if state is S.COMMIT_FIRST else S.CLOSED)
        assert found.task is None
    found.open(task(stateful=True))
    assert found.state is S.OPEN
    assert not found.commit_first


@pytest.mark.parametrize("state", [S.OPEN, S.ABANDONED])
def test_one_slice_is_open_at_a_time(state):
    with pytest.raises(AssertionError, match=f"{state.value} cannot become open"):
        at(state).open(task(stateful=True))


@pytest.mark.parametrize("state", [S.CLOSED, S.COMMIT_FIRST, S.ABANDONED])
def test_only_an_open_slice_restarts_after_a_commit(state):
    with pytest.raises(AssertionError, match="cannot become abandoned for a commit"):
        at(state).restart_after_commit()


@pytest.mark.parametrize("state", S)
def test_a_task_that_forwards_at_commits_holds_them_back_while_its_slice_is_open(state):
    assert at(state).holds_back_commits == (state is S.OPEN)


def test_a_task_that_forwards_nothing_at_commits_is_neither_waited_for_nor_abandoned():
    found = Slice()
    found.open(task(stateful=False), SOURCE)
    assert not found.holds_back_commits
    found.abandon()
    assert found.state is S.OPEN


@pytest.mark.parametrize("state", [S.CLOSED, S.COMMIT_FIRST, S.ABANDONED])
def test_there_is_nothing_to_abandon_where_none_is_open(state):
    found = at(state)
    found.abandon()
    assert found.state is state
