"""Dramatiq on RabbitMQ, with results in Redis: a worker, and as a program the one that enqueues."""

from __future__ import annotations

import os

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from benchmarks.peers.task_queue_client import main, took

rabbit, redis = os.environ["TASK_QUEUE"].split()
broker = RabbitmqBroker(url=rabbit, confirm_delivery=True)
broker.add_middleware(Results(backend=RedisBackend(url=redis)))
dramatiq.set_broker(broker)


@dramatiq.actor(actor_name="nothing", store_results=True, max_retries=0)
def nothing(number: int) -> int:
    return number


@dramatiq.actor(actor_name="stamped", store_results=True, max_retries=0)
def stamped(sent: int) -> int:
    return took(sent)


if __name__ == "__main__":
    main(single=nothing.send, stamped=stamped.send)
