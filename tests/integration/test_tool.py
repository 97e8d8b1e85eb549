"""lorry: submit, collect, tail, topics, adapters, check, run; against the same worker."""

import json
import shutil
import signal
import subprocess
import time

import device
import folders
from lab import as_flags, clean_environment, eventually
from outcomes import check_finals, check_same

DONE, JOBS, USAGE, MODEL, BROKER = 0, 1, 2, 3, 5


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def read_lines(path):
    return [json.loads(line) for line in path.open(newline="\n")]  # no other line ends


def own_jobs(count):
    adapters = [None, "alpha", "beta", "gamma", "delta"]
    return [
        {"adapter": adapters[i % 5], "prompt": f"row {i}", "max_tokens": 5 + i % 9,
         "temperature": 0.7, "metadata": {"row": str(i)}}
        for i in range(count)
    ]  # fmt: skip


def submit(story, path, *words, expect=DONE):
    story.tool("submit", path, *words, "--quiet", options=story.client_options(), expect=expect)
    return path.with_name(path.name + ".lorry.json")


def background(story, *words):
    return subprocess.Popen(
        [story.lab.lorry, *map(str, words), *as_flags(story.client_options())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=story.folder,
        env=clean_environment(),
    )


def test_submit_and_collect(story):
    story.worker()
    path = write_lines(story.folder / "jobs.jsonl", own_jobs(50))
    manifest_path = submit(story, path)
    manifest = json.loads(manifest_path.read_text())
    batch = manifest["batch_id"]
    assert manifest["count"] == 50

    out = story.folder / "results.jsonl"
    options = story.client_options()
    story.tool("collect", manifest_path, "-o", out, "--quiet", options=options)
    finals = read_lines(out)
    assert [final["id"] for final in finals] == [f"{batch}/{i}" for i in range(50)], "line order"
    assert {final["batch_id"] for final in finals} == {batch}
    assert [final["metadata"]["row"] for final in finals] == [str(i) for i in range(50)]

    # The very records of the topic, and the answers of `lorry run` (seeds are of the ids).
    story.wait_finals(50)
    assert {final["id"]: final for final in finals} == story.finals()
    jobs = [{"id": f"{batch}/{i}", **job} for i, job in enumerate(own_jobs(50))]
    check_same(story.finals(), story.reference(jobs))

    # Collecting again gives the same; nothing was committed for it.
    again = story.folder / "again.jsonl"
    story.tool("collect", manifest_path, "-o", again, "--quiet", options=options)
    assert again.read_bytes() == out.read_bytes()


def test_submitted_jobs_are_keyed_by_adapter(story):
    """As our own producer and Java's do: an adapter's jobs lie in one partition."""
    story.create_topics(partitions=12)
    sent = story.send([{"id": f"py-{i}", "adapter": a, "prompt": "Hi", "max_tokens": 1}
                       for i, a in enumerate(["alpha", "beta", "gamma", "delta"])])
    path = write_lines(story.folder / "jobs.jsonl", own_jobs(20))
    submit(story, path)
    story.worker()
    finals = story.wait_finals(24)
    places = {each.job["adapter"]: each.partition for each in sent}
    for final in finals.values():
        if final["adapter"] is not None:
            assert final["source"]["partition"] == places[final["adapter"]]


def test_openai_batch(story):
    """OpenAI's files in and out: output for what succeeded, errors for what did not."""
    story.worker()
    lines = [
        {
            "custom_id": f"request-{i}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": model,
                "messages": [{"role": "user", "content": f"question {i}"}],
                "max_tokens": 7,
                **({"logprobs": True, "top_logprobs": 2} if i % 2 == 0 else {}),
            },
        }
        for i, model in enumerate(["tiny", "alpha", "nobody", "beta"] * 3)
    ]
    path = write_lines(story.folder / "batch.jsonl", lines)
    manifest = submit(story, path, "--model.name=tiny")
    out, errors = story.folder / "output.jsonl", story.folder / "errors.jsonl"
    story.tool("collect", manifest, "-o", out, "--errors", errors, "--format", "openai", "--quiet",
               options=story.client_options(), expect=JOBS)
    good, bad = read_lines(out), read_lines(errors)
    assert [each["custom_id"] for each in good] == [
        f"request-{i}" for i in range(12) if i % 4 != 2
    ]
    assert [each["custom_id"] for each in bad] == ["request-2", "request-6", "request-10"]
    for each in good:
        assert each["error"] is None and each["response"]["status_code"] == 200
        body = each["response"]["body"]
        assert body["object"] == "chat.completion"
        choice = body["choices"][0]
        assert choice["message"]["role"] == "assistant"
        assert choice["finish_reason"] in ("stop", "length")
        usage = body["usage"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    finals = {final["custom_id"]: final for final in story.wait_finals(12).values()}
    for each in good:
        choice = each["response"]["body"]["choices"][0]
        final = finals[each["custom_id"]]
        assert choice["message"]["content"] == final["text"]
        if final["logprobs"] is None:
            assert choice["logprobs"] is None
            continue
        tokens = [f"token_id:{token}" for token in final["tokens"]]
        assert [entry["token"] for entry in choice["logprobs"]["content"]] == tokens
        assert all(len(entry["top_logprobs"]) == 2 for entry in choice["logprobs"]["content"])
    for each in bad:
        said = json.dumps(each)
        assert "unknown_adapter" in said


def test_submit_refuses_bad_files(story):
    story.create_topics()
    good = json.dumps({"prompt": "Hi", "max_tokens": 2})
    bad = '{"prompt": "Hi", "max_tokens": -2}'
    path = story.folder / "jobs.jsonl"
    options = story.client_options()
    path.write_text(f"{good}\n{bad}\n{good}\n")
    done = story.tool("submit", path, options=options, expect=None)
    assert done.returncode in (JOBS, USAGE)
    assert b"max_tokens" in done.stderr and b"2" in done.stderr
    assert not path.with_name("jobs.jsonl.lorry.json").exists()
    assert sum(story.committed().values()) == 0
    story.worker()
    story.tool("submit", path, "--skip-bad", options=options, expect=JOBS)
    finals = story.wait_finals(2)
    assert {final["status"] for final in finals.values()} == {"succeeded"}
    time.sleep(0.2)
    assert len(story.finals()) == 2, "the first try sent nothing"


def test_submit_from_stdin(story):
    story.worker()
    text = "".join(json.dumps(job) + "\n" for job in own_jobs(8))
    manifest = story.folder / "m.json"
    story.tool("submit", "-", "--manifest", manifest, options=story.client_options(),
               input=text.encode())
    done = story.tool("collect", manifest, options=story.client_options())
    assert len(done.stdout.splitlines()) == 8


def test_interrupted_and_impatient_collect(story):
    """Ctrl-C and --timeout leave a collect that can be done again."""
    story.create_topics()
    path = write_lines(story.folder / "jobs.jsonl", own_jobs(10))
    manifest = submit(story, path)
    out = story.folder / "results.jsonl"
    options = story.client_options()

    collect = background(story, "collect", manifest, "-o", out)
    time.sleep(1)
    assert collect.poll() is None, "it waits"
    collect.send_signal(signal.SIGINT)
    collect.communicate(timeout=10)
    assert collect.returncode not in (DONE, None)

    story.tool("collect", manifest, "-o", out, "--timeout", 1, options=options, expect=BROKER)
    story.worker()
    story.tool("collect", manifest, "-o", out, options=options)
    assert len(read_lines(out)) == 10


def test_collect_tells_that_some_failed(story):
    story.worker()
    jobs = [{"prompt": "Hi", "max_tokens": 2}, {"prompt": "Hi", "adapter": "nobody"}]
    manifest = submit(story, write_lines(story.folder / "jobs.jsonl", jobs))
    out, errors = story.folder / "out.jsonl", story.folder / "err.jsonl"
    story.tool("collect", manifest, "-o", out, "--errors", errors,
               options=story.client_options(), expect=JOBS)
    assert len(read_lines(out)) == 1
    assert read_lines(errors)[0]["error"]["code"] == "unknown_adapter"


def test_tail(story, long_model):
    """The text of a running job, as it comes, and of one that has ended."""
    story.model = long_model
    story.worker()
    tail = background(story, "tail", "job/1", "--timeout", 30)
    time.sleep(0.3)
    story.send([{"id": "job/1", "prompt": "Hi", "max_tokens": 900, "ignore_eos": True},
                {"id": "job/2", "prompt": "Hello", "max_tokens": 9}])
    said, notes = tail.communicate(timeout=30)
    finals = story.check()
    assert tail.returncode == DONE, notes
    assert said.decode().rstrip("\n") == finals["job/1"]["text"].rstrip("\n")
    done = story.tool("tail", "job/2", options=story.client_options())
    assert done.stdout.decode().rstrip("\n") == finals["job/2"]["text"].rstrip("\n")
    story.tool("tail", "no/job", "--timeout", 1, options=story.client_options(), expect=BROKER)


def test_topics_create(story):
    """Topics as design §8 wants them; the second time nothing happens; other counts are told."""
    options = story.client_options()
    options["kafka.partitions"] = 5
    story.tool("topics", "create", options=options)
    story.created, story.partitions = True, 5
    topics = story.lab.admin.list_topics(timeout=10).topics
    assert len(topics[story.jobs].partitions) == 5
    for topic in (story.frames, story.results, story.dead):
        assert topic in topics
    policies = story.lab.topic_config([story.jobs, story.results, story.frames, story.dead])
    day = 24 * 3600 * 1000
    assert policies[story.jobs]["cleanup.policy"] == "delete"
    assert sorted(policies[story.results]["cleanup.policy"].split(",")) == ["compact", "delete"]
    assert int(policies[story.jobs]["retention.ms"]) == 7 * day
    assert int(policies[story.results]["retention.ms"]) == 7 * day
    assert int(policies[story.frames]["retention.ms"]) == day
    assert int(policies[story.dead]["retention.ms"]) == 30 * day
    story.tool("topics", "create", options=options)
    story.tool("topics", "create", options={**options, "kafka.partitions": 6}, expect=JOBS)
    story.worker()
    story.send([{"id": "j", "prompt": "Hi", "max_tokens": 2}])
    story.check()


def test_adapters_while_the_worker_runs(story, tmp_path):
    """A folder that is renamed into the root works at once; one that is replaced serves new jobs
    with its new revision."""
    root = tmp_path / "root"
    root.mkdir()
    story.adapters = root
    story.worker()

    def answer(job_id):
        story.send([{"id": job_id, "adapter": "mine", "prompt": "Hi", "max_tokens": 20,
                     "ignore_eos": True, "temperature": 0}])
        return story.check()[job_id]

    assert answer("too-early")["error"]["code"] == "unknown_adapter"
    folders.place_adapter(root, "mine", seed=1, rank=4)
    first = answer("first")
    assert first["status"] == "succeeded"
    assert answer("again")["revision"] == first["revision"]
    folders.place_adapter(root, "mine", seed=2, rank=8)
    second = answer("second")
    assert second["status"] == "succeeded"
    assert second["revision"] != first["revision"]
    assert second["text"] != first["text"]
    shutil.rmtree(root / "mine")
    assert answer("gone")["error"]["code"] == "unknown_adapter"


@device.to_the_letter
def test_an_adapter_is_replaced_under_a_running_job(story, tmp_path, long_model):
    root = tmp_path / "root"
    root.mkdir()
    story.adapters, story.model = root, long_model
    folders.place_adapter(root, "mine", seed=1, rank=4)
    story.worker()
    long_job = {"adapter": "mine", "prompt": "Hi", "max_tokens": 1500, "ignore_eos": True,
                "temperature": 0}
    expected = story.reference([{"id": "running", **long_job}])["running"]
    story.send([{"id": "running", **long_job}])
    story.wait_streaming("running")
    folders.place_adapter(root, "mine", seed=2, rank=4)
    story.send([{"id": "new", **long_job, "max_tokens": 20}])
    finals = story.check()
    assert finals["running"]["revision"] == expected["revision"] != finals["new"]["revision"]
    assert finals["running"]["text"] == expected["text"], "no job mixes revisions"


def test_adapters_list_and_check(story, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    shutil.copytree(story.adapters / "alpha", root / "alpha")
    options = {**story.client_options(), **story.model_options(), "adapters": root}
    listed = story.tool("adapters", "list", options=options).stdout.decode()
    assert "alpha" in listed
    checked = story.tool("adapters", "check", options=options).stdout.decode()
    assert "alpha" in checked
    shutil.copytree(folders.TINY / "bad" / "use-dora", root / "dora")
    done = story.tool("adapters", "check", options=options, expect=JOBS)
    said = (done.stdout + done.stderr).decode()
    assert "dora" in said and "use_dora" in said
    story.tool("adapters", "check", "alpha", options=options)


def test_check(story):
    story.create_topics()
    options = {**story.client_options(), **story.model_options()}
    said = story.tool("check", options=options).stdout.decode()
    assert story.bootstrap in said and "fail" not in said
    said = story.tool("check", options={**options, "kafka.brokers": "127.0.0.1:1",
                                        "kafka.start_timeout_s": 1}, expect=BROKER).stdout.decode()
    assert "fail" in said
    story.tool("check", options={**options, "model": story.folder / "none"}, expect=MODEL)
    done = story.tool("check", options={**options, "redis.url": "redis://:secret@127.0.0.1:1"},
                      expect=None)
    assert b"secret" not in done.stdout + done.stderr


def test_run_without_kafka(story):
    """Good and bad lines; the exit code says that not all succeeded."""
    lines = [
        {"id": "a", "prompt": "Hi", "max_tokens": 3},
        {"prompt": "Hi", "max_tokens": 3, "adapter": "alpha"},
        {"id": "c", "prompt": "Hi", "max_tokens": -3},
    ]
    path = write_lines(story.folder / "jobs.jsonl", lines)
    with path.open("a") as file:
        file.write("\nno json\n")
    out = story.folder / "out.jsonl"
    story.tool("run", path, "-o", out, options=story.model_options(), expect=JOBS)
    finals = {final["id"]: final for final in read_lines(out)}
    assert set(finals) == {"a", "@file/0/1", "c", "@file/0/4"}
    assert finals["a"]["status"] == "succeeded"
    assert finals["@file/0/1"]["source"] == {"topic": "@file", "partition": 0, "offset": 1}
    assert finals["c"]["error"]["field"] == "max_tokens"
    assert finals["@file/0/4"]["error"]["code"] == "bad_message"
    story.tool("run", path, "-o", out, options={**story.model_options(), "model": "nowhere"},
               expect=MODEL)
    story.tool("run", story.folder / "none.jsonl", options=story.model_options(), expect=USAGE)


def test_usage(story):
    story.tool("--help")
    story.tool("help", "submit")
    for words in (["submti"], ["submit"], ["collect"], ["cancel"], ["adapters"], ["submit", "x",
                  "--nonsense"]):
        done = story.tool(*words, expect=USAGE)
        assert done.stderr
    assert b"submit" in story.tool("submti", expect=USAGE).stderr
    for words in (["tail", "x"], ["topics", "create"]):
        story.tool(*words, expect=BROKER, options={"kafka.brokers": "127.0.0.1:1",
                                                   "kafka.start_timeout_s": 1})
    story.tool("cancel", "x", options={"redis.url": "redis://127.0.0.1:1/0"}, expect=BROKER)
