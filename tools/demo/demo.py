#!/usr/bin/env python3
"""Lorry from end to end on this machine: `make demo`.

    demo.py [--jobs N]

Starts a Kafka of one node and a Redis on free ports of 127.0.0.1, makes the topics, starts lorryd
with SmolLM2-135M-Instruct and the four adapters of demo/adapters, sends N jobs (200) with
`lorry submit`, shows their tokens as they stream, collects the finals with `lorry collect`, and
prints a table by adapter and the same questions answered through each. Everything it starts and
writes is gone at the end, also after Ctrl-C.

Exit code: 0 all jobs succeeded; 1 some did not, or something did not work; 130 interrupted."""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.error
import urllib.request
from pathlib import Path

signal.signal(signal.SIGINT, signal.SIG_DFL)  # until there is something to clean up

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE.parent))

import jobs  # noqa: E402
import report  # noqa: E402
from panel import Panel  # noqa: E402
from servers import KafkaServer, RedisServer, ServerError, kafka_version  # noqa: E402
from terminal import Terminal  # noqa: E402
from watch import Watch, WatchError  # noqa: E402

ADAPTERS = ROOT / "demo" / "adapters"
QUESTIONS = ROOT / "demo" / "questions.txt"
LORRY = ROOT / "build" / "release" / "tools" / "lorry"
LORRYD = ROOT / "build" / "release" / "worker" / "lorryd"

ANSWERED = ["What is the opposite of hot?", "Why is the sea salty?"]  # shown side by side

READY_SECONDS_MAX = 120
SILENCE_SECONDS_MAX = 120  # without a frame or a final
DRAIN_SECONDS_MAX = 60
SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}

CONFIGURATION = """\
model:
  dir: {model}
adapters:
  dir: {adapters}
pool:
  bytes: 512M
kafka:
  brokers: {brokers}
  partitions: 4
redis:
  url: {redis}
http:
  port: 0
state:
  dir: {scratch}/state
"""


class DemoError(Exception):
    """Something did not work; the text says what."""


def interrupted(number, _):
    for each in SIGNALS:  # cleaning up is not to be interrupted in turn
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt(number)


def environment():
    """Ours, without options of lorry: the demo is to run the same everywhere."""
    return {name: value for name, value in os.environ.items() if not name.startswith("LORRY_")}


def guarded(command):
    """A command line that ends with the process that starts it, whatever ends that."""
    return ["setpriv", "--pdeathsig", "TERM", *map(str, command)]


class Worker:
    """lorryd as a child process, its log in a file."""

    def __init__(self, config, log):
        self.log = log
        with open(log, "wb") as file:
            # Its own session: Ctrl-C is for the demo, which then stops it.
            self.process = subprocess.Popen(
                guarded([LORRYD, "--config", config]),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment(),
                start_new_session=True,
            )

    def lines(self):
        return self.log.read_text(errors="replace").splitlines()

    def check(self):
        code = self.process.poll()
        if code is not None:
            tail = "\n".join(self.lines()[-15:])
            raise DemoError(f"lorryd ended with exit code {code}; its log ends with:\n{tail}")

    def ready(self):
        """Whether /readyz says so. The port is any free one: the log has it."""
        found = re.search(r"listening host=\S+ port=(\d+)", "\n".join(self.lines()))
        if found is None:
            return False
        url = f"http://127.0.0.1:{found.group(1)}/readyz"
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def device(self):
        """Where the model runs: "cpu" or "cuda"."""
        return re.search(r" ready model=.* device=(\w+)", "\n".join(self.lines())).group(1)

    def wait_ready(self):
        deadline = time.monotonic() + READY_SECONDS_MAX
        while not self.ready():
            self.check()
            if time.monotonic() > deadline:
                raise DemoError(f"lorryd is not ready after {READY_SECONDS_MAX} s")
            time.sleep(0.05)

    def drain(self):
        """Asks it to end and returns what it says about that."""
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(DRAIN_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            raise DemoError(f"lorryd does not end within {DRAIN_SECONDS_MAX} s") from None
        said = [line for line in self.lines() if " drained " in line]
        if code != 0 or not said:
            raise DemoError(f"lorryd ended with exit code {code} when it was told to drain")
        return said[-1]

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Demo:
    def __init__(self, terminal, scratch, stack, count):
        self.terminal = terminal
        self.scratch = scratch
        self.stack = stack  # of what must be stopped
        self.config = scratch / "lorry.yaml"
        self.jobs_file = scratch / "jobs.jsonl"
        adapters = sorted(path.name for path in ADAPTERS.iterdir() if path.is_dir())
        self.sent = jobs.make(QUESTIONS, adapters, count)
        self.setup_seconds = 0.0
        self.kafka = None
        self.worker = None

    def done(self, what, detail, since):
        t = self.terminal
        seconds = time.monotonic() - since
        row = f"{t.paint('green', t.tick)} {what:<8}{t.paint('dim', f'{detail:<36}')}"
        t.say(f"  {row}{seconds:>7.1f} s")

    def lorry(self, *arguments, good=(0,)):
        """Runs the tool; what it says matters only where it fails."""
        done = subprocess.run(
            guarded([LORRY, *arguments, "--config", self.config]),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=environment(),
            start_new_session=True,
        )
        if done.returncode not in good:
            said = done.stderr.strip()
            raise DemoError(f"lorry {arguments[0]}: exit code {done.returncode}\n{said}")

    def start(self, server):
        # Killed, not stopped: nothing of theirs is kept.
        self.stack.callback(server.kill)
        server.start()
        return server

    def set_up(self):
        begin = since = time.monotonic()
        self.kafka = self.start(KafkaServer(self.scratch / "kafka"))
        self.done("Kafka", f"{kafka_version()}, {self.kafka.bootstrap}", since)

        since = time.monotonic()
        redis = self.start(RedisServer(self.scratch / "redis"))
        self.done("Redis", f"127.0.0.1:{redis.port}", since)

        since = time.monotonic()
        ask = [ROOT / "tools" / "setup", "--path", "model"]
        model = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
        self.config.write_text(
            CONFIGURATION.format(
                model=json.dumps(model),
                adapters=json.dumps(str(ADAPTERS)),
                brokers=self.kafka.bootstrap,
                redis=redis.url,
                scratch=self.scratch,
            )
        )
        self.lorry("topics", "create")
        self.done("topics", "lorry topics create", since)

        since = time.monotonic()
        self.worker = Worker(self.config, self.scratch / "lorryd.log")
        self.stack.callback(self.worker.kill)
        self.worker.wait_ready()
        self.done("lorryd", f"{Path(model).name} on {self.worker.device()}", since)
        self.setup_seconds = time.monotonic() - begin

    def run(self):
        """Sends the jobs and follows them to their end. Returns the seconds that this took."""
        watch = Watch(self.kafka.bootstrap, self.sent, "lorry.frames", "lorry.results")
        with contextlib.closing(watch):
            jobs.write(self.jobs_file, self.sent)
            begin = time.monotonic()
            self.lorry("submit", self.jobs_file)
            self.done("jobs", f"{len(self.sent)} by lorry submit", begin)
            panel = Panel(self.terminal, watch)
            watch.start()
            while not watch.done:
                watch.take(0.05)
                panel.show()
                self.worker.check()
                if time.monotonic() - watch.heard > SILENCE_SECONDS_MAX:
                    raise DemoError(
                        f"nothing was heard of {len(self.sent) - watch.finals} jobs for"
                        f" {SILENCE_SECONDS_MAX} s"
                    )
            seconds = watch.heard - begin
            self.terminal.wipe()
        return seconds

    def collect(self):
        """The finals, by the tool that a user has for it."""
        results = self.scratch / "results.jsonl"
        manifest = f"{self.jobs_file}.lorry.json"
        self.lorry("collect", manifest, "-o", results, good=(0, 1))  # 1: failures() names them
        finals = [json.loads(line) for line in results.read_text().splitlines()]
        if {final["id"] for final in finals} != {job["id"] for job in self.sent}:
            raise DemoError(f"lorry collect gave {len(finals)} finals for {len(self.sent)} jobs")
        return finals

    def show(self):
        t = self.terminal
        t.say(t.paint("bold", f"{len(self.sent)} jobs over a base model and 4 LoRA adapters"))
        t.say()
        self.set_up()
        seconds = self.run()
        finals = self.collect()
        drained = self.worker.drain()
        report.table(t, finals)
        report.answers(t, self.sent, finals, ANSWERED)
        t.say()
        failed = report.failures(t, finals)
        tokens = sum(final["usage"]["completion_tokens"] for final in finals)
        prompt = sum(final["usage"]["prompt_tokens"] for final in finals)
        succeeded = f"{len(finals) - failed} of {len(finals)} jobs succeeded"
        t.say(f"  {t.paint('red' if failed else 'green', succeeded)} in {seconds:.1f} s")
        t.say(f"  {tokens:,} tokens, {tokens / seconds:.0f} tokens/s; {prompt:,} prompt tokens")
        t.say(f"  set-up took {self.setup_seconds:.1f} s")
        for line in textwrap.wrap(f"lorryd: {drained}", t.width - 2):
            t.say(t.paint("dim", f"  {line}"))
        return 1 if failed else 0


def run(terminal, scratch, count):
    with contextlib.ExitStack() as stack:
        try:
            return Demo(terminal, scratch, stack, count).show()
        except KeyboardInterrupt:
            terminal.say("  interrupted; stopping what was started")
            return 130
        except (DemoError, ServerError, WatchError, OSError, subprocess.SubprocessError) as error:
            terminal.say(f"  {terminal.paint('red', 'failed')}: {error}")
            return 1


def main():
    parser = argparse.ArgumentParser(description="Lorry from end to end on this machine.")
    parser.add_argument("--jobs", type=int, default=200, metavar="N", help="how many (200)")
    arguments = parser.parse_args()
    if arguments.jobs < 1:
        parser.error("--jobs: at least 1")
    for program in (LORRY, LORRYD):
        if not program.exists():
            parser.exit(1, f"demo: {program} is missing; run `make build`\n")
    terminal = Terminal()
    # From here on there is something to clean up: a signal is to come between no two of these.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    scratch = Path(tempfile.mkdtemp(prefix="lorry-demo-"))
    try:
        for number in SIGNALS:
            signal.signal(number, interrupted)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return run(terminal, scratch, arguments.jobs)
    except KeyboardInterrupt:
        return 130
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        terminal.wipe()  # last: the terminal may be gone


if __name__ == "__main__":
    sys.exit(main())
