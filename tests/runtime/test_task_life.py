"""A task's life cycle: every allowed transition, and the refusals of all others."""

from __future__ import annotations

from itertools import product

import pytest

from streams.runtime.task import TaskId
from streams.runtime.task_life import TaskLives, TaskState

TASK = TaskId(0, 3)
S = TaskState
WAYS = {
    S.CREATED: [],
    S.RESTORING: [S.RESTORING],
    S.RUNNING: [S.RESTORING, S.RUNNING],
    S.SUSPENDED: [S.RESTORING, S.RUNNING, S.SUSPENDED],
    S.CLOSED: [S.RUNNING, S.CLOSED],
}
STEPS = {
    (S.CREATED, S.RESTORING),
    (S.CREATED, S.RUNNING),
    (S.CREATED, S.CLOSED),
    (S.RESTORING, S.RUNNING),
    (S.RESTORING, S.SUSPENDED),
    (S.RESTORING, S.CLOSED),
    (S.RUNNING, S.SUSPENDED),
    (S.RUNNING, S.CLOSED),
    (S.SUSPENDED, S.RESTORING),
    (S.SUSPENDED, S.CLOSED),
}


def lives(state: TaskState) -> TaskLives:
    found = TaskLives()
    found.create(TASK)
    for step in WAYS[state]:
        found.become(TASK, step)
    assert found.state(TASK) is state
    return found


@pytest.mark.parametrize(("state", "step"), [pair for pair in product(S, S) if pair in STEPS])
def test_a_task_takes_the_steps_of_its_life(state, step):
    found = lives(state)
    found.become(TASK, step)
    assert found.state(TASK) is step
    assert found.tasks() == (set() if step is S.CLOSED else {TASK})


@pytest.mark.parametrize(("state", "step"), [pair for pair in product(S, S) if pair not in STEPS])
def test_a_task_takes_no_other_step(state, step):
    found = lives(state)
    with pytest.raises(AssertionError, match=f"task 0_3 is {state.value}: it cannot become {step.value}"):
        found.become(TASK, step)
    assert found.state(TASK) is state


@pytest.mark.parametrize("state", S)
def test_only_a_task_that_is_closed_is_created(state):
    found = lives(state)
    if state is S.CLOSED:
        found.create(TASK)
        assert found.state(TASK) is S.CREATED
        return
    with pytest.raises(AssertionError, match=f"is {state.value}: it cannot be created again"):
        found.create(TASK)
