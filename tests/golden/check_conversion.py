#!/usr/bin/env python3
"""Compares a converted model folder with transformers' own reading of the same GGUF file.

    check_conversion.py MODEL.gguf MODEL_DIR

Checks that every tensor has the same name and shape, that each value is the GGUF's value rounded
to bf16 and nothing else, that the rounding loses nothing in the norms, that the settings agree,
and that the two models pick the same tokens. Then prints some greedy answers for a person to
read. transformers' tokenizer of the GGUF is not compared: it does not split digits.

Needs the environment of `tools/setup golden` (torch, transformers, gguf); not part of `make test`.
"""

import argparse
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

SETTINGS = (
    "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
    "rms_norm_eps rope_parameters vocab_size max_position_embeddings tie_word_embeddings"
).split()

QUESTIONS = (
    "What is the capital of France?",
    "What is 12 + 30?",
    "Name three colours of the rainbow.",
    "Write one sentence about the sea.",
)


def check_settings(converted, original):
    failures = []
    for name in SETTINGS:
        ours, theirs = getattr(converted, name), getattr(original, name)
        # transformers reads the f32 of the GGUF as a double: 9.99999975e-06 for 1e-05.
        close = isinstance(ours, float) and abs(ours - theirs) <= 1e-6 * abs(theirs)
        if ours != theirs and not close:
            failures.append(f"setting {name}: {ours}, the GGUF has {theirs}")
    return failures


def check_weights(converted, original):
    failures = []
    ours, theirs = dict(converted.state_dict()), dict(original.state_dict())
    if ours.keys() != theirs.keys():
        failures.append(f"tensor names differ: {sorted(ours.keys() ^ theirs.keys())}")
    for name in sorted(ours.keys() & theirs.keys()):
        if ours[name].shape != theirs[name].shape:
            failures.append(f"{name}: shape {ours[name].shape}, not {theirs[name].shape}")
        elif not torch.equal(ours[name], theirs[name].to(torch.bfloat16).float()):
            failures.append(f"{name}: values are not the GGUF's rounded to bf16")
        elif "norm" in name and not torch.equal(ours[name], theirs[name]):
            failures.append(f"{name}: rounding to bf16 changed a norm")
    print(f"{len(ours)} tensors compared")
    return failures


def check_tokenizer(tokenizer):
    failures = []
    ids = tokenizer.encode("In 2048, naïve 🦜s")
    pieces = tokenizer.convert_ids_to_tokens(ids)
    if pieces[:6] != ["In", "Ġ", "2", "0", "4", "8"]:
        failures.append(f"digits are not single tokens, or there is a BOS: {pieces}")
    if tokenizer.decode(ids) != "In 2048, naïve 🦜s":
        failures.append(f"text does not come back: {tokenizer.decode(ids)!r}")
    if tokenizer.encode("<|im_end|>") != [tokenizer.eos_token_id]:
        failures.append("<|im_end|> is not one token, the end of a turn")
    return failures


def check_answers(converted, original, tokenizer):
    """Greedy answers; the two models must agree on nearly every first choice (rounding may flip
    a near tie, a wrong weight changes them all)."""
    same = total = 0
    for question in QUESTIONS:
        batch = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        output = converted.generate(**batch, max_new_tokens=48, do_sample=False)
        prompt_tokens = batch["input_ids"].shape[1]
        print(f"Q {question}")
        print(f"A {tokenizer.decode(output[0, prompt_tokens:], skip_special_tokens=True)!r}")
        with torch.no_grad():
            ours, theirs = converted(output).logits, original(output).logits
        same += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        total += output.numel()
        print(f"  largest logit difference {float((ours - theirs).abs().max()):.3f}")
    print(f"same first choice at {same} of {total} positions")
    return [] if same >= 0.95 * total else ["the two models choose different tokens"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("gguf", type=Path, metavar="MODEL.gguf")
    parser.add_argument("model", type=Path, metavar="MODEL_DIR")
    args = parser.parse_args()
    original = AutoModelForCausalLM.from_pretrained(
        str(args.gguf.parent), gguf_file=args.gguf.name, dtype=torch.float32
    ).eval()
    converted = AutoModelForCausalLM.from_pretrained(str(args.model), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(str(args.model))
    failures = check_settings(converted.config, original.config)
    failures += check_weights(converted, original)
    failures += check_tokenizer(tokenizer)
    failures += check_answers(converted, original, tokenizer)
    for failure in failures:
        print(f"FAILED {failure}")
    print("conversion: " + ("differs" if failures else "equal"))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
