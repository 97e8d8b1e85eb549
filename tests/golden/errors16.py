#!/usr/bin/env python3
"""How far transformers and peft in a model's own 16-bit type are from themselves in float32: what the
CUDA device's error is held to (tests/gpu/test_golden.c).

    errors16.py [tests/golden/tiny-*]    writes errors16.json into each

For each golden case and prompt, along the prompt and its greedy tokens, teacher-forced: at each
position the root mean square over the vocabulary of the difference in the logits. The arithmetic is
PyTorch's on the CPU, with transformers' default attention; adapters are rounded to the model's type,
as a device that computes in it holds them. Rotary frequencies stay float32, as from_pretrained()
leaves them. Needs requirements.txt.
"""

import base64
import json
import sys
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

disable_progress_bar()
HERE = Path(__file__).resolve().parent


def load(folder, adapter, dtype):
    """The model, alone or with the adapter, all weights of `dtype`."""
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=dtype)
    if adapter:
        model = PeftModel.from_pretrained(model, folder / "adapters" / adapter)
    for p in model.parameters():
        p.data = p.data.to(dtype)
    return model.eval()


def check(prompt, logits):
    """They are the golden's."""
    raw = bytearray(base64.b64decode(prompt["logits"]))
    golden = torch.frombuffer(raw, dtype=torch.float32)
    assert (logits - golden).abs().max() <= 1e-4 * golden.abs().max()


@torch.no_grad()
def errors(folder):
    dtype = AutoConfig.from_pretrained(folder / "model").dtype
    assert dtype in (torch.bfloat16, torch.float16), dtype
    cases = []
    for case in json.loads((folder / "golden.json").read_text())["cases"]:
        exact = load(folder, case["adapter"], torch.float32)
        rounded = load(folder, case["adapter"], dtype)
        prompts = []
        for prompt in case["prompts"]:
            tokens = torch.tensor([prompt["tokens"] + prompt["greedy"][:-1]])
            logits = exact(tokens).logits[0]
            check(prompt, logits[len(prompt["tokens"]) - 1])
            difference = rounded(tokens).logits[0].float() - logits
            rms = difference.square().mean(dim=-1).sqrt()
            prompts.append([float(f"{x:.3g}") for x in rms.tolist()])
        cases.append({"adapter": case["adapter"], "prompts": prompts})
    return {"dtype": str(dtype).removeprefix("torch."), "cases": cases}


def write(path, value):
    """One prompt a line: diffs stay readable."""
    lines = []
    for case in value["cases"]:
        prompts = ",\n  ".join(json.dumps(p) for p in case["prompts"])
        lines.append(f' {{"adapter": {json.dumps(case["adapter"])}, "prompts": [\n  {prompts}]}}')
    body = ",\n".join(lines)
    path.write_text(f'{{"dtype": {json.dumps(value["dtype"])}, "cases": [\n{body}\n]}}\n')


def main():
    torch.set_num_threads(1)  # the models are too small for more
    folders = [Path(p) for p in sys.argv[1:]]
    for folder in folders or sorted(HERE.glob("tiny-*")):
        value = errors(folder)
        write(folder / "errors16.json", value)
        means = [sum(p) / len(p) for case in value["cases"] for p in case["prompts"]]
        print(f"{folder.name}: {value['dtype']}, mean errors {min(means):.2g} to {max(means):.2g}")


if __name__ == "__main__":
    main()
