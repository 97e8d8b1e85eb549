"""What a reader of the frames and results topics makes of the records (design §8 and §10), and the
checks that hold for every story.

Written from the wire's description alone: it shares no code with wire/.
"""

import json
import re
from dataclasses import dataclass, field

import msgpack

import device

CONTENT_TYPES = {"application/msgpack": "msgpack", "application/json": "json"}
STATUSES = {"succeeded", "failed", "rejected", "expired", "cancelled"}
ULID = re.compile(r"^[0-9A-HJKMNP-TV-Z]{26}$")


@dataclass
class Sent:
    """A job as it was sent: where the broker put it, and what its final must echo."""

    id: str
    topic: str
    partition: int
    offset: int
    encoding: str  # of its outputs: "msgpack" or "json"
    job: object = None  # the dict, or None of bytes that are no job
    generation: int = 0

    @property
    def at(self):
        return (self.topic, self.partition, self.offset)


@dataclass
class Record:
    """A frame, a final or a dead letter as it came from its topic."""

    topic: str
    partition: int
    offset: int
    key: bytes
    value: bytes
    headers: dict
    timestamp_ms: int
    body: dict = field(default_factory=dict)  # empty of dead letters
    encoding: str = ""


def decode(record):
    """Fills in body and encoding of a frame or final, as its content-type says."""
    kind = record.headers.get("content-type", b"").decode()
    assert kind in CONTENT_TYPES, f"content-type {kind!r} at {record.topic}/{record.offset}"
    record.encoding = CONTENT_TYPES[kind]
    if record.encoding == "json":
        record.body = json.loads(record.value.decode())  # both are strict about UTF-8
    else:
        record.body = msgpack.unpackb(record.value, raw=False, strict_map_key=True)
    assert record.body["v"] == 1
    assert record.key == record.body["id"].encode(), "the key is the job's id"
    return record


def rank_of(body):
    """What the reader's rule compares. A job that never started has no run."""
    return (body["attempt"], body["run"] or "")


def best_finals(records):
    """The batch reader's rule: of each (id, generation) the greatest (attempt, run)."""
    best = {}
    for record in records:
        key = (record.body["id"], record.body["generation"])
        if key not in best or rank_of(record.body) >= rank_of(best[key].body):
            best[key] = record
    return best


class Stream:
    """The frames of one job, put together by a streaming reader."""

    def __init__(self, job_id):
        self.id = job_id
        self.rank = (-1, "")
        self.pieces = []  # (pos, tokens, text) after all cuts
        self.next_seq = 0
        self.next_pos = 0
        self.ended = False
        self.frames = 0

    def take(self, body):
        rank = rank_of(body)
        if rank < self.rank:
            return  # of an attempt that was superseded
        if rank > self.rank:
            assert body["kind"] in ("start", "restart"), f"{self.id}: an attempt opens with {body}"
            assert body["kind"] == "restart" or body["pos"] == 0
            self.pieces = [piece for piece in self.pieces if piece[0] < body["pos"]]
            self.rank, self.next_seq, self.ended = rank, 0, False
            self.next_pos = body["pos"]
        assert not self.ended, f"{self.id}: a frame after the end: {body}"
        assert body["seq"] == self.next_seq, f"{self.id}: frame {body}, expected {self.next_seq}"
        assert body["pos"] == self.next_pos, f"{self.id}: {body}, expected pos {self.next_pos}"
        self.next_seq += 1
        self.frames += 1
        self.ended = body["kind"] == "end"
        if body["kind"] == "tokens":
            self.pieces.append((body["pos"], body["tokens"], body["text"]))
            self.next_pos += len(body["tokens"])
        else:
            assert body["text"] == "" and body["tokens"] == []

    @property
    def text(self):
        return "".join(text for _, _, text in self.pieces)

    @property
    def tokens(self):
        return [token for _, tokens, _ in self.pieces for token in tokens]


def streams_of(records):
    """The streams by job id. Records of a job lie in one partition, in order."""
    streams = {}
    for record in records:
        stream = streams.setdefault(record.body["id"], Stream(record.body["id"]))
        stream.take(record.body)
    return streams


def check_shape(final):
    """What holds for every final, whatever became of its job."""
    name = final["id"]
    assert final["status"] in STATUSES, name
    succeeded = final["status"] == "succeeded"
    assert final["finish_reason"] in (("stop", "length") if succeeded else (None,)), final
    if final["status"] in ("rejected", "failed"):
        assert final["error"]["code"] and final["error"]["message"], final
    if succeeded:
        assert final["error"] is None, final
    started = final["timing_ms"]["queued"] is not None
    assert final["attempt"] >= (1 if started else 0), final
    if started:
        assert ULID.match(final["run"]), final
    else:
        assert final["run"] is None and not final["tokens"], final
    assert final["worker"], name
    usage = final["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"], name
    if succeeded:
        assert started and usage["prompt_tokens"] > 0, final
        timing = final["timing_ms"]
        assert 0 <= timing["queued"] <= timing["first_token"] <= timing["total"], final
    if final["tokens"] is not None:
        assert len(final["tokens"]) in (0, usage["completion_tokens"]), final
    if final["logprobs"] is not None:
        assert [each["token"] for each in final["logprobs"]] == final["tokens"], final
        assert all(each["logprob"] <= 0 for each in final["logprobs"]), final


def check_echo(sent, record):
    """A final names the job that it answers."""
    final = record.body
    assert record.encoding == sent.encoding, f"{sent.id}: encoded as {record.encoding}"
    source = final["source"]
    assert (source["topic"], source["partition"], source["offset"]) == sent.at, sent.id
    if isinstance(sent.job, dict):
        for name in ("custom_id", "batch_id"):
            if name in sent.job:
                assert final[name] == sent.job[name], (sent.id, name)
        if final["status"] == "succeeded":
            where = sent.job.get("body", sent.job)
            metadata = where.get("metadata") or sent.job.get("metadata") or {}
            assert final["metadata"] == metadata, sent.id
            if "max_tokens" in where:
                assert final["usage"]["completion_tokens"] <= where["max_tokens"], sent.id


def check_stream(final, streams):
    """Invariant 8: after all cuts, the frames equal the final's text."""
    stream = streams.get(final["id"])
    if stream is None:
        return False
    assert stream.rank == rank_of(final), f"{final['id']}: frames of another attempt"
    assert stream.ended, f"{final['id']}: its frames do not end"
    if final["error"] is None or final["error"]["code"] != "result_too_large":
        assert stream.text == final["text"], final["id"]
        if final["tokens"]:
            assert stream.tokens == final["tokens"], final["id"]
    return True


def check_finals(sent, finals, frames=()):
    """Every job has one final after the reader's rule, and no final lacks a job (invariant 1); each
    is well formed, answers its job, and equals its frames. Returns the finals' bodies by id."""
    jobs = {(each.id, each.generation): each for each in sent}
    best = best_finals(finals)
    assert not jobs.keys() - best.keys(), f"jobs without a final: {jobs.keys() - best.keys()}"
    assert not best.keys() - jobs.keys(), f"finals without a job: {best.keys() - jobs.keys()}"
    streams = streams_of(frames)
    for key, record in best.items():
        check_shape(record.body)
        check_echo(jobs[key], record)
        check_stream(record.body, streams)
    return {key[0]: record.body for key, record in best.items()}


def counted(final):
    """Its usage but what was cached: that depends on who came before."""
    usage = dict(final["usage"])
    cached = usage.pop("prompt_tokens_details")["cached_tokens"]
    assert 0 <= cached <= usage["prompt_tokens"], final
    return usage


def answer(final):
    return final["finish_reason"], final["text"], final["tokens"], counted(final)


def check_same(finals, reference):
    """The same jobs have the same answers: status, adapter, revision, text and tokens."""
    assert finals.keys() == reference.keys()
    parted = []
    for job_id, final in finals.items():
        other = reference[job_id]
        for name in ("status", "adapter", "revision"):
            assert final[name] == other[name], (job_id, name, final[name], other[name])
        if answer(final) != answer(other):
            parted.append((job_id, answer(final), answer(other)))
    assert len(parted) <= device.may_part(len(finals)), (len(parted), parted[0])
