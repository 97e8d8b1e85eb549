#!/usr/bin/env python3
"""Writes tests/fuzz/corpus/yaml/: the sections of the example file, each with its options set, and
what else of YAML is read or refused."""

from pathlib import Path

HERE = Path(__file__).resolve().parent
OUT = HERE / "corpus/yaml"
EXAMPLE = HERE.parent.parent / "docs/lorry.example.yaml"

OTHER = {
    "empty": "",
    "comment": "# only a comment\n",
    "null": "~\n",
    "flow": "wire: {strict: yes}\nkafka: {jobs: [a, 'b', \"c\\x64\"], group: 'it''s'}\n",
    "values": "pool: {bytes: 2G}\nhttp: {port: 0x10}\ndevice: {kind: cpu}\nlog: {level: debug}\n",
    "block": "kafka:\n  properties:\n    - debug=cgrp\n    - |\n      sasl.password=x\n      y\n  group: >-\n    a\n    b\n",
    "home": "model: {dir: ~/models/x}\nadapters: {dir: ~other/y}\n",
    "anchor": "kafka:\n  group: &x a\n  frames: *x\n",
    "tags": "%YAML 1.1\n%TAG ! tag:a,2000:\n---\nkafka: !!map {group: !!str a}\n...\n",
    "documents": "kafka: {group: a}\n---\nkafka: {group: b}\n",
    "complex-key": "kafka:\n  ? [a]\n  : b\n",
    "nested": "kafka: {jobs: [[[[[[a]]]]]]}\n",
    "twice": "kafka:\n  group: a\n  group: b\n",
    "unknown": "kafak:\n  brokers: x\n",
    "nul": 'kafka: {group: "a\\0b"}\n',
    "utf-16": "kafka: {group: ü}\n".encode("utf-16"),
    "not-utf-8": b"kafka: {group: \xff}\n",
}


def sections():
    """The example's sections without comments, each option set to its default."""
    name, lines = None, []
    for line in EXAMPLE.read_text().splitlines():
        if line and not line.startswith((" ", "#")):
            if name:
                yield name, lines
            name, lines = line.rstrip(":"), [line]
        elif line.startswith("  #") and not line.startswith("  # "):
            lines.append("  " + line[3:])
    yield name, lines


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    for name, lines in sections():
        (OUT / f"section-{name}").write_text("\n".join(lines) + "\n")
    for name, text in OTHER.items():
        (OUT / name).write_bytes(text if isinstance(text, bytes) else text.encode())


if __name__ == "__main__":
    main()
