"""Tables and plots of what was measured: docs/PERFORMANCE.md between its marks, docs/figures."""

import json
import re
from pathlib import Path

import plots

PEERS = json.loads((Path(__file__).parent / "peers.json").read_text())
VLLM = PEERS["vllm"]["output_tokens_s"]
TARGETS = PEERS["targets"]
UNUSED = "–"


class Figures:
    """The newest result of each key of a set."""

    def __init__(self, name, lines):
        self.name = name
        self.lines = {line["key"]: line for line in lines if line["set"] == name}

    def __bool__(self):
        return bool(self.lines)

    def __contains__(self, key):
        return key in self.lines

    def __getitem__(self, key):
        return self.lines[key]["result"]

    def rate(self, key):
        """Output tokens a second; None: it was not measured."""
        return self[key].get("output_tokens_s") if key in self else None

    def ratio(self, key, base):
        """Of rates, with a mark where they were not taken in one run: GPUs of a kind differ."""
        top, bottom = self.rate(key), self.rate(base)
        if not top or not bottom:
            return UNUSED
        same = self.lines[key]["run"] == self.lines[base]["run"]
        return f"{top / bottom:.3f}" + ("" if same else "*")

    def share(self, key, base):
        top, bottom = self.rate(key), self.rate(base)
        return top / bottom if top and bottom else None

    def caption(self):
        """Where and when."""
        devices = sorted({line["device"] for line in self.lines.values()})
        dates = sorted({line["date"][:10] for line in self.lines.values()})
        span = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
        return f"{', '.join(devices)}; {span}; make bench-{self.name}"

    def starred(self):
        return len({line["run"] for line in self.lines.values()}) > 1


def table(heads, rows):
    cut = ["|".join(["", *(f" {cell} " for cell in row), ""]) for row in [heads, *rows]]
    return [cut[0], "|" + "---|" * len(heads), *cut[1:]]


def number(value, digits=0):
    return UNUSED if value is None else f"{value:,.{digits}f}"


def base_of(key):
    """The case whose jobs a case runs over adapters."""
    if key.startswith("F"):
        return "F0"
    return "A2" if re.match(r"[A-Z]2", key) else "A1"


def judged(value, least):
    """ "≥ 0.96: met" """
    if value is None or least is None:
        return UNUSED
    return f"≥ {least:g}: " + ("met" if value >= least else "missed")


# ---- sets beside vLLM -----------------------------------------------------------------------


def against_vllm(key, rate):
    return rate / VLLM[key] if rate and key in VLLM else None


def base_table(f):
    rows = []
    for key in ("A1", "A2", "E1", "F0", "A10k", "A1000"):
        if key not in f:
            continue
        ratio = against_vllm(key, f.rate(key))
        rows.append([
            key, number(f.rate(key)), number(VLLM.get(key)), number(ratio, 2),
            judged(ratio, TARGETS["peer"].get(key)), f"{100 * f[key]['limit_share']:.0f}%",
            f"{100 * f[key]['idle']:.2f}%",
        ])  # fmt: skip
    heads = ["case", "Lorry", "vLLM", "ratio", "target", "of the limit by steps", "GPU idle"]
    return table(heads, rows)


def base_plots(f):
    keys = [key for key in VLLM if key in f]
    series = {"Lorry / vLLM": [against_vllm(key, f.rate(key)) for key in keys]}
    title = "Throughput without adapters, of vLLM's"
    yield "base", plots.bars(title, f.caption(), "ratio of tokens/s", keys, series, reference=1)


def lora_table(f):
    rows = []
    for key in [part for case in VLLM for part in (case, f"{case} merged")]:
        if key not in f or key in ("A1", "A2", "F0"):
            continue
        base, case = base_of(key), key.removesuffix(" merged")
        ratio = against_vllm(case, f.rate(key))
        rows.append([
            key, number(f.rate(key)), f.ratio(key, base),
            judged(f.share(key, base), TARGETS["base"].get(case)), number(VLLM[case]),
            number(ratio, 2), judged(ratio, TARGETS["peer"].get(case)),
            number(f[key]["decode_ms"]["p50"], 2), number(f[key]["mixed_ms"]["p50"], 1),
        ])  # fmt: skip
    heads = ["case", "Lorry", "of our base", "target", "vLLM", "ratio", "target",
             "decode step, ms", "mixed step, ms"]  # fmt: skip
    return table(heads, rows)


def lora_plots(f):
    ticks = ["base", 1, 8, 32, 200]
    for size, base, title in (("1", "A1", "128 in / 128 out"), ("2", "A2", "2,048 in / 128 out")):
        names = {tick: base if tick == "base" else f"B{size}:{tick}" for tick in ticks}
        series = {
            "Lorry": {t: f.rate(key) for t, key in names.items() if f.rate(key)},
            "vLLM": {t: VLLM[key] for t, key in names.items()},
        }
        yield f"lora-{size}", plots.lines(
            f"Adapters of rank 16, {title}", f.caption(), "output tokens/s", ticks, series
        )
    keys = [key for key in VLLM if key in f and key not in ("A1", "A2", "F0")]
    series = {"Lorry / vLLM": [against_vllm(key, f.rate(key)) for key in keys]}
    title = "Throughput with adapters, of vLLM's"
    yield "lora", plots.bars(title, f.caption(), "ratio of tokens/s", keys, series, reference=1)


# ---- S-LoRA ---------------------------------------------------------------------------------


def counts_of(f, case):
    """{number of adapters: key} of "S1:5", "S1:100", …"""
    found = {}
    for key in f.lines:
        match = re.fullmatch(rf"{case}:(\d+)", key)
        if match:
            found[int(match[1])] = key
    return dict(sorted(found.items()))


def jobs_rate(result):
    return result["workload"]["jobs"] / result["seconds"]


def extent(result):
    """ "10,000 jobs, 8 layers": of what was run, where that is a slice of the model. """
    layers = result["workload"].get("layers")
    return f"{result['workload']['jobs']:,} jobs" + (f", {layers} layers" if layers else "")


def slora_table(f):
    rows = []
    for case in ("S1", "S2", "S4", "S1rate"):
        counts = counts_of(f, case)
        for n, key in counts.items():
            first = counts[min(counts)]
            r = f[key]
            theirs = PEERS["slora"]["requests_s"].get(f"S1:{n}") if case == "S1rate" else None
            judges = case in ("S1", "S1rate") and n > min(counts)
            least = 1 - TARGETS["slora_drop"] if judges else None
            rows.append([
                case, f"{n:,}", extent(r), number(f.rate(key)), number(jobs_rate(r), 2),
                number(theirs, 2),
                f.ratio(key, first), judged(f.share(key, first), least),
                number(r["adapter_bytes_read"] / 1e9), number(r["loads"]),
                number(r["preemptions"]), number(r["first_token_ms"]["p50"] / 1e3, 2),
            ])  # fmt: skip
    heads = ["case", "adapters", "of", "tokens/s", "jobs/s", "S-LoRA", "of the fewest",
             "target", "GB of adapters read", "loads", "preemptions",
             "first token p50, s"]  # fmt: skip
    parts = table(heads, rows) if rows else []
    pairs = [(f"{name} in time", f"{name}a", name) for name in ("G16", "G64")]
    small = "S2small:200"
    pairs += [
        ("S2small, 10% for adapters alone", f"{small} split 10", small),
        ("S2small, 30% for adapters alone", f"{small} split 30", small),
        ("S2small, 50% for adapters alone", f"{small} split 50", small),
        ("S2small in time", f"{small} arrival", small),
    ]
    lines = []
    for what, baseline, ours in pairs:
        if baseline in f and ours in f:
            least = TARGETS["backlog"].get(ours)
            share = f.share(ours, baseline)
            of = extent(f[ours])
            lines.append([what, of, number(f.rate(baseline)), number(f.rate(ours)),
                          f.ratio(ours, baseline), judged(share, least)])  # fmt: skip
            read = f[baseline]["adapter_bytes_read"], f[ours]["adapter_bytes_read"]
            if ours in TARGETS["backlog"] and read[1] > 0:
                lines.append([f"{ours} in GB of adapters read", of, number(read[0] / 1e9),
                              number(read[1] / 1e9), number(read[0] / read[1], 2),
                              judged(read[0] / read[1], TARGETS["backlog"]["bytes"])])  # fmt: skip
    if lines:
        heads = ["backlog against arrival, unified against split pool", "of", "baseline", "Lorry",
                 "ratio", "target"]  # fmt: skip
        parts += [*([""] if parts else []), *table(heads, lines)]
    return parts


def slora_plots(f):
    found = {case: counts_of(f, case) for case in ("S1", "S2", "S4")}
    ticks = sorted({n for counts in found.values() for n in counts})
    series = {
        case: {n: f.rate(key) for n, key in counts.items()}
        for case, counts in found.items()
        if counts
    }
    if series:
        yield "slora", plots.lines(
            "S-LoRA's workloads, all jobs at once", f.caption(), "output tokens/s", ticks, series
        )
    pairs = [name for name in ("G16", "G64") if name in f and f"{name}a" in f]
    if pairs:
        series = {
            "arrival": [f.rate(f"{name}a") for name in pairs],
            "backlog": [f.rate(name) for name in pairs],
        }
        yield "backlog", plots.bars(
            "10,000 jobs, 256 at once: order of jobs", f.caption(), "output tokens/s", pairs, series
        )


# ---- the others -----------------------------------------------------------------------------

CHURN = {
    "churn:8": ("8, and the KV of all rows", None),
    "churn:2": ("2, and the KV of all rows", "churn:8"),
    "slots:2": ("the same, no more than 2 resident", "churn:8"),
    "serial": ("8, one after the other", None),
    "churn:1": ("1, and the KV of all rows", "serial"),
    "slots:1": ("the same, no more than 1 resident", "serial"),
}


def churn_table(f):
    rows = []
    for key, (what, against) in CHURN.items():
        if key in f:
            share = f.share(key, against) if against else None
            rows.append([
                what, number(f.rate(key)), f.ratio(key, against) if against else UNUSED,
                judged(share, TARGETS["churn"]), number(f[key]["loads"]),
                number(f[key]["evictions"]), f"{100 * f[key]['idle']:.2f}%",
            ])  # fmt: skip
    heads = ["8 adapters of rank 16, 256 rows: pages for", "Lorry", "of what has room", "target",
             "loads", "evictions", "GPU idle"]  # fmt: skip
    return table(heads, rows)


def churn_plots(f):
    keys = [key for key in CHURN if key in f]
    series = {"Lorry": [f.rate(key) for key in keys]}
    title = "Pools with room for some of 8 adapters"
    yield "churn", plots.bars(title, f.caption(), "output tokens/s", keys, series)


def loads_table(f):
    if "firstload" not in f:
        return []
    r = f["firstload"]
    rows = []
    for run, what in (("new", "files of unknown hash"), ("known", "hash known"),
                      ("beside", f"hash known, beside {r['workload']['rows']} rows")):  # fmt: skip
        t = r[run]
        both = t["fetch_ms"] + t["load_ms"]
        target = TARGETS["load_ms"] if run == "known" else None
        verdict = UNUSED if target is None else f"≤ {target}: " + (
            "met" if both <= target else "missed")  # fmt: skip
        rows.append([what, number(t["fetch_ms"], 1), number(t["load_ms"], 1), number(both, 1),
                     verdict, number(t["first_token_ms"], 1),
                     number(t["resident_first_token_ms"] or None, 1)])  # fmt: skip
    heads = ["", "files to host store, ms", "to pages, ms", "both", "target",
             "request to first token, ms", "the same of a resident one"]  # fmt: skip
    alone, beside = r["alone"], r["beside"]
    slower = beside["step_ms"] / alone["step_ms"]
    least = TARGETS["load_step"]
    return [
        f"{r['workload']['adapters']} adapters of {r['workload']['adapter_bytes'] / 1e6:.0f} MB,",
        "files in the page cache, one every 0.1 s.",
        "",
        *table(heads, rows),
        "",
        f"Decode steps of {r['workload']['rows']} rows of the base, while they came: median",
        f"{beside['step_ms']:.2f} ms, {slower:.3f} times as long as alone (target ≤ {least:g}:",
        f"{'met' if slower <= least else 'missed'}); mean {beside['step_mean_ms']:.2f} ms,",
        f"{beside['step_mean_ms'] / alone['step_mean_ms']:.3f} times.",
    ]


def loads_plots(_):
    return ()


SCALE = {  # case: whose jobs, ranks
    "X1": ("A1", "16"),
    "XD1": ("A1", "8, 16, 32, 64"),
    "X2": ("A2", "16"),
    "X2 of all ranks": ("A2", "8, 16, 32, 64"),
}


def scale_table(f):
    rows = []
    for key, (base, ranks) in SCALE.items():
        if key in f:
            r = f[key]
            read = r["adapter_bytes_read"] / 1e9 / max(r["steps"], 1)
            rows.append([
                base, ranks, number(f.rate(base)), number(f.rate(key)), f.ratio(key, base),
                number(r["adapters_used"]), number(read, 2), number(r["loads"]),
                number(r["decode_ms"]["p50"], 2), f"{100 * r['idle']:.2f}%",
            ])  # fmt: skip
    heads = ["jobs of", "ranks, by turns", "base", "500 adapters", "of the base", "used",
             "GB of adapters a step", "loads", "decode step, ms", "GPU idle"]  # fmt: skip
    return table(heads, rows)


def scale_plots(f):
    keys = [key for key in SCALE if key in f and SCALE[key][0] in f]
    names = [f"{SCALE[key][0]}, {SCALE[key][1]}" for key in keys]
    series = {"500 adapters / base": [f.share(key, SCALE[key][0]) for key in keys]}
    title, unit = "500 adapters, popularity 1/i", "of the base's tokens/s"
    yield "scale", plots.bars(title, f.caption(), unit, names, series, reference=1)


def steps_of(f):
    """{(batch, mix, rank): what adapters add to a whole step} of bench_ops."""
    found = {}
    for row in f["lora"]["results"] if "lora" in f else ():
        match = re.fullmatch(r"(\S+) (\w+) r(\d+)", row["batch"])
        if match and row["kind"] == "lora_step":
            found[match[1], match[2], int(match[3])] = row
    return found


def cell(extra, floor):
    """ "35.2 (81%)": µs, and how much of them is needed at least. """
    share = f"{100 * floor / extra:.0f}%" if extra > 0 else UNUSED
    return f"{number(extra, 1)} ({share})"


def by_rank(steps):
    """A row a batch and mix, a column a rank: what adapters add to a step."""
    ranks = sorted({rank for _, _, rank in steps})
    rows = []
    for batch, mix in dict.fromkeys(key[:2] for key in steps):
        found = {rank: steps[batch, mix, rank] for rank in ranks if (batch, mix, rank) in steps}
        first = next(iter(found.values()))
        cells = [
            cell(found[r]["extra_us"], found[r]["extra_floor_us"])
            + ("" if found[r]["extra_us"] <= found[r]["extra_limit_us"] else " !")
            if r in found
            else UNUSED
            for r in ranks
        ]
        rows.append([batch, mix, first["adapters"], number(first["us"]), *cells])
    return table(["batch", "mix", "adapters", "base step", *[f"r{rank}" for rank in ranks]], rows)


def by_block(results, rank):
    """A row a batch and mix, a column a block: what adapters of a rank add to a call of it."""
    blocks = ("qkv", "attn_out", "gate_up", "down")
    found = {}
    for row in results:
        match = re.fullmatch(rf"(\S+) (\w+) r{rank}", row["batch"])
        if match and row["kind"] == "lora" and row["block"] in blocks:
            found.setdefault(match.groups(), {})[row["block"]] = cell(row["us"], row["floor_us"])
    rows = [[*key, *[cells.get(block, UNUSED) for block in blocks]] for key, cells in found.items()]
    return table([f"batch, rank {rank}", "mix", *blocks], rows)


def kernels_table(f):
    steps = steps_of(f)
    if not steps:
        return []
    results = f["lora"]["results"]
    return [
        "What adapters add to a step of all layers, µs, and in brackets how much of that the",
        "bytes and FLOPs themselves need at the measured rates; ! beyond this project's bound.",
        "",
        *by_rank(steps),
        "",
        "The same of one call of each block.",
        "",
        *by_block(results, 16),
        "",
        *by_block(results, 64),
    ]


def tick(batch):
    """ "16 rows" of "decode-16@1024", "4 × 2048" of "prefill-4x2048@0". """
    name = batch.partition("-")[2].partition("@")[0]
    return name.replace("x", " × ") if "x" in name else f"{name} rows"


def kernels_plots(f):
    steps = steps_of(f)
    for kind, title in (("decode", "Decode at a context of 1,024"), ("prefill", "Prefill")):
        batches = list(dict.fromkeys(key[0] for key in steps if key[0].startswith(kind)))
        series = {}
        for rank in (16, 64):
            for mix in ("one", "distinct"):
                points = {
                    tick(batch): 100
                    * steps[batch, mix, rank]["extra_us"]
                    / steps[batch, mix, rank]["us"]
                    for batch in batches
                    if (batch, mix, rank) in steps
                }
                if points:
                    series[f"r{rank} {mix}"] = points
        if series:
            ticks = [tick(batch) for batch in batches]
            ticks = [name for name in ticks if any(name in points for points in series.values())]
            yield f"kernels-{kind}", plots.lines(
                f"{title}: what adapters add to a step", f.caption(), "% of the base step",
                ticks, series,
            )  # fmt: skip


PEFT_KINDS = ("one 128", "mixed 32", "mixed 128")


def peft_rate(f, kind):
    """Measured here, or else the one noted before; and whether it is the latter."""
    here = f.rate(f"peft {kind}")
    return (here, False) if here else (PEERS["peft"]["output_tokens_s"][kind], True)


def peft_table(f):
    rows = []
    for kind in PEFT_KINDS:
        ours = f.rate(f"lorry {kind}")
        theirs, noted = peft_rate(f, kind)
        what, batch = kind.split()
        least = TARGETS["peft"] if what == "mixed" else None
        adapters = "8, mixed in the batch" if what == "mixed" else "1"
        if ours:
            rows.append([
                batch, adapters, number(theirs) + (" (an earlier run)" if noted else ""),
                number(ours), number(ours / theirs, 1), judged(ours / theirs, least),
            ])  # fmt: skip
    return table(["batch", "adapters", "PEFT", "Lorry", "ratio", "target"], rows)


def peft_plots(f):
    kinds = [kind for kind in PEFT_KINDS if f.rate(f"lorry {kind}")]
    series = {
        "PEFT": [peft_rate(f, kind)[0] for kind in kinds],
        "Lorry": [f.rate(f"lorry {kind}") for kind in kinds],
    }
    title = "Llama-2-7B's shape, 256 in / 128 out, rank 16 on q, k, v, o"
    yield "peft", plots.bars(title, f.caption(), "output tokens/s", kinds, series)


MAKERS = {
    "base": (base_table, base_plots),
    "lora": (lora_table, lora_plots),
    "slora": (slora_table, slora_plots),
    "churn": (churn_table, churn_plots),
    "loads": (loads_table, loads_plots),
    "scale": (scale_table, scale_plots),
    "kernels": (kernels_table, kernels_plots),
    "peft": (peft_table, peft_plots),
}


# ---- all ------------------------------------------------------------------------------------


def between(text, name, lines):
    """Puts lines between the marks of a set."""
    begin, end = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
    before, rest = text.split(begin)
    after = rest.split(end)[1]
    return "\n".join([before + begin, *lines, end + after])


def section(name, figures, pictures):
    """The lines of a set; its plots go into `pictures`, by their names."""
    if not figures:
        return ["Not measured yet."]
    make_table, make_plots = MAKERS[name]
    lines = [f"{figures.caption()}.", "", *make_table(figures)]
    if any("*" in line for line in lines) and figures.starred():
        lines += ["", "\\* not of one run: GPUs of one kind differ by some percent."]
    for file, picture in make_plots(figures):
        pictures[f"{file}.svg"] = picture
        lines += ["", f"![{file}](figures/{file}.svg)"]
    return lines


def make_all(root, results):
    """{path: text} of the page and its plots."""
    page = root / "docs" / "PERFORMANCE.md"
    lines = []
    if results.exists():
        lines = [json.loads(line) for line in results.read_text().splitlines()]
    lines = [line for line in lines if line["result"].get("failed", 0) == 0]
    lines = [line for line in lines if "left_out" not in line["result"]]
    text = page.read_text()
    pictures = {}
    for name in MAKERS:
        text = between(text, name, section(name, Figures(name, lines), pictures))
    figures = root / "docs" / "figures"
    return {page: text, **{figures / name: picture for name, picture in pictures.items()}}
