#!/usr/bin/env python3
"""Writes tests/fuzz/corpus/safetensors/: small files, mostly header, so that mutations hit it.

The shapes are those of the model in fuzz_safetensors.c."""

import json
import struct
from pathlib import Path

OUT = Path(__file__).resolve().parent / "corpus/safetensors"
BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I8": 1}
Q = "base_model.model.model.layers.0.self_attn.q_proj"
DOWN = "base_model.model.model.layers.1.mlp.down_proj"


def pack(header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def build(*tensors, **extra):
    header, data = dict(extra), b""
    for name, dtype, *shape in tensors:
        size = BYTES[dtype]
        for n in shape:
            size *= n
        offsets = [len(data), len(data) + size]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        data += b"\x3c" * size
    return pack(header, data)


FILES = {
    "empty": b"",
    "no-tensors": pack({}, b""),
    "metadata": build(__metadata__={"format": "pt"}),
    "scalar": build(("a", "F32")),
    "types": build(("a", "F16", 2), ("b", "I64", 1), ("c", "BF16", 1, 1), ("d", "I8", 3)),
    "zero-size": build(("a", "F32", 0, 5), ("b", "F32", 1)),
    "padded": pack(b"{}" + b" " * 6, b""),
    "huge-header": struct.pack("<Q", 1 << 63) + b"{}",
    "huge-shape": pack({"a": {"dtype": "F32", "shape": [1 << 62, 8], "data_offsets": [0, 0]}}, b""),
    "overlap": pack(
        {n: {"dtype": "I8", "shape": [2], "data_offsets": [i, i + 2]} for i, n in enumerate("ab")},
        b"123",
    ),
    "deep": pack(b'{"a":' + b"[" * 3000, b""),
    "lora": build((f"{Q}.lora_A.weight", "F32", 1, 2), (f"{Q}.lora_B.weight", "F32", 16, 1)),
    "lora-two": build(
        (f"{Q}.lora_A.weight", "F16", 1, 2),
        (f"{Q}.lora_B.weight", "F16", 16, 1),
        (f"{DOWN}.lora_A.default.weight", "BF16", 1, 3),
        (f"{DOWN}.lora_B.default.weight", "BF16", 2, 1),
        __metadata__={"format": "pt"},
    ),
    "lora-copies": build(
        (f"{Q}.lora_A.weight", "F32", 1, 2),
        (f"{Q}.lora_B.weight", "F32", 16, 1),
        ("base_model.model.model.embed_tokens.base_layer.weight", "F16", 4, 2),
        ("base_model.model.lm_head.weight", "BF16", 4, 2),
    ),
    "lora-half": build((f"{Q}.lora_A.weight", "F32", 1, 2)),
    "lora-layer": build((f"{Q.replace('0', '99999999999')}.lora_A.weight", "F32", 1, 2)),
}

OUT.mkdir(parents=True, exist_ok=True)
for name, content in FILES.items():
    (OUT / name).write_bytes(content)
print(f"{len(FILES)} files in {OUT}")
