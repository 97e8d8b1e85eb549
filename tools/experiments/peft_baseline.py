#!/usr/bin/env python3
"""PEFT on a GPU, as a peer: transformers' generate() over a model of Llama-2-7B's shape with random
bf16 weights made on the device, and LoRA adapters on q, k, v and o, one for all rows of a batch or
several mixed in it by `adapter_names`. Prints an object a measurement, on a line of its own.

    peft_baseline.py                     # one adapter and 8 mixed, batches of 32 and 128
    peft_baseline.py --seconds 90        # leaves out what would not end in time

Needs torch, transformers and peft; lorry's side is the set `peft` of tools/experiments/run.
"""

import argparse
import json
import os
import sys
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import peft  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

# What the command line may make smaller, for a machine without a GPU.
SHAPE = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
}
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 512,
    "max_position_embeddings": 512,
}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]
WARM_TOKENS = 4


def say(**fields):
    print(json.dumps(fields), flush=True)


def make_base(shape, device):
    """Initialised by transformers' own rule, where it lies."""
    torch.manual_seed(1)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape))
    finally:
        torch.set_default_dtype(before)
    return model.eval()


def add_adapters(model, count, rank):
    """B is random too, so that each adapter has an effect."""
    config = peft.LoraConfig(
        r=rank, lora_alpha=rank, target_modules=TARGETS, init_lora_weights=False
    )
    adapted = peft.get_peft_model(model, config, adapter_name="a0")
    for i in range(1, count):
        adapted.add_adapter(f"a{i}", config)
    return adapted.to(torch.bfloat16).eval()


class Bench:
    def __init__(self, options, device):
        self.options, self.device = options, device
        self.synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None

    def generate(self, model, prompts, tokens, extra):
        with torch.inference_mode():
            given = model.generate(
                input_ids=prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
                **extra,
            )
        self.synchronize()
        assert given.shape == (prompts.shape[0], prompts.shape[1] + tokens), given.shape

    def measure(self, model, batch, names):
        """Seconds of one batch, from its prompts to its last tokens."""
        o = self.options
        prompts = torch.randint(
            3, model.config.vocab_size, (batch, o.input), device=self.device
        )
        extra = {} if names is None else {"adapter_names": names}
        self.generate(model, prompts, WARM_TOKENS, extra)
        begin = time.perf_counter()
        self.generate(model, prompts, o.output, extra)
        return time.perf_counter() - begin


def options_of(words):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", default="32,128", help="rows, separated by commas [32,128]")
    parser.add_argument("--adapters", type=int, default=8, help="mixed in a batch [8]")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--input", type=int, default=256, help="tokens of a prompt [256]")
    parser.add_argument("--output", type=int, default=128, help="tokens of an answer [128]")
    parser.add_argument("--base", action="store_true", help="the model without adapters too")
    parser.add_argument("--tiny", action="store_true", help="a small shape, to try the script")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin nothing after these")
    return parser.parse_args(words)


def main(words):
    begin = time.perf_counter()
    options = options_of(words)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = TINY if options.tiny else SHAPE
    bench = Bench(options, device)
    batches = [int(rows) for rows in options.batches.split(",")]
    common = {
        "peer": "peft",
        "model": "tiny" if options.tiny else "llama-2-7b",
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "rank": options.rank,
        "targets": "qkvo",
        "input": options.input,
        "output": options.output,
    }
    model = make_base(shape, device)
    plan = [("base", 0, rows) for rows in batches if options.base]
    # The small batch first: mixed takes some seconds for each of a large one's.
    for rows in batches:
        plan += [("one", 1, rows), ("mixed", options.adapters, rows)]
    for kind, adapters, rows in plan:
        if kind != "base" and not isinstance(model, peft.PeftModel):
            model = add_adapters(model, options.adapters, options.rank)
        names = [f"a{i % adapters}" for i in range(rows)] if kind == "mixed" else None
        if time.perf_counter() - begin > options.seconds:
            say(**common, kind=kind, batch=rows, left_out="no time")
            continue
        seconds = bench.measure(model, rows, names)
        say(
            **common,
            kind=kind,
            adapters=adapters,
            batch=rows,
            seconds=round(seconds, 4),
            output_tokens_s=round(rows * options.output / seconds, 1),
            since_start_s=round(time.perf_counter() - begin, 1),
        )


if __name__ == "__main__":
    main(sys.argv[1:])
