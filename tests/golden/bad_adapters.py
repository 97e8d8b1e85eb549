"""Adapters that must be refused, one folder each, and bad.json: the error that each must give and
the words that its message must hold.

Written byte by byte, without safetensors' own checks. All are for the shapes of tiny-llama."""

import json
import shutil
import struct

HIDDEN, Q_OUT, KV_OUT, INTERMEDIATE, LAYERS = 96, 256, 128, 168, 3
Q = "base_model.model.model.layers.0.self_attn.q_proj"
ONE = struct.pack("<f", 1.0)

CONFIG = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 4,
    "target_modules": ["q_proj"],
    "bias": "none",
}


def tensor(name, shape, dtype="F32", value=ONE):
    count = 1
    for size in shape:
        count *= size
    return name, dtype, shape, value * count


def pair(module=Q, rank=2, columns=HIDDEN, rows=Q_OUT):
    return [
        tensor(f"{module}.lora_A.weight", [rank, columns]),
        tensor(f"{module}.lora_B.weight", [rows, rank]),
    ]


def header_and_data(tensors):
    header, data = {}, b""
    for name, dtype, shape, raw in tensors:
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        data += raw
    return header, data


def pack(header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def weights(tensors):
    return pack(*header_and_data(tensors))


def changed(change):
    """The good file with its header changed by `change`, which may return new data."""
    header, data = header_and_data(pair())
    return pack(header, change(header, data) or data)


def set_entry(half, key, value):
    def change(header, _):
        header[f"{Q}.lora_{half}.weight"][key] = value

    return changed(change)


GOOD = weights(pair())
A, B = f"{Q}.lora_A.weight", f"{Q}.lora_B.weight"
FILE = "adapter_model.safetensors"


def poisoned(half, value):
    tensors = pair()
    name, dtype, shape, raw = tensors[half]
    tensors[half] = (name, dtype, shape, raw[:-4] + value)
    return weights(tensors)


def twice():
    header, data = header_and_data(pair())
    entry = json.dumps(header[A])
    text = json.dumps(header)[:-1] + f', "{A}": {entry}}}'
    return pack(text.encode(), data)


def damaged():
    """Files that lie or are cut: bad_adapter."""
    yield "cut-data", GOOD[:-5], ["data_offsets"]
    yield "cut-header", GOOD[:60], ["header", "bytes"]
    yield "cut-length", GOOD[:5], [FILE, "shorter"]
    yield "no-bytes", b"", [FILE, "shorter"]
    yield "header-length", struct.pack("<Q", 1 << 62) + GOOD[8:], ["header", "bytes"]
    yield "header-no-json", pack(b"{not json", b""), [FILE, "line 1"]
    yield "header-list", pack(b"[]", b""), [FILE, "not a JSON object"]
    yield "header-bad-utf8", pack(b'{"\xff\xfe": 1}', b""), [FILE, "line 1"]
    yield "trailing-bytes", GOOD + b"more", ["after the last tensor"]
    yield "duplicate-name", twice(), ["duplicate"]
    yield "offsets-outside", set_entry("B", "data_offsets", [768, 1 << 40]), [B, "data_offsets"]
    yield "offsets-negative", set_entry("A", "data_offsets", [-8, 760]), [A, "data_offsets"]
    yield "offsets-backwards", set_entry("A", "data_offsets", [768, 0]), [A, "data_offsets"]
    yield "offsets-overlap", set_entry("B", "data_offsets", [0, 2048]), [B, "overlaps"]
    yield "offsets-words", set_entry("A", "data_offsets", ["0", "768"]), [A, "data_offsets"]
    yield "shape-overflow", set_entry("A", "shape", [1 << 62, 1 << 62]), [A, "shape"]
    yield "shape-negative", set_entry("A", "shape", [-2, -96]), [A, "shape"]
    yield "shape-longer", set_entry("A", "shape", [3, 96]), [A, "data_offsets"]
    yield "shape-flat", set_entry("A", "shape", [192]), [A, "matrix"]
    yield "dtype-longer", set_entry("A", "dtype", "F16"), [A, "data_offsets"]
    yield "dtype-unknown", set_entry("A", "dtype", "F12"), [A, "dtype"]
    yield "gap", pack(*gap()), [B, "gap"]
    yield "entry-extra", set_entry("A", "extra", 1), [A, "entry"]
    yield "nan", poisoned(1, struct.pack("<f", float("nan"))), [B, "NaN"]
    yield "infinity", poisoned(0, struct.pack("<f", float("-inf"))), [A, "infinity"]
    yield "no-tensors", weights([]), ["no tensors"]
    yield "half-a-only", weights(pair()[:1]), [A, "lora_B", "missing"]
    yield "half-b-only", weights(pair()[1:]), [B, "lora_A", "missing"]
    yield "half-ranks", weights([pair()[0], pair(rank=3)[1]]), [B, "[256, 3]", "[256, 2]"]
    yield "rank-other", weights(pair(rank=4)), [A, "rank 4", "2"]
    yield "foreign-width", weights(pair(columns=576, rows=576)), [A, "[2, 576]", "[2, 96]"]
    yield "foreign-rows", weights(pair(rows=320)), [B, "[320, 2]", "[256, 2]"]
    yield "foreign-layer", weights(pair(Q.replace("0", "3"))), ["layers.3.", "3 layers"]
    yield "twice-by-name", weights(pair() + [tensor(f"{Q}.lora_A.default.weight", [2, HIDDEN])]), [
        "lora_A.default.weight", "twice"]  # fmt: skip


def lora_biases():
    """lora_bias and the tensors disagree: bad_adapter."""
    bias, on = f"{Q}.lora_B.bias", {"lora_bias": True}
    good = tensor(bias, [Q_OUT])
    yield "lora-bias-unset", {}, [*pair(), good], [bias, "lora_bias is not set"]
    yield "lora-bias-missing", on, pair(), [B, "lora_B.bias is missing"]
    yield "lora-bias-alone", on, [good], [bias, "lora_A and lora_B"]
    yield "lora-bias-short", on, [*pair(), tensor(bias, [HIDDEN])], [bias, "[96]", "[256]"]
    yield "lora-bias-matrix", on, [*pair(), tensor(bias, [1, Q_OUT])], [bias, "vector"]
    nan = struct.pack("<f", float("nan"))
    yield "lora-bias-nan", on, [*pair(), tensor(bias, [Q_OUT], value=nan)], [bias, "NaN"]
    yield "lora-bias-twice", on, [*pair(), good, tensor(bias.replace("bias", "default.bias"), [
        Q_OUT])], ["default.bias", "twice"]  # fmt: skip


def outside_layers():
    """LoRA on embed_tokens and lm_head that is not whole: bad_adapter."""
    embed, head = "base_model.model.model.embed_tokens", "base_model.model.lm_head"
    a, b = f"{embed}.lora_embedding_A", f"{embed}.lora_embedding_B"
    embed_pair = [tensor(a, [2, 320]), tensor(b, [HIDDEN, 2])]
    yield "embedding-half", {}, [*pair(), embed_pair[0]], [a, "lora_B", "missing"]
    yield "embedding-vocab", {}, [tensor(a, [2, 321]), embed_pair[1]], [a, "[2, 321]", "[2, 320]"]
    yield "embedding-rank", {}, [tensor(a, [4, 320]), tensor(b, [HIDDEN, 4])], [a, "rank 4", "2"]
    yield "head-half", {}, pair(head, rows=320)[1:], [head, "lora_A", "missing"]
    yield "head-vocab", {}, pair(head, rows=336), [head, "[336, 2]", "[320, 2]"]
    yield "head-no-bias", {"lora_bias": True}, pair(head, rows=320), [head, "lora_B.bias"]


def untargeted():
    """Tensors that PEFT would drop without a word, as the config does not name them."""
    head, v = pair("base_model.model.lm_head", rows=320), pair(Q.replace("q_", "v_"), rows=KV_OUT)
    later, name = pair(Q.replace("0", "1")), "lm_head.lora_A"
    yield "untargeted", {}, [*pair(), *v], ["v_proj.lora_A", "target_modules"]
    yield "untargeted-head", {"target_modules": "all-linear"}, [*pair(), *head], [name, "leaves"]
    yield "untargeted-end", {"target_modules": ["proj", "x.q_proj"]}, pair(), [A, "leaves"]
    yield "excluded-module", {"exclude_modules": ["self_attn.q_proj"]}, pair(), [A, "exclude_modules"]
    yield "layer-left-out", {"layers_to_transform": [0, 2]}, [*pair(), *later], ["layers.1."]
    yield "layer-other", {"layers_to_transform": 2}, pair(), [A, "layers_to_transform"]


def gap():
    header, data = header_and_data(pair())
    header[B]["data_offsets"] = [offset + 4 for offset in header[B]["data_offsets"]]
    return header, data + b"\0\0\0\0"


def unsupported_tensors():
    embed, head = "base_model.model.model.embed_tokens", "base_model.model.lm_head"
    extra = {
        "dora-tensor": (f"{Q}.lora_magnitude_vector", [Q_OUT]),
        "embedding-bias": (f"{embed}.lora_embedding_B.bias", [HIDDEN]),
        "embedding-linear": (f"{embed}.lora_A.weight", [2, 320]),
        "head-embedding": (f"{head}.lora_embedding_A", [2, HIDDEN]),
        "tokens-delta": (f"{embed}.token_adapter.trainable_tokens_delta", [2, HIDDEN]),
        "head-saved": (f"{head}.modules_to_save.weight", [320, HIDDEN]),
        "module-copy": (f"{Q}.base_layer.weight", [Q_OUT, 1]),
        "saved-norm": ("base_model.model.model.norm.weight", [HIDDEN]),
        "base-bias": (f"{Q}.bias", [Q_OUT]),
        "other-module": ("base_model.model.model.layers.0.mlp.experts.0.w1.lora_A.weight", [2, 96]),
        "wrong-block": ("base_model.model.model.layers.0.mlp.q_proj.lora_A.weight", [2, HIDDEN]),
        "other-prefix": ("model.layers.0.self_attn.q_proj.lora_A.weight", [2, HIDDEN]),
        "layer-zeros": (Q.replace("0", "00") + ".lora_A.weight", [2, HIDDEN]),
        "other-adapter-name": (f"{Q}.lora_A.other.weight", [2, HIDDEN]),
    }
    for name, (extra_name, shape) in extra.items():
        yield name, weights([*pair(), tensor(extra_name, shape)]), [extra_name]
    for name, copy, rows, word in (
        ("embedding-copy", f"{embed}.base_layer.weight", 320, "differs"),
        ("head-copy", f"{head}.weight", 320, "differs"),
        ("embedding-resized", f"{embed}.weight", 321, "[320, 96]"),
        ("head-resized", f"{head}.base_layer.weight", 321, "[320, 96]"),
    ):
        half = tensor(copy, [rows, HIDDEN], "BF16", b"\x80\x3f")
        yield name, weights([*pair(), half]), [copy, word]
    yield "bias-of-a", weights([*pair(), tensor(f"{Q}.lora_A.bias", [2])]), ["lora_A.bias"]
    yield "dtype-int8", weights([tensor(A, [2, HIDDEN], "I8", b"\1"), pair()[1]]), [A, "I8"]
    yield "dtype-f64", weights([tensor(A, [2, HIDDEN], "F64", ONE * 2), pair()[1]]), [A, "F64"]


def configs():
    """Fields with a good weight file: error, field → value, words."""
    bad, no = "bad_adapter", "unsupported_adapter"
    yield "r-zero", bad, {"r": 0}, ["r is 0"]
    yield "r-word", bad, {"r": "two"}, ["r must be an integer"]
    yield "alpha-word", bad, {"lora_alpha": []}, ["lora_alpha"]
    yield "no-peft-type", bad, {"peft_type": None}, ["peft_type is missing"]
    yield "rank-pattern-list", bad, {"rank_pattern": [1]}, ["rank_pattern"]
    yield "rank-pattern-zero", bad, {"rank_pattern": {"q_proj": 0}}, ["rank_pattern", "q_proj"]
    yield "rank-pattern-other", bad, {"rank_pattern": {"q_proj": 5}}, ["rank 2", "5"]
    yield "peft-type", no, {"peft_type": "IA3"}, ["peft_type"]
    yield "bias-all", no, {"bias": "all"}, ["bias"]
    yield "lookahead", no, {"rank_pattern": {"(?=q)q_proj": 2}}, ["rank_pattern", "(?=q)q_proj"]
    yield "pattern-escape", no, {"alpha_pattern": {r"\w+": 2}}, ["alpha_pattern"]
    yield "pattern-unbalanced", no, {"rank_pattern": {"q_proj)|(": 2}}, ["rank_pattern"]
    yield "init-pissa", no, {"init_lora_weights": "pissa_niter_4"}, ["init_lora_weights"]
    for field, value in {
        "use_dora": True,
        "modules_to_save": ["lm_head"],
        "trainable_token_indices": [1, 2],
        "target_parameters": ["mlp.experts"],
        "layer_replication": [[0, 2], [1, 3]],
        "alora_invocation_tokens": [1],
        "use_qalora": True,
        "use_bdlora": {"nblocks": 2},
        "kasa_config": {"beta": 1e-4},
        "monteclora_config": {"num_samples": 8},
        "arrow_config": {"top_k": 3},
        "ensure_weight_tying": True,
        "fan_in_fan_out": True,
        "some_later_field": "on",
    }.items():
        yield field.replace("_", "-"), no, {field: value}, [field]


def make(tiny):
    out = tiny / "bad"
    shutil.rmtree(out, ignore_errors=True)
    manifest = []

    def add(name, error, words, files):
        folder = out / name
        folder.mkdir(parents=True)
        for file, content in files.items():
            (folder / file).write_bytes(content)
        manifest.append({"adapter": name, "error": error, "words": words})

    def add_weights(name, error, content, words, config=CONFIG):
        add(name, error, words, {"adapter_config.json": text(config), FILE: content})

    def text(config):
        return json.dumps(config).encode()

    for name, content, words in damaged():
        add_weights(name, "bad_adapter", content, words)
    for name, content, words in unsupported_tensors():
        add_weights(name, "unsupported_adapter", content, words)
    for name, fields, tensors, words in (*lora_biases(), *outside_layers(), *untargeted()):
        add_weights(name, "bad_adapter", weights(tensors), words, CONFIG | fields)
    for name, error, fields, words in configs():
        add_weights(name, error, GOOD, words, CONFIG | fields)
    big = weights([
        tensor(A, [513, HIDDEN], "BF16", b"\0\0"), tensor(B, [Q_OUT, 513], "BF16", b"\0\0")
    ])  # fmt: skip
    add_weights("rank-513", "unsupported_adapter", big, [A, "513", "512"], CONFIG | {"r": 513})
    config = text(CONFIG)
    add("config-no-json", "bad_adapter", ["adapter_config.json", "line 1"],
        {"adapter_config.json": b'{"r": 2,', FILE: GOOD})  # fmt: skip
    add("config-list", "bad_adapter", ["adapter_config.json"],
        {"adapter_config.json": b"[1]", FILE: GOOD})  # fmt: skip
    add("config-twice", "bad_adapter", ["adapter_config.json", "duplicate"],
        {"adapter_config.json": b'{"r": 4, ' + config[1:], FILE: GOOD})  # fmt: skip
    add("no-config", "bad_adapter", ["adapter_config.json is missing"], {FILE: GOOD})
    add("no-weights", "bad_adapter", [f"{FILE} is missing"], {"adapter_config.json": config})
    add("pickle", "unsupported_adapter", ["adapter_model.bin", "pickle"],
        {"adapter_config.json": config, "adapter_model.bin": b"PK\3\4"})  # fmt: skip
    (tiny / "bad.json").write_text(
        "[\n" + ",\n".join(" " + json.dumps(m) for m in manifest) + "\n]\n"
    )
    print(f"{len(manifest)} bad adapters")
