"""The small programs of introductions to queues, in a few lines each, on this library.

| program | what it shows |
|---|---|
| ``threads.py`` | threads and a queue in one process: ``queue.Queue``, and beside it jobs, which survive |
| ``batches.py`` | sending in batches, and processing in batches |
| ``push_pull.py`` | push and pull with ZeroMQ: work that is distributed, and results that are collected |
| ``producer_consumer.py`` | a producer and a consumer with RabbitMQ |
| ``apps/email_jobs`` | a queue of mails: retries, limits, delays, a daily report |
"""
