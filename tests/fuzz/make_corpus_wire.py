#!/usr/bin/env python3
"""Writes the seeds of fuzz_wire into corpus/wire: each one a choice byte, then a message.

Run it after a change here and commit what it wrote; it writes the same bytes every time.
"""
import json
import pathlib
import struct

JOB, FRAME, FINAL, STRICT, TYPED = 0, 2, 3, 4, 8
RUN = "01ARYZ6S41TSV4RRFFQ69G5FAV"


def pack(value):
    """msgpack, in the smallest form but for what the edge seeds below spell out."""
    if value is None:
        return b"\xc0"
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        if 0 <= value < 128:
            return struct.pack("B", value)
        if -32 <= value < 0:
            return struct.pack("b", value)
        if 0 <= value < 1 << 16:
            return b"\xcd" + struct.pack(">H", value)
        if 0 <= value < 1 << 64:
            return b"\xcf" + struct.pack(">Q", value)
        return b"\xd3" + struct.pack(">q", value)
    if isinstance(value, float):
        return b"\xcb" + struct.pack(">d", value)
    if isinstance(value, bytes):
        return b"\xc4" + struct.pack("B", len(value)) + value
    if isinstance(value, str):
        raw = value.encode()
        head = struct.pack("B", 0xA0 | len(raw)) if len(raw) < 32 else b"\xda" + struct.pack(">H", len(raw))
        return head + raw
    if isinstance(value, list):
        head = struct.pack("B", 0x90 | len(value)) if len(value) < 16 else b"\xdc" + struct.pack(">H", len(value))
        return head + b"".join(map(pack, value))
    head = struct.pack("B", 0x80 | len(value)) if len(value) < 16 else b"\xde" + struct.pack(">H", len(value))
    return head + b"".join(pack(k) + pack(v) for k, v in value.items())


FULL_JOB = {
    "v": 1, "id": "b1/7", "custom_id": "request-7", "batch_id": "b1", "generation": 2, "adapter": "pirate.v1",
    "prompt": "Hello, \u4e16\u754c \U0001f30d\n\"quoted\" \\ \u0001", "max_tokens": 16, "temperature": 0.7, "top_p": 0.95,
    "top_k": 40, "seed": -5, "stop": ["\n\n", "END"], "stop_token_ids": [2, 32000], "ignore_eos": True,
    "stream": False, "deadline_ms": 1760000000000, "ttft_slo_ms": 500, "priority": -3, "tenant": "team a",
    "metadata": {"k": "v", "empty": ""}, "min_p": 0, "repetition_penalty": 1.0, "n": 1, "new_field": {"a": [1]},
}
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Hi"},
        {"type": "text", "text": "there"}]}]
OPENAI = {"custom_id": "r-1", "method": "POST", "url": "/v1/chat/completions",
          "body": {"model": "pirate", "messages": CHAT, "max_completion_tokens": 8, "stop": "x", "logprobs": False,
                   "top_logprobs": 0, "response_format": {"type": "text"}, "metadata": {"a": "b"}, "user": "u"}}
LOGPROBS = [{"token": 1, "logprob": -0.5, "top": [[1, -0.5], [7, -1.25]]},
            {"token": 2, "logprob": -9999, "top": [[3, -1e-30], [4, -123456.5]]},
            {"token": 70000, "logprob": 0, "top": [[70000, 0], [0, -9999]]}]
FRAMES = [{"v": 1, "id": "a", "attempt": 1, "run": RUN, "seq": i, "pos": 0, "kind": kind, "text": "t\u00e9xt",
           "tokens": [1, 2, 70000], "logprobs": LOGPROBS if kind == "tokens" else None} for i, kind in enumerate(["start", "tokens", "restart", "end"])]


def final(status, **more):
    record = {"v": 1, "id": "@jobs/3/17", "custom_id": None, "batch_id": None, "generation": 0, "adapter": "pirate",
              "revision": "ab" * 32, "attempt": 1, "run": RUN, "status": status, "finish_reason": None, "error": None,
              "text": None, "tokens": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5,
                                                    "prompt_tokens_details": {"cached_tokens": 1}},
              "timing_ms": {"queued": 1.5, "first_token": None, "total": 20}, "worker": "host-1",
              "source": {"topic": "jobs", "partition": 3, "offset": 17}, "metadata": {}}
    record.update(more)
    return record


def seeds():
    """(name, choice, value or raw bytes): a value is written in both encodings."""
    yield "job_full", JOB, FULL_JOB
    yield "job_full_strict", JOB | STRICT, FULL_JOB
    yield "job_prompt", JOB, {"prompt": "x"}
    yield "job_tokens", JOB, {"tokens": [1, 2, 3, 2147483647]}
    yield "job_chat", JOB, {"messages": CHAT, "ttl_ms": 1000}
    yield "job_base", JOB, {"adapter": "base", "prompt": "x", "model": "base"}
    yield "job_traversal", JOB, {"adapter": "../x", "prompt": "x"}
    yield "job_at_id", JOB, {"id": "@jobs/1/2", "prompt": "x"}
    yield "job_version", JOB, {"v": 2, "id": "a", "prompt": "x"}
    yield "job_lacks", JOB, {"prompt": "x", "tools": [{"type": "function"}]}
    yield "job_two_inputs", JOB, {"prompt": "x", "tokens": [1]}
    yield "job_types", JOB, {"prompt": 1, "max_tokens": "1", "temperature": True}
    yield "job_sampling", JOB, {"prompt": "x", "min_p": 0.05, "repetition_penalty": 1.1, "presence_penalty": -2,
                                "frequency_penalty": 1.5, "logprobs": True, "top_logprobs": 20}
    yield "job_logprobs", JOB | STRICT, {"prompt": "x", "logprobs": 3, "top_logprobs": 4}
    yield "job_nul", JOB, {"prompt": "a\u0000b"}
    yield "job_big_numbers", JOB, {"prompt": "x", "seed": -(1 << 63), "temperature": 1e300, "top_p": 5e-324}
    yield "openai_chat", JOB, OPENAI
    yield "openai_text", JOB | STRICT, {"custom_id": "r", "url": "/v1/completions", "body": {"prompt": ["one"]}}
    yield "openai_tokens", JOB, {"custom_id": "r", "body": {"prompt": [1, 2]}}
    yield "openai_several", JOB, {"custom_id": "r", "body": {"prompt": ["a", "b"]}}
    yield "openai_url", JOB, {"custom_id": "r", "url": "/v1/embeddings", "body": {"input": "x"}}
    for frame in FRAMES:
        yield "frame_" + frame["kind"], FRAME, frame
    text = {"text": "done \u2713", "tokens": [5, 6], "finish_reason": "stop"}
    yield "final_succeeded", FINAL, final("succeeded", **text)
    yield "final_length", FINAL, final("succeeded", **{**text, "finish_reason": "length", "metadata": {"a": "b"}})
    yield "final_logprobs", FINAL, final("succeeded", **text, logprobs=LOGPROBS[:2])
    yield "final_uneven", FINAL, final("succeeded", **text, logprobs=[LOGPROBS[0], {"token": 1, "logprob": 0, "top": []}])
    for status in ("failed", "rejected", "expired", "cancelled"):
        error = {"code": "bad_field", "message": "max_tokens must be at least 1", "field": "max_tokens"}
        yield "final_" + status, FINAL, final(status, error=error, run=None, attempt=0)


EDGES = {
    "edge_empty": b"", "edge_array32": b"\xdd\xff\xff\xff\xff", "edge_map32": b"\xdf\xff\xff\xff\xff\xa1a",
    "edge_str32": b"\x81\xa6prompt\xdb\xff\xff\xff\xff", "edge_bin": pack({"prompt": b"x"}), "edge_c1": b"\x81\xa1a\xc1",
    "edge_trailing": pack({"prompt": "x"}) + b"\x00", "edge_twice": b"\x82\xa1a\x01\xa1a\x02",
    "edge_empty_key": pack({"": 1, "prompt": "x"}), "edge_int_key": b"\x81\x01\x02", "edge_deep_msgpack": b"\x81\xa1a" + b"\x91" * 40 + b"\x00",
    "edge_deep_json": b'{"a":' + b"[" * 40 + b"]" * 40 + b"}", "edge_not_utf8": b"\x81\xa6prompt\xa2\xc3\x28",
    "edge_json_twice": b'{"a":1,"a":2}', "edge_json_surrogate": b'{"prompt":"\\ud800"}', "edge_json_cut": b'{"prompt":"x',
    "edge_float_nan": b"\x82\xa6prompt\xa1x\xabtemperature\xcb\x7f\xf8" + b"\0" * 6,
    "edge_ext": b"\x82\xa6prompt\xa1x\xa1e\xd6\xff\0\0\0\0", "edge_space_json": b' \r\n\t{"prompt":"x"} ',
}


def main():
    folder = pathlib.Path(__file__).parent / "corpus" / "wire"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for name, choice, value in seeds():
        (folder / f"{name}.msgpack").write_bytes(bytes([choice]) + pack(value))
        text = json.dumps(value, ensure_ascii=False).encode()
        (folder / f"{name}.json").write_bytes(bytes([choice | TYPED]) + text)
    for name, raw in EDGES.items():
        (folder / name).write_bytes(bytes([JOB]) + raw)


if __name__ == "__main__":
    main()
