#!/usr/bin/env python3
"""The layers' mathematics once more: a forward pass in NumPy's float64 from the files themselves.

    reference.py [tests/golden/tiny-*]    holds the committed goldens to it

It shares no code with transformers, peft or safetensors, so that a mistake of theirs or of
generate.py would be seen; generate.py calls check() for each model that it makes. Needs NumPy.
"""

import base64
import json
import math
import re
import sys
from pathlib import Path

import numpy as np

TOLERANCE = 1e-4  # of the largest logit
PREFIX = "base_model.model."


def load(path):
    """name → float64 array of a safetensors file."""
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        part = data[entry["data_offsets"][0] : entry["data_offsets"][1]]
        if entry["dtype"] == "BF16":
            values = (np.frombuffer(part, "<u2").astype("<u4") << 16).view("<f4")
        else:
            values = np.frombuffer(part, {"F32": "<f4", "F16": "<f2"}[entry["dtype"]])
        tensors[name] = values.astype(np.float64).reshape(entry["shape"])
    return tensors


def load_model(folder):
    index = folder / "model.safetensors.index.json"
    files = {"model.safetensors"}
    if index.exists():
        files = set(json.loads(index.read_text())["weight_map"].values())
    weights = {}
    for file in files:
        weights |= load(folder / file)
    return json.loads((folder / "config.json").read_text()), weights


class Unsupported(Exception):
    """An adapter of a kind that this reference does not know."""


def matched(patterns, path, default):
    """The value of the first pattern that is the path or its end, at a dot."""
    for pattern, value in (patterns or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", path):
            return value
    return default


def scale_of(config, path, rank):
    assert rank == matched(config.get("rank_pattern"), path, config["r"]), path
    alpha = matched(config.get("alpha_pattern"), path, config["lora_alpha"])
    return alpha / (math.sqrt(rank) if config["use_rslora"] else rank)


def load_adapter(folder):
    """module path → (scale, A, B, bias of B)"""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors, lora = load(folder / "adapter_model.safetensors"), {}
    for flag in ("use_dora", "modules_to_save", "trainable_token_indices"):
        if config.get(flag):
            raise Unsupported(flag)
    tensors = {
        name.replace(".default.", ".").removesuffix(".default"): value
        for name, value in tensors.items()
    }
    for name, a in tensors.items():
        if name.endswith(".lora_A.weight"):
            path = name.removeprefix(PREFIX).removesuffix(".lora_A.weight")
            b = tensors[f"{PREFIX}{path}.lora_B.weight"]
            bias = tensors.get(f"{PREFIX}{path}.lora_B.bias", 0)
            assert a.shape[0] == b.shape[1], name
            lora[path] = scale_of(config, path, a.shape[0]), a, b, bias
        elif name.endswith(".lora_embedding_A"):
            path = name.removeprefix(PREFIX).removesuffix(".lora_embedding_A")
            b = tensors[f"{PREFIX}{path}.lora_embedding_B"]
            lora[path] = scale_of(config, path, a.shape[0]), a, b, 0
        elif not name.endswith(
            (".lora_B.weight", ".lora_B.bias", ".lora_embedding_B", ".base_layer.weight")
        ):
            raise Unsupported(name)
    return lora


def frequencies(config, head_dim):
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = rope.get("rope_theta") or config.get("rope_theta") or 10000.0
    kind = rope.get("rope_type") or rope.get("type") or "default"
    f = theta ** -(np.arange(0, head_dim, 2) / head_dim)
    if kind == "linear":
        return f / rope["factor"]
    if kind == "llama3":
        turns = rope["original_max_position_embeddings"] * f / (2 * math.pi)  # of that context
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        kept = np.clip((turns - low) / (high - low), 0, 1)
        return f * (kept + (1 - kept) / rope["factor"])
    assert kind == "default", kind
    return f


def window_of(config):
    """Tokens that each token sees, itself included; None for all."""
    window = config.get("sliding_window")
    if "Mistral" in config["architectures"][0]:
        return window
    types = config.get("layer_types")
    if types is None and config.get("use_sliding_window"):
        sliding = config["max_window_layers"] == 0
        return window if sliding else None
    return window if types and set(types) == {"sliding_attention"} else None


def rms_norm(x, weight, epsilon):
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + epsilon) * weight


class Reference:
    def __init__(self, model, adapter=None):
        self.config, self.weights = load_model(model)
        self.lora = load_adapter(adapter) if adapter else {}
        if adapter:
            self.check_copies(load(adapter / "adapter_model.safetensors"))
        c = self.config
        self.heads = c["num_attention_heads"]
        self.kv_heads = c.get("num_key_value_heads") or self.heads
        self.head_dim = c.get("head_dim") or c["hidden_size"] // self.heads
        self.epsilon = c["rms_norm_eps"]

    def check_copies(self, tensors):
        """PEFT computes with them in place of the base's."""
        for name, copy in tensors.items():
            if name.endswith(".base_layer.weight"):
                path = name.removeprefix(PREFIX).replace(".base_layer.", ".")
                tied = self.config.get("tie_word_embeddings") and path == "lm_head.weight"
                ours = self.weights["model.embed_tokens.weight" if tied else path]
                assert np.array_equal(copy, ours), name

    def linear(self, path, x):
        y = x @ self.weights[path + ".weight"].T
        if path + ".bias" in self.weights:
            y = y + self.weights[path + ".bias"]
        return y + self.added(path, x)

    def added(self, path, x):
        """What LoRA adds to the linear module of this path."""
        if path not in self.lora:
            return 0
        scale, a, b, bias = self.lora[path]
        return scale * (x @ a.T @ b.T + bias)

    def heads_of(self, path, x, norm):
        """[heads, tokens, head_dim]"""
        y = self.linear(f"{path}_proj", x)
        y = y.reshape(len(x), -1, self.head_dim).transpose(1, 0, 2)
        weight = self.weights.get(f"{path}_norm.weight") if norm else None
        return y if weight is None else rms_norm(y, weight, self.epsilon)

    def rotate(self, x):
        angles = np.outer(np.arange(x.shape[1]), frequencies(self.config, self.head_dim))
        a, b = np.split(x, 2, axis=-1)
        c, s = np.cos(angles), np.sin(angles)
        return np.concatenate([a * c - b * s, b * c + a * s], axis=-1)

    def attention(self, path, x):
        q = self.rotate(self.heads_of(f"{path}.q", x, norm=True))
        k = self.rotate(self.heads_of(f"{path}.k", x, norm=True))
        v = self.heads_of(f"{path}.v", x, norm=False)
        group = self.heads // self.kv_heads
        k, v = np.repeat(k, group, axis=0), np.repeat(v, group, axis=0)
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(self.head_dim)
        distance = np.subtract.outer(np.arange(len(x)), np.arange(len(x)))
        seen = (distance >= 0) & (distance < (window_of(self.config) or len(x)))
        scores = np.where(seen, scores, -np.inf)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        out = scores / scores.sum(axis=-1, keepdims=True) @ v
        return self.linear(f"{path}.o_proj", out.transpose(1, 0, 2).reshape(len(x), -1))

    def mlp(self, path, x):
        gate = self.linear(f"{path}.gate_proj", x)
        return self.linear(
            f"{path}.down_proj", gate / (1 + np.exp(-gate)) * self.linear(f"{path}.up_proj", x)
        )

    def norm(self, path, x):
        return rms_norm(x, self.weights[path + ".weight"], self.epsilon)

    def logits(self, tokens):
        """Of each position: [tokens, vocab]."""
        x = self.weights["model.embed_tokens.weight"][tokens]
        if "model.embed_tokens" in self.lora:
            scale, a, b, _ = self.lora["model.embed_tokens"]
            x = x + scale * (a[:, tokens].T @ b.T)
        for i in range(self.config["num_hidden_layers"]):
            layer = f"model.layers.{i}"
            normed = self.norm(f"{layer}.input_layernorm", x)
            x = x + self.attention(f"{layer}.self_attn", normed)
            normed = self.norm(f"{layer}.post_attention_layernorm", x)
            x = x + self.mlp(f"{layer}.mlp", normed)
        tied = self.config.get("tie_word_embeddings")
        head = "model.embed_tokens" if tied else "lm_head"
        x = self.norm("model.norm", x)
        return x @ self.weights[f"{head}.weight"].T + self.added("lm_head", x)


def check_prompt(reference, prompt, name):
    """The last logits of the prompt, and the greedy tokens: given those before, each is the
    best."""
    tokens, greedy = prompt["tokens"], prompt["greedy"]
    theirs = np.frombuffer(base64.b64decode(prompt["logits"]), "<f4")
    ours = reference.logits(tokens + greedy[:-1])[len(tokens) - 1 :]
    difference = np.abs(ours[0] - theirs).max() / np.abs(theirs).max()
    assert difference <= TOLERANCE, f"{name}: logits differ by {difference}"
    assert ours.argmax(axis=1).tolist() == greedy, f"{name}: other greedy tokens"
    return difference


def check(folder):
    """Holds a golden.json to the reference."""
    for case in json.loads((folder / "golden.json").read_text())["cases"]:
        name = f"{folder.name}/{case['adapter'] or 'base'}"
        adapter = folder / "adapters" / case["adapter"] if case["adapter"] else None
        try:
            reference = Reference(folder / "model", adapter)
        except Unsupported as why:
            print(f"{name}: not checked, {why} is not in this reference")
            continue
        worst = max(check_prompt(reference, prompt, name) for prompt in case["prompts"])
        print(f"{name}: within {worst:.1e} of the float64 reference")


def main():
    folders = [Path(p) for p in sys.argv[1:]]
    for folder in folders or sorted(Path(__file__).resolve().parent.glob("tiny-*")):
        check(folder)


if __name__ == "__main__":
    main()
