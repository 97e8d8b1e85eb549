"""Workers that share a group, come, go and crash."""

import signal
import time

import device
from lab import eventually
from outcomes import best_finals


def adapter_jobs(prefix, count, tokens, adapters=(None, "alpha", "beta", "gamma", "delta")):
    return [
        {
            "id": f"{prefix}-{i}",
            "adapter": adapters[i % len(adapters)],
            "prompt": f"job {i}",
            "max_tokens": tokens,
            "ignore_eos": True,
            "temperature": 0.8,
        }
        for i in range(count)
    ]


def test_two_workers_share_a_group(story):
    story.create_topics(partitions=12)
    names = [story.worker(ready=False).name for _ in range(2)]
    for worker in story.workers:
        eventually("each has half of the partitions", lambda w=worker: w.metric("partitions") == 6)
    jobs = adapter_jobs("j", 200, 24)
    story.send(jobs)
    finals = story.check()
    assert {final["status"] for final in finals.values()} == {"succeeded"}
    assert {final["worker"] for final in finals.values()} == set(names), "both work"
    for adapter in ("alpha", "beta", "gamma", "delta"):
        of_adapter = [final for final in finals.values() if final["adapter"] == adapter]
        assert len({final["worker"] for final in of_adapter}) == 1, "an adapter has one worker"
        assert len({final["source"]["partition"] for final in of_adapter}) == 1
    assert len(story.reader.records[story.results]) == 200, "nothing was done twice"
    story.wait_committed()
    for worker in story.workers:
        assert worker.stop() == 0


def test_a_worker_joins_while_jobs_run(story):
    story.create_topics(partitions=12)
    story.worker(scheduler__rows=4)
    story.send(adapter_jobs("j", 300, 100))
    eventually("some are done", lambda: len(story.finals()) > 20)
    second = story.worker(scheduler__rows=4)
    story.check_commits()
    finals = story.check()
    assert {final["status"] for final in finals.values()} == {"succeeded"}
    assert second.metric("partitions") == 6
    assert second.name in {final["worker"] for final in finals.values()}
    story.wait_committed()
    story.check_commits()


def test_sigkill_loses_no_job(story):
    """A crash in the middle: what was committed is answered, the rest is answered by its
    successor; what ran twice has a second attempt, which supersedes the first."""
    first = story.worker(scheduler__rows=12, kafka__session_timeout_ms=1500)
    long_jobs = adapter_jobs("long", 4, 2000)  # these run when the kill comes
    story.send(long_jobs)
    long_ids = [job["id"] for job in long_jobs]
    story.wait_streaming(*long_ids)
    jobs = adapter_jobs("j", 240, 60)
    story.send(jobs)
    eventually("a sixth is done", lambda: len(story.finals()) > 40)
    story.check_commits()
    first.kill()
    committed = story.check_commits()
    running = set(long_ids) - set(story.finals())
    assert running, "it was killed while jobs ran"
    done = len(best_finals(story.reader.records[story.results]))
    assert 0 < done < 244, "it was killed in the middle"
    assert sum(committed.values()) <= done

    second = story.worker(scheduler__rows=12, kafka__session_timeout_ms=1500)
    story.wait_finals()
    story.wait_committed()
    finals = story.check()
    assert {final["status"] for final in finals.values()} == {"succeeded"}
    workers = {final["worker"] for final in finals.values()}
    assert second.name in workers
    assert all(finals[job_id]["attempt"] > 1 for job_id in running), "running jobs ran again"
    # Both attempts of a job that finished twice give the same answer: its seed is its id's.
    by_id = {}
    for record in story.reader.records[story.results]:
        by_id.setdefault(record.body["id"], set()).add(record.body["text"])
    parted = [job_id for job_id, texts in by_id.items() if len(texts) > 1]
    assert len(parted) <= device.may_part(len(by_id)), parted


def test_sigkill_without_redis(story):
    """Nobody counts the attempts then; the later run supersedes the earlier one all the same."""
    options = {"redis__url": "", "scheduler__rows": 8, "kafka__session_timeout_ms": 1500}
    first = story.worker(**options)
    story.send(adapter_jobs("j", 120, 60))
    eventually("a third is done", lambda: len(story.finals()) > 40)
    first.kill()
    story.check_commits()
    story.worker(**options)
    story.wait_finals()
    story.wait_committed()
    finals = story.check()
    assert {final["status"] for final in finals.values()} == {"succeeded"}
    assert {final["attempt"] for final in finals.values()} == {1}


def test_sigkill_again_and_again(story):
    story.create_topics(partitions=6)
    jobs = adapter_jobs("j", 200, 80)
    story.send(jobs)
    for round_number in range(3):
        worker = story.worker(scheduler__rows=4, kafka__session_timeout_ms=1500)
        so_far = len(story.finals())
        eventually("it works", lambda: len(story.finals()) > so_far + 15)
        worker.kill()
        story.check_commits()
    story.worker(kafka__session_timeout_ms=1500)
    story.wait_finals()
    story.wait_committed()
    finals = story.check()
    assert {final["status"] for final in finals.values()} == {"succeeded"}


def test_workers_come_and_go(story):
    """A second worker that joins and leaves again and again: each time all partitions move."""
    story.create_topics(partitions=6)
    story.worker(scheduler__rows=4)
    story.send(adapter_jobs("j", 300, 70))
    for round_number in range(3):
        second = story.worker(scheduler__rows=4)
        so_far = len(story.finals())
        eventually("work goes on", lambda: len(story.finals()) > min(so_far + 10, 299))
        assert second.stop() == 0
        story.check_commits()
    finals = story.check()
    assert {final["status"] for final in finals.values()} == {"succeeded"}
    story.wait_committed()


def test_a_hung_worker_is_replaced(story):
    """Stopped for longer than its session, a worker loses its partitions; when it goes on it must
    not commit for them, and joins again."""
    options = {"scheduler__rows": 4, "kafka__session_timeout_ms": 1500}
    first = story.worker(**options)
    story.send(adapter_jobs("j", 200, 60))
    eventually("some are done", lambda: len(story.finals()) > 20)
    first.process.send_signal(signal.SIGSTOP)
    second = story.worker(**options)
    eventually(
        "the second works",
        lambda: any(final["worker"] == second.name for final in story.finals().values()),
    )
    first.process.send_signal(signal.SIGCONT)
    finals = story.check()
    assert {final["status"] for final in finals.values()} == {"succeeded"}
    story.wait_committed()
    story.check_commits()
    for worker in story.workers:
        eventually("both share again", lambda w=worker: w.metric("partitions") == 2)


def test_sigterm_drains(story, long_model):
    """What runs finishes, what waits goes to the others, the exit code is 0."""
    story.model = long_model
    first = story.worker("first", scheduler__rows=4, worker__drain_s=30)
    length = device.tokens(1500)
    running = [{"id": f"run-{i}", "prompt": "Hi", "max_tokens": length, "ignore_eos": True}
               for i in range(4)]
    story.send(running, partition=0)
    story.wait_streaming(*(job["id"] for job in running))
    story.send(adapter_jobs("wait", 60, 20))
    eventually("they wait", lambda: first.metric("jobs_waiting") >= 40)
    assert not any(i.startswith("run") for i in story.finals()), "they run"
    first.terminate()
    began = time.monotonic()
    assert first.wait(30) == 0
    assert time.monotonic() - began < 30
    assert "drained" in first.log and "all_delivered=true" in first.log
    story.read_to_end()
    finals = story.finals()
    for job in running:
        assert finals[job["id"]]["status"] == "succeeded"
        assert finals[job["id"]]["usage"]["completion_tokens"] == length
        assert finals[job["id"]]["worker"] == "first"
    assert len(finals) < 64, "the drain did not start what waited"
    story.check_commits()

    story.worker("second")
    finals = story.check()
    assert {final["status"] for final in finals.values()} == {"succeeded"}
    assert {final["worker"] for final in finals.values()} == {"first", "second"}
    assert all(final["attempt"] == 1 for final in finals.values()), "nothing started twice"
    story.wait_committed()


def test_sigterm_has_a_budget(story, long_model):
    """A job longer than the budget is dropped without a final, and done by the next worker."""
    story.model = long_model
    first = story.worker("first", worker__drain_s=1)
    story.send([{"id": "long", "prompt": "Hi", "max_tokens": 2200, "ignore_eos": True,
                 "temperature": 0}])
    story.wait_streaming("long")
    first.terminate()
    began = time.monotonic()
    assert first.wait(15) == 0
    elapsed = time.monotonic() - began
    story.read_to_end()
    if "long" not in story.finals():  # a fast machine may have finished it
        assert 0.9 < elapsed < 8
        assert story.committed() == {n: 0 for n in range(story.partitions)}
    story.worker("second")
    finals = story.check()
    assert finals["long"]["status"] == "succeeded"
    assert finals["long"]["usage"]["completion_tokens"] == 2200


def test_second_signal_exits_at_once(story, long_model):
    story.model = long_model
    worker = story.worker()
    story.send([{"id": "long", "prompt": "Hi", "max_tokens": 90000, "ignore_eos": True}])
    story.wait_streaming("long")
    worker.terminate()
    eventually("it drains", lambda: "draining" in worker.log)
    worker.terminate()
    assert worker.wait(5) == 1
    assert story.committed()[story.sent[0].partition] == 0
