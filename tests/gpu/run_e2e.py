#!/usr/bin/env python3
"""`lorry run` on a GPU, against itself on the CPU: jobs in, finals out, nothing else.

    run_e2e.py [--device cuda] [--keep FOLDER] COMMAND…     COMMAND: lorry, or a bundle's `run lorry`

Runs the same jobs over tests/golden/tiny-llama twice: base and adapters in one batch, greedy and
sampled, with log-probabilities, stop strings, penalties, prompts as text and as tokens. Holds:

- each job has one final, succeeded, on both; prompts and, where no stop is asked, answers count the
  same tokens;
- a stop string that ended a job is not in its text, and nothing but a stop or the length ended one;
- greedy jobs: 16 bits are not 32, so texts part sooner or later. As long as two answers have been
  the same, the next token must be the same where the CPU's best leads its second by more than the
  job's tolerance, and its log-probability must be within that. The tolerance is TIMES times the mean
  error of transformers in the same 16-bit type (errors16.json, a root mean square over the
  vocabulary): rare single logits differ by several such errors, and a lead has two of them; greedy
  answers of transformers in bf16 keep to half of it. After the first token that differs, the answers
  have different inputs and are not compared.

Needs Python's standard library alone. Exits 1 where something does not hold.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

TINY = Path(__file__).resolve().parent.parent / "golden/tiny-llama"
ADAPTERS = (None, "r1", "r64", "rslora", "lora-bias", "one-layer", "embedding-head-default")
GREEDY_TOKENS = 24
SAMPLED_TOKENS = 16
STOPS = ["at", "e", "\n"]
TIMES = 8
DECIDED_MIN = 3  # tokens of a greedy job that are not too close to call, in the mean


def cases():
    """adapter → (prompts as tokens, mean error of 16 bits)"""
    golden = json.loads((TINY / "golden.json").read_text())["cases"]
    errors = json.loads((TINY / "errors16.json").read_text())["cases"]
    out = {}
    for case, error in zip(golden, errors):
        each = [x for prompt in error["prompts"] for x in prompt]
        out[case["adapter"]] = ([p["tokens"] for p in case["prompts"]], sum(each) / len(each))
    return out


def make_jobs(known):
    jobs = []

    def add(adapter, kind, **fields):
        job = {"id": f"{len(jobs):02}-{adapter or 'base'}-{kind}", "ignore_eos": True} | fields
        jobs.append(job | ({"adapter": adapter} if adapter else {}))

    for i, adapter in enumerate(ADAPTERS):
        greedy = {"temperature": 0, "max_tokens": GREEDY_TOKENS, "logprobs": 2}
        prompts = known[adapter][0]
        for tokens in prompts[:2]:
            add(adapter, "greedy", tokens=tokens, **greedy)
        add(adapter, "greedy", prompt=f"the {i} quick brown foxes", **greedy)
        sampled = {"temperature": 0.8, "seed": 7 + i, "max_tokens": SAMPLED_TOKENS}
        add(adapter, "sampled", tokens=prompts[0], top_p=0.9, top_k=50, **sampled)
        add(adapter, "sampled", tokens=prompts[1], logprobs=1, frequency_penalty=0.5, **sampled)
        add(adapter, "stop", tokens=prompts[1], stop=STOPS, **sampled | {"max_tokens": 200})
    return jobs


def run(command, device, jobs, folder):
    """id → final"""
    source, target = folder / "jobs.jsonl", folder / f"{device}.jsonl"
    source.write_text("".join(json.dumps(job) + "\n" for job in jobs))
    done = subprocess.run(
        [*command, "run", source, "-o", target, "--model", TINY / "model", "--adapters",
         TINY / "adapters", f"--device.kind={device}", "--quiet"],
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode != 0:
        sys.exit(f"lorry run with device.kind={device}: exit code {done.returncode}")
    finals = [json.loads(line) for line in target.read_text().splitlines()]
    assert len(finals) == len(jobs), f"{device}: {len(finals)} finals for {len(jobs)} jobs"
    assert {f["id"] for f in finals} == {job["id"] for job in jobs}, device
    return {f["id"]: f for f in finals}


def check_alone(job, final):
    assert final["status"] == "succeeded", final
    assert final["adapter"] == job.get("adapter")
    usage = final["usage"]
    assert usage["completion_tokens"] == len(final["tokens"])
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    stops = [s for s in job.get("stop", ()) if s in final["text"]]
    assert not stops, f"{final['text']!r} holds {stops}"
    if final["finish_reason"] == "length":
        assert usage["completion_tokens"] == job["max_tokens"]
    else:
        assert final["finish_reason"] == "stop" and "stop" in job, final["finish_reason"]
    if "logprobs" in job:
        entries = final["logprobs"]
        assert [e["token"] for e in entries] == final["tokens"]
        assert all(len(e["top"]) == job["logprobs"] for e in entries)
        assert all(e["logprob"] <= e["top"][0][1] + 1e-6 <= 1e-5 for e in entries)


def compare_greedy(ours, exact, tolerance):
    """Tokens of `ours` that had to be the exact ones, and whether all are."""
    decided = 0
    for mine, its in zip(ours["logprobs"], exact["logprobs"]):
        lead = its["top"][0][1] - its["top"][1][1]
        if lead > tolerance:
            decided += 1
            assert mine["token"] == its["token"], (
                f"{ours['id']}: token {mine['token']} for {its['token']}, which leads by {lead:.2f}"
            )
        if mine["token"] != its["token"]:
            return decided, False
        apart = abs(mine["logprob"] - its["logprob"])
        assert apart <= tolerance, f"{ours['id']}: a log-probability is {apart:.2f} off"
    return decided, True


def compare(jobs, known, ours, exact):
    decided = same = greedy = 0
    for job in jobs:
        mine, its = ours[job["id"]], exact[job["id"]]
        for final in (mine, its):
            check_alone(job, final)
        assert mine["usage"]["prompt_tokens"] == its["usage"]["prompt_tokens"]
        assert mine["revision"] == its["revision"]
        if "stop" not in job:
            assert mine["usage"]["total_tokens"] == its["usage"]["total_tokens"]
        if job["temperature"] == 0:
            tolerance = TIMES * known[job.get("adapter")][1]
            count, equal = compare_greedy(mine, its, tolerance)
            greedy += 1
            decided += count
            same += equal
    for finals in (ours, exact):
        assert any(f["finish_reason"] == "stop" for f in finals.values()), "no stop string was met"
    assert decided >= DECIDED_MIN * greedy, f"{decided} of {greedy} jobs' tokens were compared"
    print(
        f"{len(jobs)} jobs succeeded on both; of {greedy} greedy ones {same} are equal to the end,"
        f" and {decided} tokens that had to be the same are"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--device", default="cuda", help="against the CPU; cuda unless said")
    parser.add_argument("--keep", type=Path, help="a folder for jobs and finals")
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    known = cases()
    jobs = make_jobs(known)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.keep or Path(scratch)
        exact = run(arguments.command, "cpu", jobs, folder)
        ours = run(arguments.command, arguments.device, jobs, folder)
    compare(jobs, known, ours, exact)


if __name__ == "__main__":
    main()
