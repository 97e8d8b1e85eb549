"""Cancels and deadlines, brought by jobs and set from outside in Redis."""

import time

from lab import PATIENCE_S, eventually

ENDLESS = {"prompt": "Hi", "max_tokens": 90_000, "ignore_eos": True, "temperature": 0}
PROMPT_S = 5  # "within two steps", with room for a busy machine


def now_ms():
    return int(time.time() * 1000)


def cancel_by_hand(story, job_id):
    """As design §9 says: HSET, EXPIRE, PUBLISH."""
    key = f"lorry:job:{job_id}"
    story.redis.hset(key, "cancel", 1)
    story.redis.expire(key, 7 * 24 * 3600)
    story.redis.publish("lorry:events", f"job {job_id}")


def cancel_by_tool(story, job_id):
    story.tool("cancel", job_id, options=story.client_options())


def tokens_computed(worker):
    metrics = worker.metrics()
    return metrics["lorry_tokens_output_total"] + metrics["lorry_tokens_prompt_total"]


def check_cancel(story, long_model, cancel):
    story.model = long_model
    worker = story.worker(scheduler__rows=1)
    story.send([{"id": "running", **ENDLESS}], partition=0)
    story.wait_streaming("running", tokens=5)
    story.send([{"id": "waiting", **ENDLESS}, {"id": "neighbour", "prompt": "Hi", "max_tokens": 3}])
    eventually("they wait", lambda: worker.metric("jobs_waiting") == 2)

    cancel(story, "waiting")
    story.wait_finals(1, timeout_s=PROMPT_S)
    final = story.finals()["waiting"]
    assert final["status"] == "cancelled"
    assert final["timing_ms"]["queued"] is None and final["attempt"] == 0, "it never started"
    assert final["text"] == "" and final["usage"]["completion_tokens"] == 0

    cancel(story, "running")
    eventually("it ends", lambda: "running" in story.finals(), PROMPT_S)
    final = story.finals()["running"]
    assert final["status"] == "cancelled" and final["finish_reason"] is None
    assert final["text"] and final["usage"]["completion_tokens"] >= 5, "partial text is kept"

    finals = story.check()
    assert finals["neighbour"]["status"] == "succeeded"
    assert not story.frames_of("waiting")
    story.wait_committed()


def test_cancel_from_redis(story, long_model):
    check_cancel(story, long_model, cancel_by_hand)


def test_cancel_by_the_tool(story, long_model):
    check_cancel(story, long_model, cancel_by_tool)


def test_cancel_before_the_job_comes(story):
    """A cancel without its event is found when the job is looked up."""
    story.redis.hset("lorry:job:early", "cancel", 1)
    story.worker()
    story.send([{"id": "early", "prompt": "Hi"}, {"id": "other", "prompt": "Hi", "max_tokens": 2}])
    finals = story.check()
    assert finals["early"]["status"] == "cancelled" and finals["early"]["attempt"] == 0
    assert finals["other"]["status"] == "succeeded"


def test_expired_before_start(story):
    """deadline_ms in the past, ttl_ms of a record that is old: the device never sees them."""
    story.create_topics()
    story.send([{"id": "past", "prompt": "Hi", "deadline_ms": now_ms() - 1}])
    story.send([{"id": "old", "prompt": "Hi", "ttl_ms": 60_000}], timestamp_ms=now_ms() - 61_000)
    worker = story.worker()
    finals = story.check()
    assert {final["status"] for final in finals.values()} == {"expired"}
    for final in finals.values():
        assert final["attempt"] == 0 and final["run"] is None
        assert final["text"] == "" and final["finish_reason"] is None
    assert tokens_computed(worker) == 0
    assert worker.metric("steps_total") == 0
    assert not story.records(story.frames)
    story.send([{"id": "young", "prompt": "Hi", "ttl_ms": 600_000, "max_tokens": 2}],
               timestamp_ms=now_ms() - 10_000)
    assert story.check()["young"]["status"] == "succeeded"
    story.wait_committed()


def test_expires_while_waiting_and_while_running(story, long_model):
    story.model = long_model
    story.worker(scheduler__rows=1)
    began_ms = now_ms()
    story.send([{"id": "running", "ttl_ms": 3000, **ENDLESS}])
    sent_ms = now_ms()
    story.wait_streaming("running")
    story.send([{"id": "waiting", "ttl_ms": 1000, **ENDLESS}])
    finals = story.check()
    assert finals["running"]["status"] == "expired" and finals["running"]["text"]
    ended_ms = next(
        record.timestamp_ms
        for record in story.reader.records[story.results]
        if record.body["id"] == "running"
    )
    assert began_ms + 3000 <= ended_ms <= sent_ms + 3000 + PROMPT_S * 1000
    assert finals["waiting"]["status"] == "expired" and finals["waiting"]["attempt"] == 0
    assert not story.frames_of("waiting")


def test_deadline_from_outside(story, long_model):
    """One in Redis wins over the job's own, in both directions."""
    story.model = long_model
    story.redis.hset("lorry:job:sooner", "deadline_ms", now_ms() - 1)
    story.redis.hset("lorry:job:later", "deadline_ms", now_ms() + 600_000)
    story.worker()
    story.send(
        [
            {"id": "sooner", "prompt": "Hi", "ttl_ms": 600_000},
            {"id": "later", "prompt": "Hi", "deadline_ms": now_ms() - 1, "max_tokens": 2},
            {"id": "changed", "ttl_ms": 600_000, **ENDLESS},
        ]
    )
    story.wait_streaming("changed")
    story.redis.hset("lorry:job:changed", "deadline_ms", now_ms() + 500)
    story.redis.publish("lorry:events", "job changed")
    finals = story.check()
    assert finals["sooner"]["status"] == "expired"
    assert finals["later"]["status"] == "succeeded"
    assert finals["changed"]["status"] == "expired" and finals["changed"]["text"]


def test_defaults_of_adapter_and_configuration(story):
    """A job without a deadline takes its adapter's, then the configuration's, from the record's
    timestamp."""
    story.redis.hset("lorry:adapter:alpha", "ttl_ms", 30_000)
    story.worker(jobs__ttl_ms=120_000)
    jobs = [("alpha-young", "alpha", 10), ("alpha-old", "alpha", 60), ("beta-young", "beta", 60),
            ("beta-old", "beta", 180)]
    for job_id, adapter, age_s in jobs:
        story.send([{"id": job_id, "adapter": adapter, "prompt": "Hi", "max_tokens": 2}],
                   timestamp_ms=now_ms() - age_s * 1000)
    finals = story.check()
    assert {job_id: final["status"] for job_id, final in finals.items()} == {
        "alpha-young": "succeeded",
        "alpha-old": "expired",
        "beta-young": "succeeded",
        "beta-old": "expired",
    }


def test_slo_of_an_adapter_by_the_tool(story):
    story.worker()
    old = {"timestamp_ms": now_ms() - 60_000}
    story.send([{"id": "before", "adapter": "alpha", "prompt": "Hi", "max_tokens": 2}], **old)
    story.wait_finals()
    story.tool("adapters", "slo", "alpha", "--ttl-ms", 30_000, options=story.client_options())
    assert story.redis.hget("lorry:adapter:alpha", "ttl_ms") == "30000"
    story.send([{"id": "after", "adapter": "alpha", "prompt": "Hi", "max_tokens": 2}], **old)
    finals = story.check()
    assert finals["before"]["status"] == "succeeded"
    assert finals["after"]["status"] == "expired", "the event ended what the worker had cached"


def test_facts_of_adapters_are_in_redis(story):
    worker = story.worker()
    story.send([{"id": "a", "adapter": "alpha", "prompt": "Hi", "max_tokens": 2}])
    final = story.check()["a"]
    facts = eventually("the facts", lambda: story.redis.hgetall("lorry:adapter:alpha"), PATIENCE_S)
    assert facts["revision"] == final["revision"]
    assert facts["rank"] == "4" and facts["state"] == "usable"
    beat = eventually("the beat", lambda: story.redis.hgetall(f"lorry:worker:{worker.name}"))
    assert abs(int(beat["heartbeat_ms"]) - now_ms()) < 60_000
