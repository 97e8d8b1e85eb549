#!/usr/bin/env python3
"""Writes a Hugging Face model folder from a GGUF file of the Llama architecture.

    gguf_to_hf.py MODEL.gguf OUT_DIR

OUT_DIR gets config.json, generation_config.json, model.safetensors, tokenizer.json and
tokenizer_config.json; it appears by rename, complete or not at all, and must not exist before.
Everything is read from the GGUF's metadata and tensors. What this converter does not know
(another architecture, another tokenizer, scaled rope, an unexpected tensor) is refused by name.

Weights are dequantised to f32 and rounded to bf16. The rounding moves a value by at most 2^-9 of
its size, far less than the 4-bit steps it was quantised with, and halves the file; whoever
compares against this folder reads the rounded values too, so nothing is lost by it.

Needs numpy and gguf.
"""

import argparse
import json
import os
import shutil
import struct
import sys
from pathlib import Path

import gguf
import numpy as np

# Token types of GGUF (llama.cpp's enum); only these two occur in a byte-level BPE vocabulary.
TOKEN_NORMAL = 1
TOKEN_CONTROL = 3

# GGUF's name of a layer's tensor -> Hugging Face's.
LAYER_TENSORS = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}

OUTER_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


class ConvertError(Exception):
    """The GGUF file cannot be converted faithfully; the text says what is in the way."""


def field(reader, key, default=None):
    """The value of metadata `key`; without a default a missing key is an error."""
    found = reader.fields.get(key)
    if found is None:
        if default is None:
            raise ConvertError(f"metadata key {key} is missing")
        return default
    return found.contents()


def number(value):
    """A f32 from the metadata as the shortest decimal that names it: 1e-05, not 9.99999975e-06."""
    return float(str(np.float32(value)))


def read_config(reader):
    """config.json's content."""
    architecture = field(reader, "general.architecture")
    if architecture != "llama":
        raise ConvertError(f"general.architecture is {architecture}; only llama is known")
    scaling = [key for key in reader.fields if key.startswith("llama.rope.scaling")]
    if scaling:
        raise ConvertError(f"{scaling[0]}: scaled rope is not supported")

    hidden = int(field(reader, "llama.embedding_length"))
    heads = int(field(reader, "llama.attention.head_count"))
    head_dim = int(field(reader, "llama.attention.key_length", hidden // heads))
    rope_dim = int(field(reader, "llama.rope.dimension_count", head_dim))
    if rope_dim != head_dim:
        raise ConvertError(f"llama.rope.dimension_count is {rope_dim}, the heads have {head_dim}")
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": int(field(reader, "tokenizer.ggml.bos_token_id")),
        "eos_token_id": int(field(reader, "tokenizer.ggml.eos_token_id")),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": int(field(reader, "llama.feed_forward_length")),
        "max_position_embeddings": int(field(reader, "llama.context_length")),
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": int(field(reader, "llama.block_count")),
        "num_key_value_heads": int(field(reader, "llama.attention.head_count_kv", heads)),
        "pad_token_id": int(field(reader, "tokenizer.ggml.padding_token_id")),
        "rms_norm_eps": number(field(reader, "llama.attention.layer_norm_rms_epsilon")),
        "rope_scaling": None,
        "rope_theta": number(field(reader, "llama.rope.freq_base", 10000.0)),
        "tie_word_embeddings": not any(t.name == "output.weight" for t in reader.tensors),
        "torch_dtype": "bfloat16",
        "vocab_size": int(field(reader, "llama.vocab_size")),
    }


def expected_shapes(config):
    """GGUF tensor name -> [out, in] shape (or [n] for a norm) for every tensor there must be."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    q_rows = config["num_attention_heads"] * config["head_dim"]
    kv_rows = config["num_key_value_heads"] * config["head_dim"]
    shapes = {
        "token_embd.weight": (config["vocab_size"], hidden),
        "output_norm.weight": (hidden,),
    }
    if not config["tie_word_embeddings"]:
        shapes["output.weight"] = (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        shapes |= {
            f"blk.{layer}.attn_norm.weight": (hidden,),
            f"blk.{layer}.attn_q.weight": (q_rows, hidden),
            f"blk.{layer}.attn_k.weight": (kv_rows, hidden),
            f"blk.{layer}.attn_v.weight": (kv_rows, hidden),
            f"blk.{layer}.attn_output.weight": (hidden, q_rows),
            f"blk.{layer}.ffn_norm.weight": (hidden,),
            f"blk.{layer}.ffn_gate.weight": (inner, hidden),
            f"blk.{layer}.ffn_up.weight": (inner, hidden),
            f"blk.{layer}.ffn_down.weight": (hidden, inner),
        }
    return shapes


def hf_name(name):
    """Hugging Face's name of a GGUF tensor."""
    if name in OUTER_TENSORS:
        return OUTER_TENSORS[name]
    _, layer, rest = name.split(".", 2)
    return f"model.layers.{layer}.{LAYER_TENSORS[rest]}"


def unpermute(weight, heads):
    """Undoes GGUF's row order of q and k: llama.cpp rotates neighbouring rows (2i, 2i+1) of a
    head, Hugging Face rows (i, i + head_dim/2), so GGUF stores each head's halves interleaved."""
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def to_bf16(values):
    """f32 -> the bits of bf16, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def read_weights(reader, config):
    """Hugging Face tensor name -> f32 array, all checked by name and shape."""
    shapes = expected_shapes(config)
    weights = {}
    for tensor in reader.tensors:
        if tensor.name not in shapes:
            raise ConvertError(f"tensor {tensor.name} is not expected in a Llama model")
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        if values.shape != shapes[tensor.name]:
            raise ConvertError(
                f"tensor {tensor.name} has shape {values.shape}, not {shapes[tensor.name]}"
            )
        if not np.isfinite(values).all():
            raise ConvertError(f"tensor {tensor.name} has values that are not finite")
        if tensor.name.endswith("attn_q.weight"):
            values = unpermute(values, config["num_attention_heads"])
        elif tensor.name.endswith("attn_k.weight"):
            values = unpermute(values, config["num_key_value_heads"])
        weights[hf_name(tensor.name)] = values
    missing = sorted(shapes.keys() - {tensor.name for tensor in reader.tensors})
    if missing:
        raise ConvertError(f"tensor {missing[0]} is missing ({len(missing)} in all)")
    return weights


def write_weights(path, weights):
    """model.safetensors in bf16: the header's length, the header (JSON, padded to 8), the data."""
    names = sorted(weights)
    header = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        begin, end = end, end + 2 * weights[name].size
        header[name] = {
            "dtype": "BF16",
            "shape": list(weights[name].shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for name in names:
            file.write(to_bf16(weights[name]).tobytes())


def read_tokenizer(reader):
    """tokenizer.json and tokenizer_config.json of a byte-level BPE vocabulary."""
    model = field(reader, "tokenizer.ggml.model")
    flavour = field(reader, "tokenizer.ggml.pre")
    if (model, flavour) != ("gpt2", "smollm"):
        raise ConvertError(f"tokenizer {model}/{flavour}: only gpt2/smollm is known")
    if field(reader, "tokenizer.ggml.add_bos_token", False):
        raise ConvertError("tokenizer.ggml.add_bos_token: a leading BOS is not supported")

    tokens = field(reader, "tokenizer.ggml.tokens")
    types = field(reader, "tokenizer.ggml.token_type")
    if len(tokens) != len(types) or len(tokens) != len(set(tokens)):
        raise ConvertError("tokenizer.ggml.tokens: repeated, or not as many as token types")
    strange = set(types) - {TOKEN_NORMAL, TOKEN_CONTROL}
    if strange:
        raise ConvertError(f"tokenizer.ggml.token_type: type {min(strange)} is not known")
    merges = [merge.split(" ") for merge in field(reader, "tokenizer.ggml.merges")]
    if any(len(merge) != 2 for merge in merges):
        raise ConvertError("tokenizer.ggml.merges: an entry is not a pair")

    specials = [
        {
            "id": index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for index, (token, kind) in enumerate(zip(tokens, types))
        if kind == TOKEN_CONTROL
    ]
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": specials,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": merges,
        },
    }

    def named(key):
        return tokens[int(field(reader, f"tokenizer.ggml.{key}_token_id"))]

    # The class that takes tokenizer.json as it is. Naming GPT2Tokenizer would let transformers
    # rebuild the pipeline from vocabulary and merges and lose the splitting of digits.
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "add_prefix_space": False,
        "additional_special_tokens": [named("bos"), named("eos")],
        "bos_token": named("bos"),
        "eos_token": named("eos"),
        "pad_token": named("padding"),
        "unk_token": named("unknown"),
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(field(reader, "llama.context_length")),
        "chat_template": field(reader, "tokenizer.chat_template"),
    }
    return tokenizer, settings


def write_json(path, content):
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file, ensure_ascii=False, indent=2)
        file.write("\n")


def convert(source, target):
    """Converts GGUF file `source` into the new folder `target`."""
    reader = gguf.GGUFReader(source)
    config = read_config(reader)
    tokenizer, tokenizer_config = read_tokenizer(reader)
    if len(tokenizer["model"]["vocab"]) != config["vocab_size"]:
        raise ConvertError("tokenizer.ggml.tokens: not as many as llama.vocab_size")
    weights = read_weights(reader, config)

    scratch = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    scratch.mkdir(parents=True)
    try:
        write_json(scratch / "config.json", config)
        ids = ("bos_token_id", "eos_token_id", "pad_token_id")
        write_json(scratch / "generation_config.json", {key: config[key] for key in ids})
        write_json(scratch / "tokenizer.json", tokenizer)
        write_json(scratch / "tokenizer_config.json", tokenizer_config)
        write_weights(scratch / "model.safetensors", weights)
        scratch.rename(target)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("gguf", type=Path, metavar="MODEL.gguf")
    parser.add_argument("out", type=Path, metavar="OUT_DIR", help="a folder that does not exist")
    args = parser.parse_args()
    if args.out.exists():
        print(f"gguf_to_hf: {args.out} exists already", file=sys.stderr)
        return 2
    try:
        convert(args.gguf, args.out)
    except (ConvertError, OSError, ValueError) as error:
        print(f"gguf_to_hf: {args.gguf}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
