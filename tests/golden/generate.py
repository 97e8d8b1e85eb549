#!/usr/bin/env python3
"""Makes the goldens: what transformers and peft say in float32, for the C code to be held to.

    generate.py tiny                               tests/golden/tiny-{llama,qwen2,mha}/
    generate.py families [NAME...]                 the tests/golden/tiny-*/ of families.py
    generate.py smollm2 [--model DIR] [--adapters DIR]   tests/golden/smollm2/

`tiny` makes three random models, adapters of every supported kind with their logits and greedy
tokens, and a set of bad adapters, each with the error that it must give (bad_adapters.py).
`families` makes a small random model for each family of families.py, with a few adapters each. Both
hold what they make to reference.py.
`smollm2` needs the converted model (tools/setup model) and the trained adapters of demo/adapters.

Weights are random but large, so that attention is sharp and the tokens vary. Prompts are searched
for along whose 64 greedy tokens the best logit leads the second by MARGIN of the largest: then
equal tokens mean something, and rounding does not decide.

Needs requirements.txt; `make test` does not.
"""

import argparse
import base64
import json
import math
import shutil
import sys
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.utils.logging import disable_progress_bar

import bad_adapters
import families
import reference

disable_progress_bar()
HERE = Path(__file__).resolve().parent
GREEDY_TOKENS = 64
MARGIN = 2e-3
DISTINCT_TOKENS = 12  # fewer among the greedy ones would be a loop that proves little
VOCAB = 320  # of the tokenizer: 3 specials, 256 bytes, 61 merges

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
ALL = ATTENTION + MLP

# What the tokenizer's merges are learned from.
TEXT = (
    "The worker reads jobs from a queue, finds the adapter that each of them names, and answers "
    "with the tokens that the model thinks of. When there is nothing to read, it waits. The other "
    "workers do the same, and the queue is the only thing that they share. "
)

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


# ---- running a model ---------------------------------------------------------------------------


@torch.no_grad()
def greedy(model, prompts):
    """Logits of each prompt's last position, the greedy tokens, and the least lead of the best
    logit, relative to the largest. Prompts of one batch have equal lengths."""
    tokens = torch.tensor(prompts)
    past, chosen, leads, first = None, [], [], None
    for _ in range(GREEDY_TOKENS):
        out = model(input_ids=tokens, past_key_values=past, use_cache=True)
        past, logits = out.past_key_values, out.logits[:, -1].float()
        first = logits if first is None else first
        top = logits.topk(2)
        leads.append((top.values[:, 0] - top.values[:, 1]) / logits.abs().max(dim=1).values)
        tokens = top.indices[:, :1]
        chosen.append(tokens)
    return first, torch.cat(chosen, dim=1), torch.stack(leads).min(dim=0).values


def search_prompt(model, length, rng, name):
    """A random prompt whose greedy continuation is far from any tie."""
    for _ in range(60):
        prompts = torch.randint(3, VOCAB, (32, length), generator=rng).tolist()
        _, tokens, margins = greedy(model, prompts)
        for prompt, row, margin in zip(prompts, tokens, margins, strict=True):
            if margin < 1.5 * MARGIN or len(set(row.tolist())) < DISTINCT_TOKENS:
                continue
            logits, alone, margin = greedy(model, [prompt])
            if margin >= MARGIN and alone.tolist() == [row.tolist()]:
                return prompt, logits[0], row.tolist(), margin.item()
    sys.exit(f"{name}: no prompt of {length} tokens with a margin of {MARGIN}; change a seed")


# ---- tiny models -------------------------------------------------------------------------------


def make_tokenizer(folder):
    """A byte-level BPE that reads any text: the answers are noise, their strings are not."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        min_frequency=1,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    assert tokenizer.get_vocab_size() == VOCAB
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "chat_template": CHAT_TEMPLATE,
        "model_max_length": 2048,
    }
    write_json(folder / "tokenizer_config.json", config)


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1) + "\n")


@torch.no_grad()
def randomise(model, seed):
    """Weights that keep activations of order 1, with sharp attention and visible biases."""
    rng = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=rng)
        if "norm" in name:
            p.copy_(1 + 0.2 * noise)
        elif name.endswith(".bias"):
            p.copy_(0.5 * noise)
        elif "embed_tokens" in name:
            p.copy_(0.3 * noise)
        elif "lm_head" in name:
            p.copy_(3 / math.sqrt(p.shape[1]) * noise)
            p[VOCAB:] *= 0.01  # rows that no token has: never chosen
        else:
            gain = 1.6 if "q_proj" in name or "k_proj" in name else 1.2
            p.copy_(gain / math.sqrt(p.shape[1]) * noise)


def save_model(model, folder, dtype, generation, shard_size="1GB"):
    stored = model.to(dtype)
    stored.generation_config = stored.generation_config.from_dict(generation)
    stored.save_pretrained(folder, max_shard_size=shard_size)
    make_tokenizer(folder)
    # float32 from here on, of the values as stored
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )


def tiny_llama(folder):
    """GQA, tied, a head_dim of its own; sizes that leave the last tile of 64 columns half empty."""
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=96, intermediate_size=168, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=64, max_position_embeddings=2048,
        rms_norm_eps=1e-5, tie_word_embeddings=True, bos_token_id=None, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    randomise(model, 1)
    generation = {"eos_token_id": [2, 0], "temperature": 0.7, "top_p": 0.9, "do_sample": True}
    return save_model(model, folder, torch.bfloat16, generation)


def tiny_qwen2(folder):
    """Biases, one KV head of 80, untied with rows beyond the tokenizer, shards, an old config."""
    config = Qwen2Config(
        vocab_size=VOCAB + 16, hidden_size=120, intermediate_size=200, num_hidden_layers=2,
        num_attention_heads=3, num_key_value_heads=1, head_dim=80, max_position_embeddings=2048,
        rms_norm_eps=1e-6, tie_word_embeddings=False, eos_token_id=2,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    randomise(model, 2)
    model = save_model(model, folder, torch.bfloat16, {"eos_token_id": 2}, "250KB")
    path = folder / "config.json"
    old = json.loads(path.read_text())
    old["rope_theta"] = old.pop("rope_parameters")["rope_theta"]
    old.pop("layer_types", None)
    write_json(path, old | {"rope_scaling": None, "use_sliding_window": False,
                            "sliding_window": 4096, "max_window_layers": 28})  # fmt: skip
    return model


def tiny_mha(folder):
    """As many KV heads as heads, head_dim derived, untied, f16; no generation_config.json."""
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=128, intermediate_size=256, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=1024,
        rms_norm_eps=1e-5, tie_word_embeddings=False, bos_token_id=None, eos_token_id=[2, 0],
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    randomise(model, 3)
    model = save_model(model, folder, torch.float16, {})
    (folder / "generation_config.json").unlink()
    path = folder / "config.json"
    config = json.loads(path.read_text())
    write_json(path, {k: v for k, v in config.items() if k not in ("head_dim", "rope_parameters")})
    return model


# ---- adapters ----------------------------------------------------------------------------------


def lora(dtype, modules, **options):
    return dtype, LoraConfig(task_type="CAUSAL_LM", target_modules=modules, **options)


F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16

ADAPTERS = {
    "tiny-llama": {
        "r1": lora(F32, ALL, r=1, lora_alpha=1),
        "r4-qv": lora(BF16, ["q_proj", "v_proj"], r=4, lora_alpha=16),
        "r8-attention": lora(F16, ATTENTION, r=8, lora_alpha=16),
        "r24-mlp": lora(BF16, MLP, r=24, lora_alpha=48),
        "r64": lora(BF16, ALL, r=64, lora_alpha=128),
        "r3-down": lora(F32, ["down_proj"], r=3, lora_alpha=7),
        "rslora": lora(BF16, ALL, r=16, lora_alpha=4, use_rslora=True),
        "rank-pattern": lora(
            F16, ALL, r=6, lora_alpha=12, use_rslora=True,
            rank_pattern={
                "q_proj": 4,
                "layers.1.mlp.up_proj": 12,
                "^model.layers.2.self_attn.k_proj": 40,
                r"layers\.\d+\.mlp\.(down|gate)_proj": 20,
                "proj": 9,  # no module is called just that
            },
        ),
        "alpha-pattern": lora(
            F32, ["q_proj", "o_proj", "up_proj"], r=5, lora_alpha=10,
            rank_pattern={"o_proj": 10},
            alpha_pattern={"layers.1.self_attn.o_proj": 33.5, "up_proj": 2},
        ),
        "one-layer": lora(BF16, ALL, r=12, lora_alpha=24, layers_to_transform=[1]),
        "default-names": lora(F32, ["k_proj", "gate_proj"], r=2, lora_alpha=4),
        "lora-bias": lora(BF16, ALL, r=5, lora_alpha=15, lora_bias=True),
        # the head is the embedding, and each is changed without the other
        "head": lora(BF16, ["lm_head"], r=6, lora_alpha=9),
        "embedding": lora(F16, ["embed_tokens", "v_proj"], r=12, lora_alpha=18, use_rslora=True),
        "embedding-head-default": lora(
            F32, ["embed_tokens", "lm_head", "q_proj"], r=40, lora_alpha=40,
            rank_pattern={"embed_tokens": 7}, alpha_pattern={"lm_head": 60},
        ),
        "regex": lora(
            BF16, r".*\.layers\.[02]\.(self_attn\.(q|v)|mlp\.up)_proj", r=4, lora_alpha=8
        ),
        "excluded": lora(
            BF16, "all-linear", r=4, lora_alpha=8, exclude_modules=["k_proj", "down_proj"]
        ),
        "layers-pattern": lora(
            BF16, ["o_proj", "gate_proj"], r=9, lora_alpha=18, layers_to_transform=[0, 2],
            layers_pattern="layers",
        ),
        "copies": lora(BF16, ["embed_tokens", "lm_head", "k_proj"], r=4, lora_alpha=8),
    },
    "tiny-qwen2": {
        "r1-k": lora(F32, ["k_proj"], r=1, lora_alpha=3),
        "r8": lora(F16, ALL, r=8, lora_alpha=8),
        "r33-vo": lora(BF16, ["v_proj", "o_proj"], r=33, lora_alpha=33),
        "r64-mlp": lora(BF16, MLP, r=64, lora_alpha=64),
        "rslora-pattern": lora(
            BF16, ALL, r=10, lora_alpha=5, use_rslora=True, rank_pattern={"layers.1.*proj": 17}
        ),
        "embedding-head": lora(BF16, ["embed_tokens", "lm_head"], r=8, lora_alpha=8),
        "head-bias": lora(F32, ["lm_head", "up_proj"], r=33, lora_alpha=33, lora_bias=True),
        "copies": lora(BF16, ["lm_head"], r=4, lora_alpha=8),
    },
    "tiny-mha": {
        "r4": lora(BF16, ALL, r=4, lora_alpha=8),
        "r72-q": lora(F16, ["q_proj"], r=72, lora_alpha=72),
        "lora-bias-default": lora(
            F32, ["v_proj", "down_proj"], r=8, lora_alpha=4, lora_bias=True, use_rslora=True
        ),
        # the greatest ranks, which are no multiples of a block's 32
        "r512": lora(
            F16, ["q_proj", "v_proj", "down_proj"], r=512, lora_alpha=64, use_rslora=True,
            rank_pattern={"q_proj": 100, "v_proj": 257},
        ),
    },
}  # fmt: skip


@torch.no_grad()
def make_adapter(base_folder, folder, dtype, config, seed):
    """Random A and B, about half as strong together as the weight that they change. PEFT's default
    is to save copies of the embedding and the head beside LoRA on them; only `copies` have them."""
    base = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    model = get_peft_model(base, config)
    rng = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if "default" in getattr(module, "lora_embedding_A", {}):
            a, b = module.lora_embedding_A["default"], module.lora_embedding_B["default"]
        elif "default" in getattr(module, "lora_A", {}):
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
        else:
            continue
        strength = 0.5 * module.base_layer.weight.std() / module.scaling["default"]
        size = torch.sqrt(strength / math.sqrt(a.shape[0]))
        for p in (a, b):
            p.copy_(size * torch.randn(p.shape, generator=rng))
            p.data = p.data.to(dtype)
        if config.lora_bias:
            bias = module.lora_B["default"].bias
            bias.copy_(0.5 / module.scaling["default"] * torch.randn(bias.shape, generator=rng))
            bias.data = bias.data.to(dtype)
    model.save_pretrained(folder, save_embedding_layers="auto" if folder.name == "copies" else False)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    saved = json.loads(path.read_text())
    saved["base_model_name_or_path"] = base_folder.parent.name
    if isinstance(saved["target_modules"], list):
        saved["target_modules"] = sorted(saved["target_modules"])
    write_json(path, saved)


def leave_adapter_name_in(folder):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    renamed = {}
    for name, tensor in tensors.items():
        head, dot, last = name.rpartition(".")
        embedding = last.startswith("lora_embedding")
        renamed[f"{name}.default" if embedding else f"{head}.default{dot}{last}"] = tensor
    save_file(renamed, path, metadata={"format": "pt"})


def halve_head_copy(folder):
    """As it is where the base was loaded in the bfloat16 that it is stored in."""
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    name = "base_model.model.lm_head.base_layer.weight"
    tensors[name] = tensors[name].to(torch.bfloat16)
    save_file(tensors, path, metadata={"format": "pt"})


def golden_case(model, adapter, lengths, seed):
    rng = torch.Generator().manual_seed(seed)
    prompts = []
    for length in lengths:
        tokens, logits, chosen, margin = search_prompt(model, length, rng, adapter or "base")
        raw = logits.numpy().astype("<f4").tobytes()
        prompts.append({"tokens": tokens, "logits": base64.b64encode(raw).decode(),
                        "greedy": chosen, "margin": round(margin, 5)})  # fmt: skip
    return {"adapter": adapter, "prompts": prompts}


def check_adapter_matters(base, model, case):
    for prompt in case["prompts"]:
        tokens = torch.tensor([prompt["tokens"]])
        with torch.no_grad():
            plain, adapted = base(tokens).logits[0, -1], model(tokens).logits[0, -1]
        change = ((plain - adapted).abs().max() / plain.abs().max()).item()
        assert change > 0.05, f"{case['adapter']}: changes the logits by {change} only"


def make_tiny(name, make_model, seed, new_only):
    out = HERE / name
    folder = out / "model"
    if new_only:
        cases = json.loads((out / "golden.json").read_text())["cases"]
        base = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )
    else:
        shutil.rmtree(out, ignore_errors=True)
        folder.mkdir(parents=True)
        base = make_model(folder)
        cases = [golden_case(base, None, (1, 5, 19, 40), seed)]
    for i, (adapter, (dtype, config)) in enumerate(ADAPTERS[name].items()):
        if adapter in [case["adapter"] for case in cases]:
            continue
        place = out / "adapters" / adapter
        make_adapter(folder, place, dtype, config, seed + i)
        fresh = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )
        model = PeftModel.from_pretrained(fresh, place)
        model.eval()
        cases.append(golden_case(model, adapter, (3 + i, 33 - i), seed + 100 + i))
        check_adapter_matters(base, model, cases[-1])
        if "default" in adapter:
            leave_adapter_name_in(place)
        if adapter == "copies":
            halve_head_copy(place)
        print(f"{name}/{adapter}: margin {min(p['margin'] for p in cases[-1]['prompts'])}")
    write_golden(out / "golden.json", cases)
    for file in out.rglob("*.safetensors"):
        file.chmod(0o644)


@torch.no_grad()
def check_config_matters(folder, family, case):
    """Without what the family's config.json has of its own, the logits are others."""
    prompt = max(case["prompts"], key=lambda p: len(p["tokens"]))
    tokens = torch.tensor([prompt["tokens"] + prompt["greedy"]])
    logits = []
    for changes in ({}, family.differs):
        config = AutoConfig.from_pretrained(folder)
        for key, value in changes.items():
            setattr(config, key, value)
        model = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=torch.float32, attn_implementation="eager"
        )
        logits.append(model.eval()(tokens).logits[0, -1])
    change = ((logits[0] - logits[1]).abs().max() / logits[0].abs().max()).item()
    assert change > 0.05, f"{folder.parent.name}: {list(family.differs)} change {change} only"


def make_family(name, family, seed):
    out = HERE / name
    shutil.rmtree(out, ignore_errors=True)
    folder = out / "model"
    folder.mkdir(parents=True)
    model = AutoModelForCausalLM.from_config(family.config)
    randomise(model, seed)
    stored = model.to(family.dtype)
    stored.generation_config = stored.generation_config.from_dict(family.generation)
    stored.save_pretrained(folder)
    families.rewrite_config(folder / "config.json", family.old)
    weights = folder / "model.safetensors"
    save_file(load_file(weights) | family.extra, weights, metadata={"format": "pt"})

    def fresh():
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()

    base = fresh()
    cases = [golden_case(base, None, family.lengths, seed)]
    if family.differs:
        check_config_matters(folder, family, cases[0])
    for i, (adapter, (dtype, config)) in enumerate(family.adapters.items()):
        place = out / "adapters" / adapter
        make_adapter(folder, place, dtype, config, seed + i)
        model = PeftModel.from_pretrained(fresh(), place).eval()
        cases.append(golden_case(model, adapter, (2 + i, family.lengths[-1] - i), seed + 100 + i))
        check_adapter_matters(base, model, cases[-1])
        if adapter == "partial":
            leave_adapter_name_in(place)
        if adapter == "all-linear":  # PEFT expands the word before it saves
            path = place / "adapter_config.json"
            write_json(path, json.loads(path.read_text()) | {"target_modules": adapter})
    write_golden(out / "golden.json", cases)
    for file in out.rglob("*.safetensors"):
        file.chmod(0o644)
    reference.check(out)


def make_families(names):
    torch.set_num_threads(1)  # the models are too small for more
    for i, (name, family) in enumerate(families.FAMILIES.items()):
        if not names or name in names:
            make_family(name, family, 1000 * (i + 11))


def write_golden(path, cases):
    """One prompt a line: diffs stay readable."""
    with path.open("w") as f:
        f.write('{"cases": [')
        for i, case in enumerate(cases):
            comma, name = "," if i else "", json.dumps(case["adapter"])
            f.write(f'{comma}\n {{"adapter": {name}, "prompts": [')
            f.write(",".join("\n  " + json.dumps(p) for p in case["prompts"]))
            f.write("]}")
        f.write("\n]}\n")


def tiny(new_only):
    torch.set_num_threads(2)
    for seed, (name, make_model) in enumerate(
        (("tiny-llama", tiny_llama), ("tiny-qwen2", tiny_qwen2), ("tiny-mha", tiny_mha))
    ):
        make_tiny(name, make_model, 1000 * (seed + 1), new_only)
        reference.check(HERE / name)
    bad_adapters.make(HERE / "tiny-llama")


# ---- SmolLM2 -----------------------------------------------------------------------------------

QUESTIONS = (
    "What is the capital of France?",
    "Name three colours of the rainbow.",
    "Write one sentence about the sea.",
    "How do I boil an egg?",
    "Where do penguins live?",
    "What does a librarian do?",
    "Why is the sky blue?",
    "Describe a small red house on a hill.",
    "Tell me about the moon.",
    "What should I cook tonight?",
)
SMOLLM2_PROMPTS = 3
SMOLLM2_MARGIN = 3e-4
SMOLLM2_TOP = 64


def smollm2_case(model, tokenizer, adapter):
    prompts = []
    for question in QUESTIONS:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        logits, chosen, margin = greedy(model, [tokens])
        print(f"{adapter}: {question} margin {margin.item():.5f}: {tokenizer.decode(chosen[0])!r}")
        if margin.item() < SMOLLM2_MARGIN:
            continue
        top = logits[0].topk(SMOLLM2_TOP)
        prompts.append({
            "text": text, "tokens": tokens, "greedy": chosen[0].tolist(),
            "max_abs": logits.abs().max().item(),
            "top_tokens": top.indices.tolist(), "top_logits": top.values.tolist(),
            "margin": round(margin.item(), 5),
        })  # fmt: skip
        if len(prompts) == SMOLLM2_PROMPTS:
            break
    assert len(prompts) == SMOLLM2_PROMPTS, f"{adapter}: too many ties; add questions"
    return {"adapter": adapter, "prompts": prompts}


def smollm2(model_dir, adapters_dir):
    for folder in (model_dir, adapters_dir):
        if not folder.is_dir():
            sys.exit(f"{folder} is not there (tools/setup model; demo/adapters)")
    out = HERE / "smollm2"
    out.mkdir(exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    adapters = sorted(p.parent.name for p in adapters_dir.glob("*/adapter_config.json"))
    for adapter in [None, *adapters]:
        model = AutoModelForCausalLM.from_pretrained(
            model_dir, dtype=torch.float32, attn_implementation="eager"
        )
        if adapter is not None:
            model = PeftModel.from_pretrained(model, adapters_dir / adapter)
        model.eval()
        case = smollm2_case(model, tokenizer, adapter)
        write_golden(out / f"{adapter or 'base'}.json", [case])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("what", choices=("tiny", "families", "smollm2"))
    parser.add_argument("names", nargs="*", help="of families")
    parser.add_argument("--new", action="store_true", help="tiny: only adapters not yet there")
    cache = Path.home() / ".cache/lorry/models/SmolLM2-135M-Instruct"
    parser.add_argument("--model", type=Path, default=cache)
    parser.add_argument("--adapters", type=Path, default=HERE.parent.parent / "demo/adapters")
    args = parser.parse_args()
    if args.what == "tiny":
        tiny(args.new)
    elif args.what == "families":
        make_families(args.names)
    else:
        smollm2(args.model, args.adapters)


if __name__ == "__main__":
    main()
