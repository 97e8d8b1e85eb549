"""Many adapters in few pages."""

import os
import time

import pytest

import folders
from lab import eventually
from outcomes import check_same

ADAPTERS, ROWS, JOBS = 40, 8, 500
JOB_PAGES = 2  # of the KV of a job below: at most 32 tokens


@pytest.fixture(scope="module")
def forty(tmp_path_factory):
    root = tmp_path_factory.mktemp("forty")
    for i in range(ADAPTERS):
        folders.make_adapter(root / f"a{i:02}", seed=100 + i, rank=8)
    return root


def adapter_pages(story, adapter_id):
    """What the worker itself counts with only this adapter in the pool."""
    worker = story.worker("measure")
    story.send([{"id": "one", "adapter": adapter_id, "prompt": "Hi", "max_tokens": 1}])
    story.check()
    pages = eventually("it is resident", lambda: worker.metric("pool_pages_adapters"))
    assert worker.stop() == 0
    return int(pages)


@pytest.mark.parametrize("store_bytes", ["64M", "2M"])
def test_forty_adapters_with_room_for_eight(story, forty, store_bytes):
    """With 2M even the host store has room for half of them: they are read from disk again."""
    story.adapters = forty
    pages = adapter_pages(story, "a00")
    pool_pages = 8 * pages + ROWS * JOB_PAGES
    assert pool_pages * folders.PAGE_BYTES < 2 << 20
    jobs = [
        {
            "id": f"j-{i}",
            "adapter": f"a{i * 17 % ADAPTERS:02}",
            "tokens": [3 + (i + k) % 300 for k in range(4 + i % 7)],
            "max_tokens": 4 + i % 17,
            "ignore_eos": True,
            "temperature": 0.9 if i % 2 else 0,
        }
        for i in range(JOBS)
    ]
    worker = story.worker(
        "small", pool__pages=pool_pages, scheduler__rows=ROWS, store__bytes=store_bytes
    )
    story.send(jobs)
    finals = story.check()
    assert {final["status"] for final in finals.values()} == {"succeeded"}
    metrics = worker.metrics()
    assert metrics["lorry_pool_pages"] == pool_pages
    assert worker.metric("adapter_evictions_total") >= ADAPTERS - pool_pages // pages
    assert worker.metric("adapter_loads_total") >= ADAPTERS
    assert worker.metric("adapter_fetches_total") >= ADAPTERS
    if store_bytes == "2M":
        assert metrics["lorry_store_bytes"] <= 2 << 20
    eventually("the KV is given back", lambda: worker.metric("pool_pages_kv") == 0)
    story.wait_committed()
    del finals["one"]
    check_same(finals, story.reference(jobs, **{"pool.bytes": "96M"}))


def test_long_jobs_are_preempted_and_go_on(story):
    """Rows that together outgrow the pool: some give their pages back and are computed again, and
    nobody can tell from the answers."""
    jobs = [
        {
            "id": f"j-{i}",
            "adapter": [None, "alpha"][i % 2],
            "prompt": f"job number {i}",
            "max_tokens": 200,
            "ignore_eos": True,
            "temperature": 0.9,
        }
        for i in range(16)
    ]
    worker = story.worker(pool__pages=40, scheduler__rows=8)
    story.send(jobs)
    finals = story.check()
    assert {final["status"] for final in finals.values()} == {"succeeded"}
    assert {final["usage"]["completion_tokens"] for final in finals.values()} == {200}
    assert worker.metric("preemptions_total") > 0
    check_same(finals, story.reference(jobs))


def test_an_adapter_larger_than_the_pool_fails_alone(story, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    folders.make_adapter(root / "huge", seed=1, rank=256, modules=tuple(folders.MODULES))
    folders.make_adapter(root / "small", seed=2, rank=2)
    story.adapters = root
    story.worker(pool__pages=24, scheduler__rows=4)
    story.send(
        [
            {"id": f"{name}-{i}", "adapter": adapter, "prompt": "Hi", "max_tokens": 5}
            for i in range(3)
            for name, adapter in (("huge", "huge"), ("small", "small"), ("base", None))
        ]
    )
    finals = story.check()
    for job_id, final in finals.items():
        if job_id.startswith("huge"):
            assert final["status"] == "rejected"
            assert final["error"]["code"] == "unsupported_adapter"
        else:
            assert final["status"] == "succeeded"


def test_prefixes_are_shared_within_a_revision(story, tmp_path):
    """Jobs with one system prompt share its pages; those of an adapter that was replaced do not
    get what the old files computed."""
    root = tmp_path / "root"
    root.mkdir()
    story.adapters = root
    system = [3 + i * 7 % 300 for i in range(70)]

    def jobs(stage):
        return [
            {
                "id": f"{stage}-{adapter}-{i}",
                "adapter": adapter,
                "tokens": system + [3 + i] * i,
                "max_tokens": 30,
                "ignore_eos": True,
                "temperature": 0.9 if i % 2 else 0,
            }
            for adapter in ("mine", None)
            for i in range(4)
        ]

    worker = story.worker()
    finals, expected = {}, {}
    for stage in range(2):
        folders.place_adapter(root, "mine", seed=1 + stage, rank=4)
        story.send(jobs(stage))
        finals = story.check()
        expected |= story.reference(jobs(stage), **{"pool.prefixes": "false"})
    check_same(finals, expected)
    cached = {
        job_id: final["usage"]["prompt_tokens_details"]["cached_tokens"]
        for job_id, final in finals.items()
    }
    assert set(cached.values()) <= {0, 16, 32, 48, 64}
    assert all(cached[f"1-None-{i}"] == 64 for i in range(4)), "of the stage before"
    assert min(cached[f"1-mine-{i}"] for i in range(4)) == 0, "the first of the new revision"
    assert worker.metric("tokens_cached_total") == sum(cached.values())


def test_ten_thousand_in_the_root(story, tmp_path):
    """Nothing looks at all of them: a worker starts as fast as with a few, and reads those only
    that jobs name."""
    root, count = tmp_path / "root", 10_000
    root.mkdir()
    made = [folders.make_adapter(tmp_path / f"made-{i}", seed=i, rank=1 + i) for i in range(5)]
    for i in range(count):
        folder = root / f"a{i:05}"
        folder.mkdir()
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            os.link(made[i % len(made)] / name, folder / name)
    story.adapters = root
    story.create_topics()
    begin = time.monotonic()
    worker = story.worker()
    assert time.monotonic() - begin < 5
    jobs = [
        {"id": f"j-{i}", "adapter": f"a{i * 37:05}", "prompt": "Hi", "max_tokens": 3}
        for i in range(200)
    ]
    story.send(jobs)
    check_same(story.check(), story.reference(jobs))
    assert worker.metric("adapter_fetches_total") == len(jobs)
    begin = time.monotonic()
    listed = story.tool("adapters", "list", options={"adapters": root, "redis.url": ""})
    assert time.monotonic() - begin < 5
    assert len(listed.stdout.splitlines()) == count + 1
