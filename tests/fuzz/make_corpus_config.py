#!/usr/bin/env python3
"""Writes tests/fuzz/corpus/config/: the published configs, and the refused ones laid over one of
them; each a config.json, a NUL and a generation_config.json."""

import json
from pathlib import Path

HERE = Path(__file__).resolve().parent
OUT = HERE / "corpus/config"
GOLDEN = HERE.parent / "golden"


def pack(config, generation):
    return b"\0".join(json.dumps(part).encode() for part in (config, generation))


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    published = json.loads((GOLDEN / "published_configs.json").read_text())
    for one in published:
        name = one["name"].partition(",")[0].lower()
        (OUT / name).write_bytes(pack(one["config"], one["generation"]))
    for i, one in enumerate(json.loads((GOLDEN / "bad_configs.json").read_text())):
        config = published[4]["config"] | one["config"]
        (OUT / f"bad-{i:02}-{one['field']}").write_bytes(json.dumps(config).encode())
    (OUT / "control").write_bytes(pack({"architectures": ["L\x1bma"]}, {}))
    (OUT / "control-in-json").write_bytes(b'{"a": \x1b')


if __name__ == "__main__":
    main()
