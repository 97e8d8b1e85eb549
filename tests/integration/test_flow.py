"""The whole life of jobs over a base and four adapters."""

import json

import pytest
from confluent_kafka.admin import NewTopic

from lab import eventually
from outcomes import check_same

PROMPTS = ["Hello", "The quick brown fox", "what is 1 + 1?", "naïve café ✓", "{}[]()"]


def flow_jobs(count, adapters):
    """Jobs of all shapes: prompt, tokens, messages; greedy and seeded; base and adapters."""
    jobs = []
    for i in range(count):
        job = {"id": f"flow-{i}", "max_tokens": 8 + i % 17, "metadata": {"row": str(i)}}
        adapter = adapters[i % len(adapters)]
        if adapter is not None or i % 2:  # the base by null, or by no field at all
            job["adapter"] = adapter
        job["temperature"] = 0 if i % 3 else 0.9
        if i % 4 == 0:
            job["tokens"] = [5 + (i * 7 + k) % 300 for k in range(3 + i)]
        elif i % 4 == 1:
            job["messages"] = [
                {"role": "system", "content": "Answer."},
                {"role": "user", "content": PROMPTS[i % len(PROMPTS)]},
            ]
        else:
            job["prompt"] = PROMPTS[i % len(PROMPTS)] * (1 + i % 5)
        if i % 5 == 0:
            job |= {"custom_id": f"mine-{i}", "batch_id": "batch-7"}
        jobs.append(job)
    return jobs


def openai_line(i, model):
    return {
        "custom_id": f"line-{i}",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": model,
            "messages": [{"role": "user", "content": PROMPTS[i % len(PROMPTS)]}],
            "max_tokens": 6,
            "temperature": 0,
        },
    }


def test_flow(story):
    adapters = [None, "alpha", "beta", "gamma", "delta"]
    jobs = flow_jobs(48, adapters)
    worker = story.worker()
    story.send(jobs[:24], encoding="msgpack")
    story.send(jobs[24:], encoding="json")
    lines = [openai_line(i, model) for i, model in enumerate(["tiny", "alpha", "beta"] * 4)]
    sent = story.send(lines, encoding="json")
    finals = story.check()

    assert {final["status"] for final in finals.values()} == {"succeeded"}
    for each in sent:  # OpenAI lines bring no id: named by their coordinates
        assert finals[each.id]["custom_id"] == each.job["custom_id"]
    for job in jobs:
        final = finals[job["id"]]
        assert final["adapter"] == job.get("adapter")
        assert (final["revision"] is None) == (final["adapter"] is None)
        assert final["worker"] == worker.name
        assert final["attempt"] == 1
        assert story.frames_of(job["id"]), "streams unless told otherwise"
        if "tokens" in job:
            assert final["usage"]["prompt_tokens"] == len(job["tokens"])

    story.wait_committed()
    check_same({job["id"]: finals[job["id"]] for job in jobs}, story.reference(jobs))


def test_adapters_matter(story):
    """The same prompt through each adapter, and twice: other adapters, other words; the same
    adapter, the same words."""
    adapters = [None, "alpha", "beta", "gamma", "delta"]
    story.worker()
    jobs = [
        {"id": f"{a}-{k}", "adapter": a, "prompt": "Same", "max_tokens": 24, "temperature": 0}
        for a in adapters
        for k in range(2)
    ]
    story.send(jobs)
    finals = story.check()
    texts = [finals[f"{a}-0"]["text"] for a in adapters]
    assert len(set(texts)) == len(adapters)
    assert texts == [finals[f"{a}-1"]["text"] for a in adapters]


def test_pages_of_the_http_server(story):
    worker = story.worker()
    story.send([{"id": f"m-{i}", "adapter": "alpha", "prompt": "Hi", "max_tokens": 5,
                 "ignore_eos": True} for i in range(6)])
    story.send([{"id": "bad", "adapter": "nowhere", "prompt": "Hi"}])
    story.check()
    story.wait_committed()
    assert worker.get("/healthz")[0] == 200
    assert worker.get("/readyz") == (200, "ready\n")
    assert worker.get("/elsewhere")[0] == 404
    metrics = worker.metrics()
    assert metrics["lorry_jobs_received_total"] == 7
    assert metrics['lorry_finals_total{status="succeeded"}'] == 6
    assert metrics['lorry_finals_total{status="rejected"}'] == 1
    assert metrics["lorry_dead_letters_total"] == 1
    assert metrics['lorry_adapter_jobs_total{adapter="alpha"}'] == 6
    assert metrics['lorry_adapter_tokens_total{adapter="alpha"}'] == 30
    assert not any("nowhere" in name for name in metrics), "made-up ids get no label"
    assert metrics["lorry_tokens_output_total"] == 30
    assert metrics["lorry_jobs_held"] == 0
    assert metrics["lorry_redis_up"] == 1
    assert metrics["lorry_kafka_up"] == 1
    assert metrics["lorry_partitions"] == story.partitions
    assert metrics["lorry_pool_pages_kv"] == 0
    assert metrics["lorry_commits_total"] >= 1


@pytest.mark.parametrize("redis_url", ["", "given"])
def test_attempt_and_run(story, redis_url):
    """`run` identifies an attempt; Redis counts the attempts, and without one each is the first."""
    options = {"redis__url": ""} if redis_url == "" else {}
    story.worker(**options)
    story.send([{"id": f"r-{i}", "prompt": "Hi", "max_tokens": 4} for i in range(5)])
    finals = story.check()
    assert len({final["run"] for final in finals.values()}) == 5
    assert all(final["attempt"] == 1 for final in finals.values())
    if redis_url:
        assert story.redis.hget("lorry:job:r-0", "attempt") == "1"
        assert story.redis.hget("lorry:job:r-0", "run") == finals["r-0"]["run"]
        assert 0 < story.redis.ttl("lorry:job:r-0") <= 7 * 24 * 3600


def test_trace_headers_are_carried(story):
    story.worker()
    trace = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    value = json.dumps({"id": "traced", "prompt": "Hi", "max_tokens": 2}).encode()
    story.send_raw(value, headers=[("traceparent", trace), ("tracestate", b"a=b")])
    story.wait_finals(1)
    record = story.records(story.results)[0]
    assert record.headers["traceparent"] == trace
    assert record.headers["tracestate"] == b"a=b"


def test_two_jobs_topics(story):
    """Jobs of both are done, and their finals say where they came from."""
    second = f"{story.name}.urgent"
    story.create_topics(partitions=3)
    story.lab.create_topics([NewTopic(second, 3, 1)])
    worker = story.worker(kafka__jobs=[story.jobs, second])
    assert worker.metric("partitions") == 6
    for topic in (story.jobs, second):
        value = json.dumps({"id": topic, "prompt": "Hi", "max_tokens": 2}).encode()
        story.lab.send(topic, [(value, None, [], 0, 1)])
    finals = story.wait_finals(2)
    for topic in (story.jobs, second):
        assert finals[topic]["source"] == {"topic": topic, "partition": 1, "offset": 0}
    story.lab.delete_topics([second])


def test_a_new_group_may_start_at_the_end(story):
    story.create_topics(partitions=1)
    story.send_raw(b'{"id": "before", "prompt": "Hi", "max_tokens": 2}')
    worker = story.worker(source__start="latest")

    def after(n):
        story.send_raw(b'{"id": "after-%d", "prompt": "Hi", "max_tokens": 2}' % n)
        return story.finals()

    # When the partition was assigned its end may not be known yet: some may still be skipped.
    eventually("later jobs are done", lambda: after(len(story.finals())), pause_s=0.2)
    assert "before" not in story.finals()
    eventually("it is committed", lambda: story.committed()[0] > 1)
    assert worker.stop() == 0
    story.send_raw(b'{"id": "meanwhile", "prompt": "Hi", "max_tokens": 2}')
    story.worker(source__start="latest")
    eventually("a known group goes on", lambda: "meanwhile" in story.finals())
