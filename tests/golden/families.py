"""The tiny models of generate.py that stand for a family each: what their config.json has that the
others have not, and a few adapters of different kinds for each.

`config` is what transformers gets, `old` changes the config.json that it writes into the form in
which the checkpoints of that family lie on disk, `differs` names fields without which the logits
must change (else the golden would prove nothing about them). kv_heads × head_dim is 64: pages of
16 tokens are not smaller.
"""

import json
from dataclasses import dataclass, field

import torch
from peft import LoraConfig
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
VOCAB = 320
SMALL = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "eos_token_id": 2,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "bos_token_id": None,
}  # fmt: skip
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def small(config, **changes):
    return config(**(SMALL | changes))


def llama3(factor, theta):
    """Bands such that of 16 frequencies some are kept, some blended, some divided."""
    return {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
            "rope_theta": theta}  # fmt: skip


def lora(dtype, modules, **options):
    return dtype, LoraConfig(task_type="CAUSAL_LM", target_modules=modules, **options)


def qk():
    return lora(F32, ["q_proj", "k_proj"], r=3, lora_alpha=6)


def every():
    return lora(BF16, ALL, r=8, lora_alpha=16)


def rslora_pattern():
    return lora(F16, ALL, r=6, lora_alpha=12, use_rslora=True,
                rank_pattern={"layers.1.*attn.[kv]_proj": 10, "down_proj": 2},
                alpha_pattern={"o_proj": 5, "mlp.up_proj": 3.5})  # fmt: skip


def all_linear():
    return lora(BF16, "all-linear", r=2, lora_alpha=2)


def by_regex():
    return lora(F32, r".*\.1\.(self_attn\.v|mlp\.gate)_proj", r=5, lora_alpha=10)


def partial():
    """One layer of two, a module less than listed, and .default. left in the names."""
    return lora(F16, ["v_proj", "up_proj", "down_proj"], r=4, lora_alpha=12,
                layers_to_transform=[1], exclude_modules=["up_proj"])  # fmt: skip


def lora_bias():
    """On q and k: the bias comes before Qwen3's norms."""
    return lora(BF16, ["q_proj", "k_proj", "up_proj"], r=2, lora_alpha=3, lora_bias=True)


def embedding_head():
    return lora(BF16, ["embed_tokens", "lm_head", "k_proj"], r=2, lora_alpha=4)


@dataclass
class Family:
    config: object
    dtype: torch.dtype
    adapters: dict
    old: dict = field(default_factory=dict)
    generation: dict = field(default_factory=lambda: {"eos_token_id": 2})
    differs: dict = field(default_factory=dict)
    lengths: tuple = (1, 7, 40)
    extra: dict = field(default_factory=dict)  # tensors that old savers left in the weights


def old_rope(**scaling):
    """transformers 4: rope_theta beside rope_scaling."""
    return {"rope_parameters": None, "rope_scaling": scaling or None}


DEFAULT_ROPE = {"rope_type": "default"}

FAMILIES = {
    "tiny-llama2": Family(
        small(LlamaConfig, num_attention_heads=2, num_key_value_heads=2, head_dim=None,
              rms_norm_eps=1e-6),
        F16, {"qk": qk(), "rslora-pattern": rslora_pattern()},
        old={"rope_parameters": None, "head_dim": None, "num_key_value_heads": None,
             "pretraining_tp": 1, "rope_scaling": None},
        generation={"eos_token_id": 2, "temperature": 0.6, "top_p": 0.9, "do_sample": True},
        extra={f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(16)
               for i in range(2)},
    ),
    "tiny-llama3": Family(
        small(LlamaConfig, vocab_size=VOCAB + 8, rope_parameters=llama3(8.0, 500000.0)),
        BF16, {"every": every(), "by-regex": by_regex()},
        generation={"eos_token_id": [2, 0, 1], "temperature": 0.6, "top_p": 0.9,
                    "do_sample": True},
        differs={"rope_parameters": DEFAULT_ROPE | {"rope_theta": 500000.0}},
        lengths=(1, 40, 190),
    ),
    "tiny-llama32": Family(
        small(LlamaConfig, tie_word_embeddings=True, rope_parameters=llama3(32.0, 10000.0)),
        BF16, {"all-linear": all_linear()},
        old={"rope_parameters": None, "rope_theta": 10000.0,
             "rope_scaling": llama3(32.0, None) | {"rope_theta": None}},
        differs={"rope_parameters": DEFAULT_ROPE | {"rope_theta": 10000.0}},
        lengths=(3, 40, 150),
    ),
    "tiny-linear": Family(
        small(LlamaConfig, num_hidden_layers=2, rope_parameters={
            "rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}),
        BF16, {"every": every(), "partial": partial()},
        old={"rope_parameters": None, "rope_theta": 10000.0,
             "rope_scaling": {"type": "linear", "factor": 4.0}},
        differs={"rope_parameters": DEFAULT_ROPE | {"rope_theta": 10000.0}},
    ),
    "tiny-mistral": Family(
        small(MistralConfig, num_attention_heads=2, num_key_value_heads=2, head_dim=None,
              sliding_window=24),
        BF16, {"every": every(), "by-regex": by_regex(), "rslora-pattern": rslora_pattern(),
               "lora-bias": lora_bias(), "embedding-head": embedding_head()},
        old={"rope_parameters": None, "rope_theta": 10000.0, "head_dim": None},
        differs={"sliding_window": None},
        lengths=(1, 23, 24, 25, 70),
    ),
    "tiny-nemo": Family(
        small(MistralConfig, hidden_size=80, sliding_window=None, rope_parameters={
            "rope_type": "default", "rope_theta": 1000000.0}),
        BF16, {"all-linear": all_linear(), "partial": partial()},
        old={"rope_parameters": None, "rope_theta": 1000000.0, "sliding_window": None},
        differs={"sliding_window": 16},
    ),
    "tiny-qwen25": Family(
        small(Qwen2Config, vocab_size=VOCAB + 24, tie_word_embeddings=True,
              use_sliding_window=True, sliding_window=20, max_window_layers=0,
              rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}),
        BF16, {"by-regex": by_regex(), "rslora-pattern": rslora_pattern(),
               "all-linear": all_linear(), "partial": partial(), "lora-bias": lora_bias()},
        old={"rope_parameters": None, "rope_theta": 1000000.0, "layer_types": None},
        generation={"eos_token_id": [2, 0], "temperature": 0.7, "top_p": 0.8, "top_k": 20,
                    "do_sample": True, "repetition_penalty": 1.0},
        differs={"sliding_window": None, "layer_types": ["full_attention"] * 2},
        lengths=(1, 20, 60),
    ),
    "tiny-qwen3": Family(
        small(Qwen3Config, tie_word_embeddings=True, rms_norm_eps=1e-6, rope_parameters={
            "rope_type": "default", "rope_theta": 1000000.0}),
        BF16, {"every": every(), "qk": qk(), "rslora-pattern": rslora_pattern(),
               "lora-bias": lora_bias(), "embedding-head": embedding_head()},
        old={"rope_parameters": None, "rope_theta": 1000000.0, "layer_types": None,
             "rope_scaling": None, "use_sliding_window": False, "sliding_window": None,
             "max_window_layers": 2, "attention_bias": False},
        generation={"eos_token_id": [2, 0], "temperature": 0.6, "top_p": 0.95, "top_k": 20,
                    "do_sample": True},
    ),
    "tiny-qwen3-untied": Family(
        small(Qwen3Config, vocab_size=VOCAB + 16, hidden_size=72, num_key_value_heads=1,
              head_dim=64, rms_norm_eps=1e-6, rope_parameters={
                  "rope_type": "default", "rope_theta": 1000000.0}),
        F16, {"all-linear": all_linear(), "by-regex": by_regex(), "partial": partial()},
    ),
}  # fmt: skip


def rewrite_config(path, old):
    """Null takes a field out, but for those that say something by being null."""
    config = json.loads(path.read_text()) | old
    if "dtype" in config and old:
        config["torch_dtype"] = config.pop("dtype")
    for key, value in list(config.items()):
        if value is None and key not in ("rope_scaling", "sliding_window"):
            del config[key]
        elif isinstance(value, dict):
            config[key] = {k: v for k, v in value.items() if v is not None}
    path.write_text(json.dumps(config, indent=1) + "\n")
