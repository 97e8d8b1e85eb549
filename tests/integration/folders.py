"""Model and adapter folders for the stories, made on the fly.

The model is tests/golden/tiny-llama (three layers, random weights): its answers make no sense, but
depend on every weight, so an answer of the wrong adapter, or of the right one at the wrong place,
is another answer.
"""

import ctypes
import json
import shutil
from pathlib import Path

import numpy
from safetensors.numpy import save_file

import device

TINY = Path(__file__).resolve().parents[1] / "golden" / "tiny-llama"

# tests/golden/tiny-llama/model/config.json
LAYERS = 3
HIDDEN, QUERY, KEY_VALUE, INTERMEDIATE = 96, 256, 128, 168
MODULES = {  # name: (part of the layer, inputs, outputs)
    "q_proj": ("self_attn", HIDDEN, QUERY),
    "k_proj": ("self_attn", HIDDEN, KEY_VALUE),
    "v_proj": ("self_attn", HIDDEN, KEY_VALUE),
    "o_proj": ("self_attn", QUERY, HIDDEN),
    "gate_proj": ("mlp", HIDDEN, INTERMEDIATE),
    "up_proj": ("mlp", HIDDEN, INTERMEDIATE),
    "down_proj": ("mlp", INTERMEDIATE, HIDDEN),
}

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # fcntl.h, linux/fs.h

# Of the stories' pools: a page holds 16 tokens, two elements a KV head and dimension, over all layers.
PAGE_TOKENS = 16
PAGE_ELEMENTS = PAGE_TOKENS * 2 * KEY_VALUE
PAGE_BYTES = PAGE_ELEMENTS * device.ELEMENT_BYTES * LAYERS


def make_model(folder, positions):
    """A copy of the tiny model whose context has `positions` tokens."""
    shutil.copytree(TINY / "model", folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["max_position_embeddings"] = positions
    path.write_text(json.dumps(config))
    return folder


def make_adapter(folder, seed, rank, modules=("q_proj", "v_proj")):
    """A PEFT folder with a random LoRA, large enough to change the answers."""
    random = numpy.random.default_rng(seed)
    tensors = {}
    for layer in range(LAYERS):
        for name in modules:
            part, inputs, outputs = MODULES[name]
            stem = f"base_model.model.model.layers.{layer}.{part}.{name}"
            a = random.normal(0, 0.3, (rank, inputs))
            b = random.normal(0, 0.3, (outputs, rank))
            tensors[f"{stem}.lora_A.weight"] = a.astype(numpy.float32)
            tensors[f"{stem}.lora_B.weight"] = b.astype(numpy.float32)
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": "tiny",
        "bias": "none",
        "fan_in_fan_out": False,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "r": rank,
        "target_modules": list(modules),
        "task_type": "CAUSAL_LM",
    }
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def exchange(one, other):
    """Each takes the other's name, in one step."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(AT_FDCWD, bytes(one), AT_FDCWD, bytes(other), RENAME_EXCHANGE) != 0:
        raise OSError(ctypes.get_errno(), "renameat2", str(one), None, str(other))


def place_adapter(root, adapter_id, **how):
    """Makes an adapter beside the root and renames it into it: the way that adapters are
    registered. One of the same id is replaced in the same step, so that the id always names an
    adapter."""
    beside = root.parent / f".{adapter_id}.new"
    make_adapter(beside, **how)
    target = root / adapter_id
    if target.exists():
        exchange(beside, target)
        shutil.rmtree(beside)
    else:
        beside.rename(target)
    return target
