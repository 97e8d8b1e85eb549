"""Redis and the broker stop, hang and come back in the middle of the work."""

import os
import signal
import time

import pytest

from lab import eventually
from test_cancel import ENDLESS, cancel_by_hand
from test_group import adapter_jobs


@pytest.fixture
def redis_server(lab):
    """The Redis of all stories, running again afterwards whatever happens."""
    yield lab.redis
    if lab.redis.process.poll() is None:
        os.kill(lab.redis.pid, signal.SIGCONT)
    else:
        lab.redis.start()


def test_redis_dies_and_returns(story, redis_server, long_model):
    story.model = long_model
    worker = story.worker(redis__timeout_ms=300)
    assert worker.metric("redis_up") == 1
    story.send([{"id": "endless", **ENDLESS}])
    story.wait_streaming("endless")
    redis_server.kill()
    eventually("the gauge says so", lambda: worker.metric("redis_up") == 0)
    story.send(adapter_jobs("without", 40, 10))
    finals = story.wait_finals(40, timeout_s=15)
    assert {final["status"] for final in finals.values()} == {"succeeded"}, "invariant 9"
    assert worker.get("/healthz")[0] == 200 and worker.get("/readyz")[0] == 200

    redis_server.start()
    eventually("it reconnects", lambda: worker.metric("redis_up") == 1)
    cancel_by_hand(story, "endless")
    finals = story.check()
    assert finals["endless"]["status"] == "cancelled" and finals["endless"]["text"]
    story.wait_committed()


def test_a_cancel_while_away_is_found_afterwards(story, redis_server, long_model):
    """A worker reads again all it holds once it is connected again: it missed the events."""
    story.model = long_model
    worker = story.worker(redis__timeout_ms=300)
    story.send([{"id": "endless", **ENDLESS}])
    story.wait_streaming("endless")
    redis_server.kill()
    eventually("the gauge says so", lambda: worker.metric("redis_up") == 0)
    worker.process.send_signal(signal.SIGSTOP)  # so that it cannot be back before the cancel
    redis_server.start()
    story.redis.hset("lorry:job:endless", "cancel", 1)  # and no event
    worker.process.send_signal(signal.SIGCONT)
    finals = story.wait_finals(1, timeout_s=15)
    assert finals["endless"]["status"] == "cancelled"


def test_redis_hangs(story, redis_server):
    """A server that takes requests and does not answer must not stop the work."""
    worker = story.worker(redis__timeout_ms=300)
    story.send(adapter_jobs("before", 5, 5))
    story.wait_finals(5)
    os.kill(redis_server.pid, signal.SIGSTOP)
    began = time.monotonic()
    story.send(adapter_jobs("during", 40, 10))
    finals = story.wait_finals(45, timeout_s=15)
    assert {final["status"] for final in finals.values()} == {"succeeded"}
    assert time.monotonic() - began < 8
    eventually("the gauge says so", lambda: worker.metric("redis_up") == 0)
    os.kill(redis_server.pid, signal.SIGCONT)
    eventually("it reconnects", lambda: worker.metric("redis_up") == 1, timeout_s=15)
    story.send(adapter_jobs("after", 5, 5))
    story.check()
    story.wait_committed()


def test_redis_away_at_start(story, redis_server):
    redis_server.kill()
    worker = story.worker(redis__timeout_ms=300)
    story.send(adapter_jobs("j", 20, 5))
    finals = story.check()
    assert {final["status"] for final in finals.values()} == {"succeeded"}
    assert worker.metric("redis_up") == 0


def test_broker_dies_and_returns(story, lab):
    """Nothing is lost when the broker is killed in the middle; the worker outlives it."""
    worker = story.worker(scheduler__rows=8, properties=["reconnect.backoff.max.ms=500"])
    story.send(adapter_jobs("before", 200, 60))
    eventually("some are done", lambda: len(story.finals()) > 40)
    lab.kafka.kill()
    try:
        eventually("the gauge says so", lambda: worker.metric("kafka_up") == 0)
        assert worker.running
        assert worker.get("/readyz")[0] == 503 and worker.get("/healthz")[0] == 200
    finally:
        lab.kafka.start()
    story.wait_finals(200)
    story.check_commits()
    story.send(adapter_jobs("after", 20, 5))
    finals = story.check()
    assert {final["status"] for final in finals.values()} == {"succeeded"}
    eventually("ready again", lambda: worker.get("/readyz")[0] == 200)
    story.wait_committed()


def test_broker_hangs(story, lab):
    """A broker that answers nothing for some seconds, while partitions and sessions stay."""
    worker = story.worker(scheduler__rows=4)
    story.send(adapter_jobs("before", 150, 60))
    eventually("some are done", lambda: len(story.finals()) > 20)
    os.kill(lab.kafka.pid, signal.SIGSTOP)
    time.sleep(2.5)
    os.kill(lab.kafka.pid, signal.SIGCONT)
    story.send(adapter_jobs("after", 10, 5))
    finals = story.check()
    assert {final["status"] for final in finals.values()} == {"succeeded"}
    assert worker.running
    story.wait_committed()
    story.check_commits()
