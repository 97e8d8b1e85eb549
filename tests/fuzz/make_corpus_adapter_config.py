#!/usr/bin/env python3
"""Writes tests/fuzz/corpus/adapter_config/: configs that PEFT wrote, the refused ones of the goldens,
and keys of rank_pattern in each form that is read or refused."""

import json
from pathlib import Path

HERE = Path(__file__).resolve().parent
OUT = HERE / "corpus/adapter_config"
TINY = HERE.parent / "golden/tiny-llama"
WRITTEN = ("alpha-pattern", "excluded", "layers-pattern", "lora-bias", "rank-pattern", "regex")

KEYS = {
    "branches": r"^model\.layers\.(\d+|[a-z]x?)\.(?:mlp|self_attn)\.[^q-v]+$",
    "quantifiers": "(layers.)?(a*b+c?)x*",
    "nested": "((a+)+)+",
    "deep": "(" * 100 + "a" + ")" * 100,
    "lazy": "a+?b",
    "count": "a{2,3}",
    "empty-branch": "(a|)",
}


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    for name in WRITTEN:
        config = (TINY / "adapters" / name / "adapter_config.json").read_text()
        (OUT / name).write_text(json.dumps(json.loads(config)))
    for one in json.loads((TINY / "bad.json").read_text()):
        config = TINY / "bad" / one["adapter"] / "adapter_config.json"
        if config.exists() and config.read_bytes() != b"{}":
            text = config.read_bytes()
            if text not in [file.read_bytes() for file in OUT.iterdir()]:
                (OUT / f"bad-{one['adapter']}").write_bytes(text)
    for name, key in KEYS.items():
        config = {"peft_type": "LORA", "r": 2, "rank_pattern": {key: 3}, "alpha_pattern": {key: 1.5}}
        (OUT / f"key-{name}").write_text(json.dumps(config))
    (OUT / "scale").write_text('{"peft_type": "LORA", "alpha_pattern": {"q_proj": 1e300}}')
    (OUT / "no-name").write_text('{"peft_type": "LORA", "": 1}')
    (OUT / "control").write_bytes(b'{"a": \x1b')


if __name__ == "__main__":
    main()
