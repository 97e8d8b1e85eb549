"""Bad jobs: each has a final of its own that names what is wrong, and disturbs nobody."""

import json
import shutil

import msgpack
import pytest

import folders
from lab import eventually
from outcomes import Sent

POSITIONS = 2048  # the context of the model


def job(**fields):
    return {"id": "x", "prompt": "Hi", "max_tokens": 2, **fields}


def openai(**fields):
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], **fields}
    return {"custom_id": "mine", "method": "POST", "url": "/v1/chat/completions", "body": body}


def nested(depth):
    return b'{"prompt": "Hi", "other": ' + b"[" * depth + b"]" * depth + b"}"


BAD = [  # name, value (a dict is sent as JSON and as msgpack), code, field
    ("no-format", b"\xc1\xc1\xc1", "bad_message", None),
    ("random-bytes", bytes(range(128, 256)), "bad_message", None),
    ("empty-value", b"", "bad_message", None),
    ("no-value", None, "bad_message", None),
    ("cut-json", b'{"id": "x", "prompt": "Hi', "bad_message", None),
    ("cut-msgpack", msgpack.packb(job())[:-3], "bad_message", None),
    ("two-documents", b'{"prompt": "Hi"}{"prompt": "Hi"}', "bad_message", None),
    ("a-list", msgpack.packb([1, 2]), "bad_message", None),
    ("deep", nested(1000), "bad_message", None),
    ("bad-utf8-json", b'{"id": "x", "prompt": "\xff\xfe"}', "bad_message", None),
    ("bad-utf8-msgpack", b"\x81\xa6prompt\xa2\xff\xfe", "bad_message", None),
    ("half-surrogate", b'{"prompt": "\\ud800"}', "bad_message", None),
    ("version-2", job(v=2), "bad_version", "v"),
    ("bad-id", job(id="a b"), "bad_field", "id"),
    ("coordinates-as-id", job(id="@lorry.jobs/0/1"), "bad_field", "id"),
    ("long-id", job(id="x" * 129), "bad_field", "id"),
    ("unknown-adapter", job(adapter="nobody"), "unknown_adapter", "adapter"),
    ("traversal", job(adapter="../x"), "bad_field", "adapter"),
    ("parent", job(adapter=".."), "bad_field", "adapter"),
    ("absolute", job(adapter="/etc"), "bad_field", "adapter"),
    ("hidden", job(adapter=".hidden"), "bad_field", "adapter"),
    ("hash", job(adapter="alpha#1"), "bad_field", "adapter"),
    ("nul", job(adapter="alpha\0"), "bad_field", "adapter"),
    ("adapter-number", job(adapter=7), "bad_field", "adapter"),
    ("no-prompt", {"id": "x"}, "bad_field", "prompt"),
    ("empty-prompt", job(prompt=""), "bad_field", "prompt"),
    ("empty-tokens", {"id": "x", "tokens": []}, "bad_field", "tokens"),
    ("empty-messages", {"id": "x", "messages": []}, "bad_field", "messages"),
    ("two-inputs", job(tokens=[1, 2]), "bad_field", "tokens"),
    ("no-such-token", {"id": "x", "tokens": [5, 320]}, "bad_field", "tokens"),
    ("long-prompt", job(prompt="qx " * POSITIONS), "prompt_too_long", "prompt"),
    ("long-tokens", {"id": "x", "tokens": [5] * POSITIONS}, "prompt_too_long", "tokens"),
    ("negative-max-tokens", job(max_tokens=-1), "bad_field", "max_tokens"),
    ("no-tokens-wanted", job(max_tokens=0), "bad_field", "max_tokens"),
    ("half-a-token", job(max_tokens=1.5), "bad_field", "max_tokens"),
    ("negative-temperature", job(temperature=-1), "bad_field", "temperature"),
    ("top-p", job(top_p=1.5), "bad_field", "top_p"),
    ("two-deadlines", job(ttl_ms=5000, deadline_ms=5000), "bad_field", "ttl_ms"),
    ("two-answers", job(n=2), "unsupported_field", "n"),
    ("openai-tools", openai(tools=[{"type": "function"}]), "unsupported_field", "tools"),
    ("openai-json", openai(response_format={"type": "json_object"}), "unsupported_field",
     "response_format"),
    ("openai-logit-bias", openai(logit_bias={"5": 100}), "unsupported_field", "logit_bias"),
    ("openai-url", {**openai(), "url": "/v1/embeddings"}, "unsupported_field", "url"),
    ("openai-adapter", openai(model="nobody"), "unknown_adapter", "adapter"),
]  # fmt: skip

# A field of an OpenAI line is named with the place where it stands.
PLACES = ("", "body.")


def variants():
    """(name, value, encoding, …): what has fields comes in both encodings."""
    for name, value, code, field in BAD:
        if isinstance(value, dict):
            numbered = {**value, "id": f"{name}-json"} if value.get("id") == "x" else value
            yield name, json.dumps(numbered).encode(), "json", numbered, code, field
            numbered = {**value, "id": f"{name}-pack"} if value.get("id") == "x" else value
            yield name, msgpack.packb(numbered), "msgpack", numbered, code, field
        else:
            encoding = "json" if (value or b"").startswith(b"{") else "msgpack"
            yield name, value, encoding, None, code, field


def usable_id(fields):
    job_id = (fields or {}).get("id", "")
    return job_id if job_id and len(job_id) <= 128 and " " not in job_id and "@" not in job_id else ""


def test_bad_jobs_and_good_neighbours(story):
    worker = story.worker()
    bad = {}
    for number, (name, value, encoding, fields, code, field) in enumerate(variants()):
        headers = [("traceparent", b"00-11-22-33")] if number % 2 else []
        at = story.send_raw(value, key=f"key-{number}".encode(), headers=headers)
        job_id = usable_id(fields) or f"@{at.topic}/{at.partition}/{at.offset}"
        sent = Sent(job_id, at.topic, at.partition, at.offset, encoding, None)
        story.sent.append(sent)
        bad[job_id] = (name, code, field, value, number, sent, headers)
        story.send([{"id": f"good-{number}", "prompt": "Hi", "max_tokens": 2,
                     "adapter": [None, "alpha"][number % 2]}])
    finals = story.check()

    for job_id, (name, code, field, *_) in bad.items():
        final = finals[job_id]
        assert final["status"] == "rejected", (name, final)
        assert final["error"]["code"] == code, (name, final["error"])
        if field is not None:
            assert final["error"]["field"] in [place + field for place in PLACES], (name, final)
        assert final["adapter"] in (None, "nobody"), name
    good = [final for job_id, final in finals.items() if job_id.startswith("good-")]
    assert len(good) == len(bad)
    assert {final["status"] for final in good} == {"succeeded"}

    # Besides its final, each is a dead letter: bytes unchanged, and headers that say why.
    story.read_to_end()
    dead = {}
    for record in story.reader.records[story.dead]:
        place = (record.headers["__dlq.errors.partition"], record.headers["__dlq.errors.offset"])
        assert place not in dead, "one dead letter each"
        dead[place] = record
    assert len(dead) == len(bad)
    for job_id, (name, code, field, value, number, sent, headers) in bad.items():
        record = dead[(str(sent.partition).encode(), str(sent.offset).encode())]
        assert (record.value or b"") == (value or b""), f"{name}: unchanged"
        assert record.key == f"key-{number}".encode()
        assert record.headers["__dlq.errors.topic"] == story.jobs.encode()
        assert record.headers["__dlq.errors.group"] == story.group.encode()
        assert record.headers["__dlq.errors.code"] == code.encode()
        message = record.headers["__dlq.errors.message"].decode()
        assert message == finals[job_id]["error"]["message"]
        for header, header_value in headers:
            assert record.headers[header] == header_value
    assert worker.metric("dead_letters_total") == len(bad)
    story.wait_committed()


def test_content_type_header_and_first_byte(story):
    """JSON is known by its first byte, whatever the header says or whether there is one; white
    space before it needs the header."""
    story.worker()
    value = b'{"id": "%s", "prompt": "Hi", "max_tokens": 2}'
    cases = [
        ("bare", value, None, "json"),
        ("as-octets", value, b"application/octet-stream", "json"),
        ("spaces", b"  \n" + value, b"application/json; charset=utf-8", "json"),
        ("pack", msgpack.packb({"id": "pack", "prompt": "Hi", "max_tokens": 2}), None, "msgpack"),
    ]
    for job_id, data, header, encoding in cases:
        data = data.replace(b"%s", job_id.encode())
        headers = [("content-type", header)] if header else []
        at = story.send_raw(data, headers=headers)
        story.sent.append(Sent(job_id, at.topic, at.partition, at.offset, encoding, None))
    finals = story.check()
    assert {final["status"] for final in finals.values()} == {"succeeded"}


def test_unknown_fields_are_counted_or_rejected(story):
    worker = story.worker(wire__strict="false")
    story.send([job(id="loose", colour="blue", size=3)])
    assert story.check()["loose"]["status"] == "succeeded"
    assert worker.metric("unknown_fields_total") == 2
    assert worker.stop() == 0
    story.worker(wire__strict="true")
    story.send([job(id="strict", colour="blue")])
    final = story.check()["strict"]
    assert final["status"] == "rejected" and final["error"]["field"] == "colour"


@pytest.fixture
def bad_root(story, tmp_path):
    """An adapter root with every adapter of tests/golden/tiny-llama/bad, and good ones."""
    root = tmp_path / "root"
    shutil.copytree(folders.TINY / "bad", root)
    for name in ("alpha", "beta"):
        shutil.copytree(story.adapters / name, root / name)
    (root / "empty").mkdir()
    (root / "file").write_text("no folder")
    (root / "with space").mkdir()
    return root


def test_bad_adapters(story, bad_root):
    """Corrupt, truncated, foreign and unsupported adapters fail their own jobs, by name and field;
    twice, since the verdict is kept."""
    story.adapters = bad_root
    listed = json.loads((folders.TINY / "bad.json").read_text())
    expected = {each["adapter"]: (each["error"], each["words"]) for each in listed}
    expected["empty"] = ("bad_adapter", ["adapter_config.json"])
    expected["file"] = ("unknown_adapter", [])
    worker = story.worker(adapters__retry_ms=200)
    for turn in range(2):
        for name in expected:
            for adapter in (name, ["alpha", "beta", None][turn]):
                story.send([{"id": f"{name}-{turn}-{adapter or 'base'}", "adapter": adapter,
                             "prompt": "Hi", "max_tokens": 3}])
        finals = story.check()
    for job_id, final in finals.items():
        adapter = final["adapter"]
        if adapter in expected:
            code, words = expected[adapter]
            assert final["status"] == "rejected", final
            assert final["error"]["code"] == code, final
            said = final["error"]["message"] + " " + (final["error"]["field"] or "")
            assert all(word in said for word in words), (final, words)
        else:
            assert final["status"] == "succeeded", final["error"]
    assert worker.metric("adapter_refusals_total") >= len(listed)
    assert len(story.records(story.dead)) == 2 * len(expected)
    story.wait_committed()


def test_a_repaired_adapter_works(story, tmp_path):
    """A refusal stands only while the files stay as they are."""
    root = tmp_path / "root"
    root.mkdir()
    shutil.copytree(folders.TINY / "bad" / "cut-data", root / "mine")
    story.adapters = root
    story.worker()
    story.send([job(id="before", adapter="mine")])
    assert story.check()["before"]["error"]["code"] == "bad_adapter"
    folders.place_adapter(root, "mine", seed=5, rank=4)
    story.send([job(id="after", adapter="mine")])
    assert story.check()["after"]["status"] == "succeeded"


def test_an_unreadable_root_is_waited_for(story, tmp_path):
    """Not known is not unknown: while the root is away its jobs wait, the base's go on."""
    root = tmp_path / "root"
    root.mkdir()
    folders.place_adapter(root, "mine", seed=5, rank=4)
    story.adapters = root
    worker = story.worker(adapters__retry_ms=200)
    root.rename(tmp_path / "away")
    story.send([job(id="waits", adapter="mine"), job(id="unknown", adapter="nobody")])
    story.send([job(id=f"base-{i}") for i in range(5)])
    finals = story.wait_finals(5)
    assert set(finals) == {f"base-{i}" for i in range(5)}
    eventually("the other two wait", lambda: worker.metric("jobs_held") == 2)
    (tmp_path / "away").rename(root)
    finals = story.check()
    assert finals["waits"]["status"] == "succeeded"
    assert finals["unknown"]["error"]["code"] == "unknown_adapter"
