"""What a worker shows of its adapters while they run, are replaced and grow too many."""

import json
import re

import folders
from lab import eventually

POOL_KINDS = ("free", "cached", "kv", "adapters", "pending")


class Scrape:
    """One look at /metrics."""

    def __init__(self, worker):
        self.values = worker.metrics()

    def __call__(self, name, adapter=None):
        label = f'{{adapter="{adapter}"}}' if adapter else ""
        return self.values[f"lorry_{name}{label}"]

    def by_adapter(self, name):
        pattern = re.compile(rf'lorry_{name}\{{adapter="(.*)"\}}')
        found = ((pattern.fullmatch(key), value) for key, value in self.values.items())
        return {match[1]: value for match, value in found if match}

    def step_share(self, adapters):
        """Of the steps, how many read so many adapters (1 or 2: their own buckets)."""
        least = self(f'step_adapters_bucket{{le="{adapters - 1}"}}')
        return self(f'step_adapters_bucket{{le="{adapters}"}}') - least

    def check(self):
        """What holds at any moment."""
        assert sum(self(f"pool_pages_{kind}") for kind in POOL_KINDS) == self("pool_pages")


def top(story, worker, *words):
    address = f"127.0.0.1:{worker.port()}"
    done = story.tool("top", "--once", "--url", address, *words, options=story.client_options())
    return done.stdout.decode()


def test_adapters_in_the_metrics(story, tmp_path, long_model):
    """Two adapters run, one is replaced under its jobs, a third comes when labels are used up; at
    every look the pool's kinds add up, and at rest everything does."""
    root = tmp_path / "root"
    root.mkdir()
    story.adapters, story.model = root, long_model
    folders.place_adapter(root, "mine", seed=1, rank=4)
    folders.place_adapter(root, "yours", seed=2, rank=24, modules=tuple(folders.MODULES))
    folders.place_adapter(root, "late", seed=3, rank=4)
    worker = story.worker(metrics__adapters=2, scheduler__rows=4)
    sent = []

    def send(job_id, adapter, tokens=50_000):
        sent.append(job_id)
        story.send([{"id": job_id, "adapter": adapter, "prompt": "Hi", "max_tokens": tokens,
                     "ignore_eos": True}])  # fmt: skip

    def seen(what, condition):
        def holds():
            scrape = Scrape(worker)
            scrape.check()
            return scrape if condition(scrape) else None

        return eventually(what, holds)

    def running(scrape):
        return scrape.by_adapter("adapter_jobs_running")

    none = dict.fromkeys(("base", "other", "mine", "yours"), 0)
    send("mine-0", "mine")
    story.wait_streaming("mine-0")  # labels are given in the order in which adapters come
    send("yours-0", "yours")
    send("mine-1", "mine")
    both = seen("both run", lambda m: running(m) == {**none, "mine": 2, "yours": 1})
    for name in ("mine", "yours"):
        assert both("adapter_loads_total", name) == both("adapter_fetches_total", name) == 1
        assert both("adapter_fetch_seconds_total", name) > 0
        assert both("adapter_load_seconds_total", name) >= 0
        assert both("adapter_bytes_resident", name) % both("pool_page_bytes") == 0
        assert both("adapter_bytes_stored", name) == both("adapter_bytes_resident", name)
    assert both("pool_page_bytes") == folders.PAGE_BYTES
    assert both("adapter_bytes_resident", "yours") > both("adapter_bytes_resident", "mine") > 0
    assert both("load_seconds_count") == both("fetch_seconds_count") == 2
    seen("steps that read two", lambda m: m.step_share(2) > both.step_share(2))
    seen("its tokens come",
         lambda m: m("adapter_tokens_sampled_total", "yours")
         > both("adapter_tokens_sampled_total", "yours"))  # fmt: skip

    folders.place_adapter(root, "mine", seed=4, rank=32)
    send("new", "mine", tokens=5)
    eventually("the new revision answers", lambda: "new" in story.finals())
    replaced = seen("it is counted", lambda m: m("adapter_jobs_total", "mine") == 1)
    assert running(replaced) == running(both), "the old revision goes on"
    assert replaced("adapter_loads_total", "mine") == 2
    assert replaced("adapter_fetches_total", "mine") == 2
    assert replaced("adapter_tokens_total", "mine") == 5
    grown = replaced("adapter_bytes_resident", "mine")
    assert grown > 2 * both("adapter_bytes_resident", "mine"), "both revisions are in pages"

    send("late-0", "late", tokens=5)
    seen("who has no label is summed", lambda m: m("adapter_jobs_total", "other") == 1)
    send("yours-1", "yours")
    send("yours-2", "yours")
    full = seen("the rows are taken, one waits",
                lambda m: running(m) == {**none, "mine": 2, "yours": 2}
                and m("adapter_jobs_waiting", "yours") == 1)  # fmt: skip
    assert sum(full.by_adapter("adapter_jobs_waiting").values()) == 1
    shown = json.loads(top(story, worker, "--json"))
    assert {row["adapter"] for row in shown["adapters"][:2]} == {"mine", "yours"}, "busiest first"
    rows = {row["adapter"]: row for row in shown["adapters"]}
    assert rows["yours"]["running"] == 2 and rows["yours"]["waiting"] == 1
    assert rows["yours"]["state"] == "resident" and rows["yours"]["tokens_per_second"] > 0
    assert rows["mine"]["loads"] == 2 and rows["mine"]["bytes_resident"] == grown
    assert rows["other"]["jobs"] == 1
    pool = shown["workers"][0]["pool"]
    assert sum(pool[kind] for kind in POOL_KINDS) == pool["pages"] > pool["adapters"] > 0
    assert pool["adapters_per_step"] >= 2, "both, and the old revision of one"
    page = top(story, worker)
    assert re.search(r"^yours +resident .* 1 +2 ", page, re.M), page
    assert max(map(len, page.splitlines())) <= 80

    options = story.client_options()
    endless = [job_id for job_id in sent if job_id not in story.finals()]
    story.tool("cancel", *endless, options=options)
    finals = story.check()
    rest = seen("all is at rest", lambda m: not any(running(m).values())
                and m("jobs_waiting") == m("pool_pages_pending") == m("pool_pages_kv") == 0
                and sum(m.by_adapter("adapter_jobs_total").values()) == len(finals))  # fmt: skip
    assert rest("step_adapters_count") == rest("steps_total")
    assert not any(rest.by_adapter("adapter_jobs_waiting").values())
    assert not any(rest.by_adapter("adapter_bytes_loading").values())
    sampled = rest.by_adapter("adapter_tokens_sampled_total")
    assert sum(sampled.values()) == rest("tokens_sampled_total")
    assert sum(rest.by_adapter("adapter_bytes_resident").values()) == (
        rest("pool_pages_adapters") * rest("pool_page_bytes")
    )
    assert sum(rest.by_adapter("adapter_loads_total").values()) == rest("load_seconds_count") == 4
    seconds = sum(rest.by_adapter("adapter_load_seconds_total").values())
    assert abs(seconds - rest("load_seconds_sum")) < 1e-4
    assert rest("store_bytes") >= sum(rest.by_adapter("adapter_bytes_stored").values()) > 0
    assert worker.stop() == 0
