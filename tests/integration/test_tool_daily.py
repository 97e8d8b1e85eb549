"""lorry in daily use: adapters come and go under a running worker; answers for scripts."""

import json
import os
import pty
import select
import shutil
import signal
import subprocess
import time

import folders
import pytest
from lab import Reader, as_flags, clean_environment, eventually

DONE, JOBS, USAGE, MODEL, BROKER = 0, 1, 2, 3, 5


@pytest.fixture
def root(story, tmp_path):
    """An empty adapter root, the story's own."""
    path = tmp_path / "root"
    path.mkdir()
    story.adapters = path
    return path


def test_adapters_add_and_rm(story, root, tmp_path):
    """What is added is served at once, what is replaced with its new revision, what is removed no
    more; what the model cannot run never gets there."""
    story.worker()
    options = {**story.client_options(), **story.model_options()}
    job = {"prompt": "Hi", "max_tokens": 12, "ignore_eos": True, "temperature": 0,
           "adapter": "pirate"}

    def answer(job_id):
        story.send([{"id": job_id, **job}])
        return story.check()[job_id]

    def lorry(*words, expect=DONE):
        return story.tool("adapters", *words, options=options, expect=expect).stdout.decode()

    one = folders.make_adapter(tmp_path / "one", seed=1, rank=4)
    two = folders.make_adapter(tmp_path / "two", seed=2, rank=8)
    assert answer("early")["error"]["code"] == "unknown_adapter"
    assert lorry("add", one, "--id", "pirate").startswith("added pirate rank=4 ")
    first = answer("first")
    assert first["status"] == "succeeded"

    lorry("add", two, "--id", "pirate", expect=USAGE)
    assert answer("still")["revision"] == first["revision"]
    assert lorry("add", two, "--id", "pirate", "--replace").startswith("replaced pirate rank=8 ")
    second = answer("second")
    assert second["status"] == "succeeded"
    assert second["revision"] != first["revision"] and second["text"] != first["text"]

    dora = folders.TINY / "bad" / "use-dora"
    done = story.tool("adapters", "add", dora, "--id", "pirate", "--replace", options=options,
                      expect=None)
    if done.returncode != DONE:  # until it is supported
        assert done.returncode == MODEL and b"use_dora" in done.stderr
        assert answer("third")["revision"] == second["revision"]

    assert story.redis.hget("lorry:adapter:pirate", "revision")
    assert lorry("rm", "pirate") == "removed pirate\n"
    assert answer("late")["error"]["code"] == "unknown_adapter"
    lorry("rm", "pirate", expect=MODEL)
    assert [each.name for each in root.iterdir()] == [], "nothing hidden stays"


def test_adapters_add_without_redis(story, root, tmp_path):
    options = {**story.client_options(), **story.model_options(),
               "redis.url": "redis://127.0.0.1:1/0"}
    one = folders.make_adapter(tmp_path / "one", seed=1, rank=4)
    done = story.tool("adapters", "add", one, options=options)
    assert b"not announced" in done.stderr
    assert (root / "one" / "adapter_config.json").is_file()
    shutil.rmtree(one)
    story.tool("adapters", "rm", "one", options={**options, "redis.url": ""})
    assert list(root.iterdir()) == []


def json_lines(text):
    return [json.loads(line) for line in text.decode().splitlines()]


def test_answers_for_scripts(story, root, tmp_path):
    """--json: an object a line on stdout, or beside answers that go there on stderr."""
    story.worker()
    options = {**story.client_options(), **story.model_options()}
    good = folders.make_adapter(root / "good", seed=1, rank=4)
    bad = folders.make_adapter(root / "bad", seed=1, rank=4)
    (bad / "adapter_config.json").write_text("{}")
    story.send([{"id": "one", "adapter": "good", "prompt": "Hi", "max_tokens": 3}])
    revision = story.check()["one"]["revision"]

    listed = {each["id"]: each
              for each in json_lines(story.tool("adapters", "list", "--json",
                                                options=options).stdout)}
    assert listed.keys() == {"good", "bad"}
    assert listed["good"]["revision"] == revision and listed["good"]["rank"] == 4
    assert listed["good"]["ttl_ms"] is None and listed["bad"]["state"] is None

    checked = {each["id"]: each
               for each in json_lines(story.tool("adapters", "check", "--json", options=options,
                                                 expect=JOBS).stdout)}
    assert checked["good"]["ok"] and checked["good"]["revision"] == revision
    assert checked["good"]["bytes"] == (good / "adapter_model.safetensors").stat().st_size
    assert not checked["bad"]["ok"] and checked["bad"]["message"]

    verdicts = json_lines(story.tool("check", "--json", options=options).stdout)
    assert {"verdict", "what", "detail"} == verdicts[0].keys()
    assert {"model", "kafka", "redis"} <= {each["what"] for each in verdicts}

    jobs = tmp_path / "jobs.jsonl"
    lines = [{"prompt": "Hi", "max_tokens": 3}, {"prompt": "Hi", "max_tokens": -1}]
    jobs.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = story.tool("run", jobs, "-o", tmp_path / "out", "--json",
                      options=story.model_options(), expect=JOBS)
    summary = json_lines(done.stdout)
    assert len(summary) == 1 and summary[0]["jobs"] == 2
    assert summary[0]["statuses"] == {"succeeded": 1, "rejected": 1}
    done = story.tool("run", jobs, "--json", options=story.model_options(), expect=JOBS)
    assert len(json_lines(done.stdout)) == 2, "the finals"
    assert json_lines(done.stderr)[-1]["jobs"] == 2

    story.tool("submit", jobs, "--skip-bad", options=story.client_options(), expect=JOBS)
    done = story.tool("collect", f"{jobs}.lorry.json", "-o", tmp_path / "out", "--json",
                      options=story.client_options())
    summary = json_lines(done.stdout)[0]
    assert (summary["jobs"], summary["finals"], summary["missing"]) == (1, 1, 0)
    assert summary["statuses"] == {"succeeded": 1}


def test_top(story, long_model):
    """Workers from their heartbeats and from /metrics, and the queue; no one's partitions move."""
    story.model = long_model
    story.create_topics(partitions=4)
    options = story.client_options()

    def top(*words, expect=DONE):
        return json_lines(story.tool("top", "--once", "--json", *words, options=options,
                                     expect=expect).stdout)[0]

    seen = top()
    assert seen["workers"] == [] and seen["queue"] == 0 and seen["problems"] == []
    worker = story.worker("one").wait_ready(4)
    long_jobs = [{"id": f"long-{i}", "prompt": "Hi", "max_tokens": 50_000, "ignore_eos": True,
                  "adapter": "alpha"} for i in range(3)]
    story.send(long_jobs)
    story.wait_streaming("long-0")
    eventually("the heartbeat tells of it",
               lambda: (top()["workers"] or [{"running": 0}])[0]["running"] == 3, pause_s=0.2)
    eventually("its speed", lambda: top()["workers"][0]["tokens_per_second"] > 0, pause_s=0.2)
    seen = top()
    told = seen["workers"][0]
    assert (told["worker"], told["partitions"], told["adapters"]) == ("one", 4, 1)
    assert told["http"] == f"127.0.0.1:{worker.port()}"
    assert seen["queue"] == 3, "what runs is not committed"
    assert seen["topics"] == [{"topic": story.jobs, "partitions": 4, "queue": 3}]

    asked = top("--url", told["http"])
    assert len(asked["workers"]) == 1, "the same worker"
    assert asked["workers"][0]["age_ms"] == 0 and asked["workers"][0]["running"] == 3
    assert asked["workers"][0]["tokens_per_second"] > 0
    alone = story.tool("top", "--once", "--json", "--url", f"http://{told['http']}/",
                       options={**options, "redis.url": ""})
    assert json_lines(alone.stdout)[0]["workers"][0]["worker"] == told["http"]
    page = story.tool("top", "--once", options=options).stdout.decode()
    assert "one" in page and story.jobs[-20:] in page and "\033" not in page
    assert max(map(len, page.splitlines())) <= 80

    assert worker.metric("partitions") == 4
    story.tool("cancel", *[job["id"] for job in long_jobs], options=options)
    story.check()
    worker.stop()
    assert top()["workers"] == [], "who stops says so"


def test_top_on_a_terminal(story):
    """It draws over its page and leaves the terminal as it was."""
    story.create_topics(partitions=2)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [story.lab.lorry, "top", "--interval=1", *as_flags(story.client_options())],
        stdin=theirs, stdout=theirs, stderr=theirs, cwd=story.folder,
        env={**clean_environment(), "TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    deadline = time.monotonic() + 20
    while seen.count(b"\033[H") < 2 and time.monotonic() < deadline:
        if select.select([ours], [], [], 0.2)[0]:
            seen += os.read(ours, 65536)
    process.send_signal(signal.SIGINT)
    while time.monotonic() < deadline:
        try:
            seen += os.read(ours, 65536)
        except OSError:  # the other side is closed
            break
    assert process.wait(10) == DONE
    os.close(ours)
    assert seen.startswith(b"\033[?1049h") and seen.rstrip().endswith(b"\033[?1049l")
    assert seen.count(b"\033[H") >= 2 and b"none is heard of" in seen and b"queue 0" in seen


def background(story, *words):
    return subprocess.Popen(
        [story.lab.lorry, *map(str, words), *as_flags(story.client_options())],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        cwd=story.folder, env=clean_environment(),
    )  # fmt: skip


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_submit_is_resumed(story, tmp_path, how):
    """A submit that is cut off goes on with its batch: every line's job is there, under its id."""
    count = 300_000
    story.create_topics(partitions=4)
    jobs = tmp_path / "jobs.jsonl"
    with jobs.open("w") as file:
        for i in range(count):
            file.write(f'{{"prompt": "row {i}", "max_tokens": 1}}\n' + "\n" * (i % 1000 == 0))
    lines = count + count // 1000
    manifest_path = tmp_path / "jobs.jsonl.lorry.json"

    def manifest():
        return json.loads(manifest_path.read_text()) if manifest_path.exists() else {}

    first = background(story, "submit", jobs)
    eventually("it is under way", lambda: manifest().get("lines", 0) > 0, pause_s=0.01)
    first.send_signal(how)
    first.communicate(timeout=30)
    assert first.returncode != DONE
    cut = manifest()
    assert not cut["complete"] and 0 < cut["lines"] < lines and cut["count"] <= cut["lines"]

    options = story.client_options()
    done = story.tool("submit", jobs, options=options, expect=USAGE)
    assert b"--resume" in done.stderr, "no second batch by accident"
    story.tool("submit", jobs, "--resume", options=options)
    whole = manifest()
    assert whole["complete"] and whole["batch_id"] == cut["batch_id"]
    assert (whole["count"], whole["lines"]) == (count, lines)
    assert whole["results_offsets"] == cut["results_offsets"]

    reader = Reader(story.bootstrap, [story.jobs])
    reader.to_end()
    ids = [json.loads(record.value)["id"] for record in reader.records[story.jobs]]
    reader.close()
    expected = {f"{whole['batch_id']}/{i + (i + 999) // 1000}" for i in range(count)}
    assert set(ids) == expected
    assert len(ids) - count <= count - cut["count"], "only what the manifest did not know of"
    if how == signal.SIGINT:
        assert len(ids) == count, "who is asked to stop knows what was sent"

    done = story.tool("submit", jobs, "--resume", options=options)
    assert b"nothing to resume" in done.stderr
    with jobs.open("a") as file:
        file.write("{}\n")
    manifest_path.write_text(json.dumps(cut))
    done = story.tool("submit", jobs, "--resume", options=options, expect=USAGE)
    assert b"not the same file" in done.stderr


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_collect_is_resumed(story, tmp_path, how):
    """A collect that is ended goes on from OUT.part: with what it has, and from where it stopped."""
    story.worker()
    options = story.client_options()
    jobs = tmp_path / "jobs.jsonl"
    jobs.write_text("".join(f'{{"prompt": "row {i}", "max_tokens": 3}}\n' for i in range(20)))
    story.tool("submit", jobs, options=options)
    manifest_path = tmp_path / "jobs.jsonl.lorry.json"
    manifest = json.loads(manifest_path.read_text())
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    part = tmp_path / "out.jsonl.part"
    story.tool("collect", manifest_path, "-o", whole, options=options)
    assert not (tmp_path / "whole.jsonl.part").exists()

    wanted = tmp_path / "wanted.json"  # one more answer than will ever come
    wanted.write_text(json.dumps({**manifest, "count": 21}))
    first = background(story, "collect", wanted, "-o", out)
    eventually("it has all there is", lambda: part.exists() and
               sum(b'"status"' in line for line in part.open("rb")) == 20 and
               b"results_offsets" in part.read_bytes().splitlines()[-1])
    first.send_signal(how)
    first.communicate(timeout=10)
    assert first.returncode != DONE and not out.exists()
    with part.open("ab") as file:
        file.write(b'{"v":1,"id":"torn')

    # From nothing but the part: the records are before the offsets it holds.
    done = story.tool("collect", manifest_path, "-o", out, options=options)
    assert b"going on with the 20 finals" in done.stderr
    assert out.read_bytes() == whole.read_bytes()
    assert not part.exists()

    story.tool("collect", wanted, "-o", out, "--timeout", 2, options=options, expect=BROKER)
    assert out.read_bytes() == whole.read_bytes(), "what is there"
    assert part.exists(), "for the next one"
