"""Frames: stop strings, coalescing, jobs that do not stream, results that are too large."""

import re
import struct
from pathlib import Path

import pytest
from confluent_kafka import Producer

import device
from lab import eventually
from outcomes import check_same, check_stream, counted, streams_of

GREEDY = {"prompt": "A story", "max_tokens": 60, "ignore_eos": True, "temperature": 0}


def whole_text(story, adapter=None):
    """What the job says without stop strings."""
    return story.reference([{"id": "whole", "adapter": adapter, **GREEDY}])["whole"]["text"]


def first_time(text, piece):
    return text.find(piece)


@device.to_the_letter
def test_stop_strings_cut_exactly(story):
    text = whole_text(story)
    assert len(text) > 40
    stops = {
        "one-character": [text[9]],
        "several": [text[20:26]],
        "long": [text[5:35]],
        "of-two": [text[30:36], text[12:18]],
        "overlapping": [text[14:20], text[15:18]],
        "at-the-start": [text[0:3]],
        "at-the-end": [text[-4:]],
        "never": ["\u2603 never said"],
        "almost": [text[10:16] + "\u2603", text[38:40]],
    }
    story.worker(frames__interval_ms=0)
    jobs = [{"id": name, "stop": stop, **GREEDY} for name, stop in stops.items()]
    jobs.append({"id": "as-text", **GREEDY, "stop": text[20:26]})
    story.send(jobs)
    finals = story.check()  # among others that frames equal the text
    for each in jobs:
        stop = each["stop"] if isinstance(each["stop"], list) else [each["stop"]]
        # The cut is where the text that was said so far first holds a stop string.
        ends = [text.find(one) + len(one) for one in stop if one in text]
        final = finals[each["id"]]
        if not ends:
            assert final["text"] == text and final["finish_reason"] == "length"
            continue
        said = text[: min(ends)]
        cut = min(said.find(one) for one in stop if one in said)
        assert final["text"] == text[:cut], each
        assert final["finish_reason"] == "stop" and final["status"] == "succeeded"
        assert final["usage"]["completion_tokens"] <= GREEDY["max_tokens"]
    assert finals["never"]["usage"]["completion_tokens"] == 60


def test_stop_tokens_and_eos(story):
    reference = story.reference([{"id": "whole", **GREEDY}])["whole"]
    token = reference["tokens"][7]
    first = reference["tokens"].index(token)
    story.worker()
    story.send([{"id": "by-token", **GREEDY, "stop_token_ids": [token]}])
    final = story.check()["by-token"]
    assert final["finish_reason"] == "stop"
    assert final["text"] == "" or reference["text"].startswith(final["text"])
    assert final["tokens"][:first] == reference["tokens"][:first]
    assert len(final["tokens"]) <= first + 1


def as_floats(entries):
    """Log-probabilities that compare, whether they were written as f32 or as decimals."""
    numbers = [p for each in entries for p in (each["logprob"], *(p for _, p in each["top"]))]
    tokens = [t for each in entries for t in (each["token"], *(t for t, _ in each["top"]))]
    return tokens, struct.pack(f"{len(numbers)}f", *numbers)


@device.to_the_letter
def test_logprobs_and_penalties(story):
    """Frames' log-probabilities add up to the final's, and all is as `lorry run` says it."""
    options = [
        {"logprobs": 3, "repetition_penalty": 1.3},
        {"logprobs": 0, "presence_penalty": 1.5, "temperature": 1.0, "min_p": 0.05},
        {"logprobs": True, "top_logprobs": 20, "frequency_penalty": 0.5},
        {"frequency_penalty": 2},
    ]
    jobs = [
        {"id": f"{adapter}-{i}", "adapter": adapter, **GREEDY, **each}
        for i, each in enumerate(options)
        for adapter in ("alpha", "beta")
    ]
    story.worker(frames__interval_ms=0)
    story.send(jobs)
    finals = story.check()
    reference = story.reference(jobs)
    check_same(finals, reference)
    frames = {}
    for record in story.records(story.frames):
        frames.setdefault(record.body["id"], []).extend(record.body["logprobs"] or [])
    for job in jobs:
        final = finals[job["id"]]
        if "logprobs" not in job:
            assert final["logprobs"] is None and not frames[job["id"]]
            continue
        asked = job.get("top_logprobs", int(job["logprobs"]) if job["logprobs"] is not True else 0)
        assert {len(each["top"]) for each in final["logprobs"]} == {asked}
        assert frames[job["id"]] == final["logprobs"], "frames and final"
        assert as_floats(final["logprobs"]) == as_floats(reference[job["id"]]["logprobs"])
    plain = story.reference([{"id": "plain", "adapter": "alpha", **GREEDY}])["plain"]
    assert plain["tokens"] != finals["alpha-0"]["tokens"], "the penalty does something"


def test_jobs_that_do_not_stream(story):
    story.worker(frames__default="false")
    story.send(
        [
            {"id": "default", "prompt": "Hi", "max_tokens": 5},
            {"id": "no", "prompt": "Hi", "max_tokens": 5, "stream": False},
            {"id": "yes", "prompt": "Hi", "max_tokens": 5, "stream": True},
        ]
    )
    story.check()
    streams = streams_of(story.records(story.frames))
    assert set(streams) == {"yes"}


def test_frames_are_gathered(story):
    """Tokens come much faster than a frame every 200 ms."""
    story.worker(frames__interval_ms=200)
    story.send([{"id": "j", "prompt": "Hi", "max_tokens": 400, "ignore_eos": True}])
    final = story.check()["j"]
    kinds = [frame["kind"] for frame in story.frames_of("j")]
    assert kinds[0] == "start" and kinds[-1] == "end"
    assert kinds.count("tokens") <= 2 + final["timing_ms"]["total"] / 200


def test_frames_come_while_the_job_runs(story, long_model):
    story.model = long_model
    story.worker()
    story.send([{"id": "j", "prompt": "Hi", "max_tokens": device.tokens(4000),
                 "ignore_eos": True}])
    story.wait_streaming("j", tokens=20)
    assert "j" not in story.finals()
    story.check()


LIMIT = 2000  # of a record on the results topic


@device.to_the_letter
def test_results_too_large_for_the_broker(story):
    """First the tokens go, then the job has failed; neighbours in the same batch of the producer
    are as they would be alone."""
    story.create_topics(configs={"results": {"max.message.bytes": str(LIMIT)}})
    sizes = {"small": 20, "middle": 480, "large": 1300}
    jobs = [
        {
            "id": f"{name}-{i}",
            "prompt": f"{i}",
            "adapter": [None, "alpha", "beta"][i % 3],
            "max_tokens": count,
            "ignore_eos": True,
            "temperature": 1.0,
            "metadata": {"size": name},
        }
        for i in range(4)
        for name, count in sizes.items()
    ]
    worker = story.worker(scheduler__rows=32)
    sent = story.send(jobs)
    finals = story.check()
    reference = story.reference(jobs)
    outcomes = {}
    for job in jobs:
        final, whole = finals[job["id"]], reference[job["id"]]
        text_bytes = len(whole["text"].encode())
        # One byte for a token below 128, two or three above; 700 for all the rest.
        token_bytes = sum(1 if t < 128 else 2 if t < 256 else 3 for t in whole["tokens"])
        if text_bytes + token_bytes + 900 < LIMIT:
            outcomes["whole"] = outcomes.get("whole", 0) + 1
            assert final["status"] == "succeeded" and final["tokens"] == whole["tokens"], job["id"]
            assert final["text"] == whole["text"]
        elif text_bytes + 900 < LIMIT < text_bytes + token_bytes + 300:
            outcomes["no-tokens"] = outcomes.get("no-tokens", 0) + 1
            assert final["status"] == "succeeded" and not final["tokens"], job["id"]
            assert final["text"] == whole["text"]
            assert counted(final) == counted(whole)
        elif text_bytes + 300 > LIMIT:
            outcomes["failed"] = outcomes.get("failed", 0) + 1
            assert final["status"] == "failed", job["id"]
            assert final["error"]["code"] == "result_too_large"
            assert not final["text"] and not final["tokens"]
        assert final["metadata"] == job["metadata"]
    assert set(outcomes) == {"whole", "no-tokens", "failed"}, "each case occurs"
    assert outcomes["whole"] >= 4, "small ones do not suffer from their neighbours"
    streams = streams_of(story.records(story.frames))
    for each in sent:
        assert check_stream(finals[each.id], streams), "frames are not concerned"
    assert worker.metric('finals_total{status="failed"}') == outcomes["failed"]
    story.wait_committed()


def test_dead_letter_as_large_as_its_job(story):
    """A rejected job near the broker's limit: its dead letter has headers on top."""
    story.create_topics(configs={"dead": {"max.message.bytes": "2000000"}})
    story.worker()
    value = b'{"id": "big", "prompt": "' + b"x" * 990_000 + b'", "max_tokens": -1}'
    story.send_raw(value)
    story.send([{"id": "good", "prompt": "Hi", "max_tokens": 2}])
    finals = story.wait_finals(2)
    assert finals["big"]["status"] == "rejected"
    assert finals["good"]["status"] == "succeeded"
    eventually("the dead letter", lambda: story.records(story.dead))
    assert story.records(story.dead)[0].value == value


def test_a_job_larger_than_the_wire_allows(story):
    """Topics may take more than the 8 MiB of wire.h."""
    room = {"max.message.bytes": str(20 << 20)}
    story.create_topics(configs={"jobs": room, "dead": room})
    worker = story.worker()
    story.lab.send(story.jobs, [(b'{"prompt": "' + b"x" * (500 << 10) + b'"}', None, [], 0, 0)])
    producer = Producer({"bootstrap.servers": story.bootstrap, "message.max.bytes": 20 << 20})
    value = b'{"id": "big", "prompt": "' + b"x" * (9 << 20) + b'"}'
    producer.produce(story.jobs, value=value, partition=0)
    assert producer.flush(20) == 0
    story.send([{"id": "good", "prompt": "Hi", "max_tokens": 2}], partition=0)
    finals = story.wait_finals(3)
    assert finals[f"@{story.jobs}/0/0"]["error"]["code"] == "prompt_too_long"
    assert finals[f"@{story.jobs}/0/1"]["error"]["code"] == "too_large"
    assert finals["good"]["status"] == "succeeded"
    eventually("the dead letters", lambda: len(story.records(story.dead)) == 2)
    assert story.records(story.dead)[1].value == value
    eventually("committed", lambda: story.committed()[0] == 3)
    assert worker.running


def test_dead_letter_that_is_refused(story):
    """The dead letter's loss is logged and does not stop the final, nor the commit."""
    story.create_topics(configs={"dead": {"max.message.bytes": "1000"}})
    worker = story.worker()
    story.send([{"id": "big", "prompt": "x" * 5000, "max_tokens": -1}])
    finals = story.check()
    assert finals["big"]["status"] == "rejected"
    story.wait_committed()
    assert not story.records(story.dead)
    assert "dead letter refused" in worker.log and "id=big" in worker.log


@pytest.mark.parametrize("rows", [1, 32])
def test_back_pressure(story, rows):
    """No more than backlog.jobs are ever in the process; the rest waits on Kafka, and the group
    does not mind."""
    story.create_topics(partitions=6)
    jobs = [
        {
            "id": f"j-{i}",
            "adapter": [None, "alpha", "beta", "gamma", "delta"][i % 5],
            "prompt": f"{i}",
            "max_tokens": 6,
            "ignore_eos": True,
        }
        for i in range(500)
    ]
    sent = story.send(jobs)
    assert len({each.partition for each in sent}) > 1
    worker = story.worker(backlog__jobs=16, scheduler__rows=rows)
    held = []

    def all_there():
        held.append(worker.metric("jobs_held"))
        return len(story.finals()) == 500

    eventually("all are done", all_there)
    finals = story.check()
    assert {final["status"] for final in finals.values()} == {"succeeded"}
    assert max(held) <= 16 and max(held) > 8, f"held at most {max(held)}"
    assert len(story.reader.records[story.results]) == 500, "nothing was done twice"
    assert "revoked" not in worker.log and "lost" not in worker.log
    story.wait_committed()


def test_backlog_of_bytes(story):
    """Large jobs are bounded by bytes before they are by number."""
    filler = "x" * 200_000
    story.create_topics()
    for i in range(40):
        story.send([{"id": f"j-{i}", "prompt": "Hi", "max_tokens": 2, "metadata": {},
                     "unknown": filler}])
    worker = story.worker(
        backlog__bytes="1M", scheduler__rows=1, pool__bytes="4M", store__bytes="8M"
    )
    held = []

    def all_there():
        held.append(worker.metric("jobs_held"))
        return len(story.finals()) == 40

    eventually("all are done", all_there)
    story.check()
    assert max(held) <= 7, "1 MiB and the one that filled it"
    # Invariant 7: what was resident at most, whatever the backlog.
    printed = int(re.search(r"memory_bytes_max=(\d+)", worker.log).group(1))
    status = Path(f"/proc/{worker.process.pid}/status").read_text()
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) * 1024
    assert peak <= 1.1 * printed, f"{peak} bytes were resident, {printed} were printed"
