"""Which commands make which figures. Names of cases are those of `lorry bench --case help`."""

import dataclasses

FILE = "FILE"  # stands for a file that the program writes its results to
# A slice of the model, for cases of thousands of steps: an adapter's bytes and a step's time shrink
# by the same factor, but for the head's part of a step, which stays (so ratios come out too small).
SLICE = ("--layers", "8")


@dataclasses.dataclass
class Run:
    program: str  # "lorry", "bench_ops", "peft"
    words: list
    key: str = ""  # of its result; empty: each result's own case

    def cases(self):
        """Those that it names."""
        return self.words[self.words.index("--case") + 1].split(",") if "--case" in self.words else []

    def only(self, wanted):
        """This run with none but the wanted results; None: nothing is left."""
        if self.key:
            return self if self.key in wanted else None
        if not self.cases():
            return self
        at = self.words.index("--case") + 1
        cases = [case for case in self.cases() if case in wanted]
        words = [*self.words[:at], ",".join(cases), *self.words[at + 1 :]]
        return dataclasses.replace(self, words=words) if cases else None


@dataclasses.dataclass
class Set:
    about: str
    seconds: int  # some, on an H200
    runs: list


def cases(*names):
    """One process for all, as long as they have one shape."""
    return Run("lorry", ["bench", "--json", "--case", ",".join(names)])


def sliced(*names):
    """Likewise, of a slice of the model."""
    return Run("lorry", ["bench", "--json", "--case", ",".join(names), *SLICE])


def case(name, *words, label=""):
    key = f"{name} {label}".strip()
    return Run("lorry", ["bench", "--json", "--case", name, *words], key)


def workload(key, *words):
    return Run("lorry", ["bench", "--json", *words], key)


PEFT_SIDE = ("--shape", "llama-2-7b", "--input", "256", "--output", "128", "--rank", "16",
             "--targets", "qkvo", "--repeat", "2")  # fmt: skip


def peft_side(rows, adapters):
    key = f"lorry {'mixed' if adapters > 1 else 'one'} {rows}"
    count = ("--jobs", str(rows), "--rows", str(rows), "--adapter-count", str(adapters))
    return workload(key, *PEFT_SIDE, *count)


SETS = {
    "base": Set(
        "the base model, beside vLLM",
        300,
        [cases("A1", "A2", "E1", "A10k", "A1000"), cases("F0")],
    ),
    "lora": Set(
        "1 to 200 adapters of rank 16, 64 and mixed, beside vLLM",
        360,
        [
            cases("A1", "A2", "E1", "B1:1", "B1:8", "B1:32", "B1:200", "B2:1", "B2:8", "B2:32",
                  "B2:200", "C1", "C2", "D1"),
            case("B1:1", "--merged", label="merged"),
            cases("F0", "F"),
        ],
    ),  # fmt: skip
    "slora": Set(
        "S-LoRA's workloads to 2,000 adapters; its pool and its order of jobs as baselines",
        960,
        [
            cases("S1:5", "S1:2000", "S1:500", "S2:5", "S2:200", "S2:1000"),
            cases("S1rate:5", "S1rate:200", "S1rate:2000"),
            sliced("G16", "G16a"),
            sliced("G64", "G64a"),
            sliced("S2small:200"),
            case("S2small:200", "--arrival", *SLICE, label="arrival"),
            case("S2small:200", "--split", "10", *SLICE, label="split 10"),
            case("S2small:200", "--split", "30", *SLICE, label="split 30"),
            case("S2small:200", "--split", "50", *SLICE, label="split 50"),
            cases("S4:5", "S4:100", "S4:500"),
        ],
    ),
    "churn": Set(
        "8 adapters in turn, with room for 8, 2 and 1 of them",
        60,
        [cases("churn:8", "churn:2", "slots:2", "serial", "churn:1", "slots:1")],
    ),
    "loads": Set(
        "first loads of adapters from files in memory, and what they cost steps beside them",
        60,
        [cases("firstload")],
    ),
    "scale": Set(
        "500 adapters of popularity 1/i, ranks by turns: A1's and A2's jobs",
        90,
        [
            cases("A1", "A2", "X1", "X2", "XD1"),
            case("X2", "--rank", "8,16,32,64", label="of all ranks"),
        ],
    ),
    "kernels": Set(
        "what adapters add to each block of a step",
        120,
        [Run("bench_ops", ["--lora", "--json", FILE], "lora")],
    ),
    "peft": Set(
        "PEFT and Lorry on the same GPU, shape and batch",
        150,
        [
            peft_side(32, 8),
            peft_side(128, 8),
            peft_side(128, 1),
            Run("peft", ["--batches", "32,128"]),
        ],
    ),
}


def find(name, result):
    """The run of a set that gives such a result, for one that was made elsewhere."""
    if result.get("peer") == "peft":
        return next(run for run in SETS[name].runs if run.program == "peft")
    if "results" in result:
        return next(run for run in SETS[name].runs if run.program == "bench_ops")
    work = result["workload"]
    if name == "peft":
        kind = "mixed" if work["adapters"] > 1 else "one"
        wanted = f"lorry {kind} {work['jobs']}"
        return next(run for run in SETS[name].runs if run.key == wanted)
    wanted = result["case"]
    if work.get("split"):
        wanted += f" split {work['split']}"
    if wanted.startswith("S2small") and work["arrival"]:
        wanted += " arrival"
    if wanted == "X2" and len(work["ranks"]) > 1:
        wanted += " of all ranks"
    for run in SETS[name].runs:
        if run.key == wanted or (not run.key and wanted in run.cases()):
            return run
    raise SystemExit(f"the set {name} has no case {wanted}")
