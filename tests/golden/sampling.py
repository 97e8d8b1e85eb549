#!/usr/bin/env python3
"""Makes tests/golden/tiny-llama/sampling.json: what transformers' generate() says, greedily, under a
repetition penalty, with the log-probabilities of the raw logits, for the whole worker to be held to.

Prompts are searched for along whose tokens the best penalised logit leads the second by MARGIN of
the largest, so that rounding does not decide. Needs requirements.txt; `make test` does not.
"""

import json
import random
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

disable_progress_bar()
HERE = Path(__file__).resolve().parent
FOLDER = HERE / "tiny-llama"
ADAPTERS = [None, "r8-attention", "rslora"]
PENALTIES = [1.0, 1.1, 1.5, 0.9]
TOKENS = 40
TOP = 5
MARGIN = 2e-3
TRIES = 400


def load(adapter):
    model = AutoModelForCausalLM.from_pretrained(FOLDER / "model", dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, FOLDER / "adapters" / adapter)
    model.eval()
    return model


def generate(model, prompt, penalty):
    """Tokens, raw logits and penalised scores [TOKENS, vocab]."""
    config = model.generation_config
    config.eos_token_id = None
    config.pad_token_id = 0
    with torch.no_grad():
        out = model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            repetition_penalty=penalty,
            max_new_tokens=TOKENS,
            output_logits=True,
            output_scores=True,
            return_dict_in_generate=True,
        )
    tokens = out.sequences[0, len(prompt) :].tolist()
    return tokens, torch.cat(out.logits).double(), torch.cat(out.scores).double()


def certain(scores):
    best = scores.topk(2).values
    return bool(((best[:, 0] - best[:, 1]) > MARGIN * scores.abs().amax(-1)).all())


def case(model, adapter, penalty, rng):
    vocab = model.config.vocab_size
    for _ in range(TRIES):
        prompt = [rng.randrange(3, vocab) for _ in range(rng.randrange(4, 30))]
        prompt += rng.choices(prompt, k=6)  # so that the prompt repeats tokens, too
        tokens, logits, scores = generate(model, prompt, penalty)
        if len(tokens) == TOKENS and certain(scores):
            break
    else:
        raise SystemExit(f"no prompt for {adapter} under {penalty}")
    logprobs = torch.log_softmax(logits, -1)
    top = logprobs.topk(TOP)
    return {
        "adapter": adapter,
        "repetition_penalty": penalty,
        "prompt": prompt,
        "tokens": tokens,
        "logprobs": [round(logprobs[i, t].item(), 6) for i, t in enumerate(tokens)],
        "top": [
            [[int(t), round(p, 6)] for t, p in zip(ids, values)]
            for ids, values in zip(top.indices.tolist(), top.values.tolist())
        ],
        "changed": tokens != generate(model, prompt, 1.0)[0],
    }


def main():
    torch.set_num_threads(1)
    rng = random.Random(2026)
    cases = []
    for adapter in ADAPTERS:
        model = load(adapter)
        for penalty in PENALTIES:
            cases.append(case(model, adapter, penalty, rng))
            print(adapter, penalty, "changes the tokens" if cases[-1]["changed"] else "as without")
    if not all(c["changed"] for c in cases if c["repetition_penalty"] != 1.0):
        raise SystemExit("a penalty that changes nothing proves nothing")
    lines = ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases)
    (FOLDER / "sampling.json").write_text(f"[{lines}]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
