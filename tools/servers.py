#!/usr/bin/env python3
"""A Kafka of one node and a Redis, each a child process on free ports of 127.0.0.1.

    with KafkaServer() as kafka, RedisServer() as redis:
        ...  # kafka.bootstrap is "127.0.0.1:PORT", redis.url is "redis://127.0.0.1:PORT/0"

Used by the demo and by the integration tests. A server lives in a scratch folder, its own temporary
one (removed at the end) or one that is given (kept). start() returns when the server answers;
stop() and kill() end it, and a start() after them continues on the same port and data. A server
also ends when the thread that started it does, so that nothing stays behind a killed test run.

Run as a program it starts both, prints where they are and waits for Ctrl-C.
Standard library only; the broker's jars come from `tools/setup kafka`.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TOOLS = Path(__file__).resolve().parent

STOP_SECONDS_MAX = 15
PORT_TRIES_MAX = 5

# Measured on two cores: 2.0 s to the first answer and 360 MB resident; without the limit to the
# first compiler tier 2.6 s. The broker's load here is too small to repay the second tier.
JVM_FLAGS = ["-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]

# Kafka's cluster id is 16 bytes in base64; every scratch cluster may have the same.
CLUSTER_ID = "lorryAAAAAAAAAAAAAAAAA"


class ServerError(Exception):
    """A server did not start; the text ends with the last lines of its log."""


def cache_dir():
    """Where tools/setup keeps what it fetches."""
    default = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "lorry")
    return Path(os.environ.get("LORRY_CACHE") or os.path.expanduser(default))


def kafka_version():
    """The version that tools/kafka/pom.xml names."""
    pom = (TOOLS / "kafka" / "pom.xml").read_text()
    return re.search(r"<kafka\.version>(.*)</kafka\.version>", pom).group(1)


def free_ports(count):
    """Ports that nobody listens on now; another process may still take one before we do."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


class Server:
    """What the two servers share: scratch folder, log, start with free ports, stop by pid."""

    name = ""
    port_count = 1
    start_seconds_max = 60

    def __init__(self, scratch=None):
        self.own_scratch = scratch is None
        self.scratch = Path(scratch or tempfile.mkdtemp(prefix=f"lorry-{self.name}-"))
        self.scratch.mkdir(parents=True, exist_ok=True)
        self.log_path = self.scratch / f"{self.name}.log"
        self.ports = []
        self.process = None

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_):
        self.close()

    @property
    def port(self):
        return self.ports[0]

    @property
    def pid(self):
        return self.process.pid

    def start(self):
        """Starts the server and waits until it answers. Ports are chosen at the first start;
        later starts keep them, since clients know them."""
        if self.ports:
            self._launch()
            return
        for attempt in range(PORT_TRIES_MAX):
            self.ports = free_ports(self.port_count)
            try:
                self._launch()
                return
            except ServerError as error:
                self.ports = []
                taken = "in use" in str(error)
                if not taken or attempt == PORT_TRIES_MAX - 1:
                    raise

    def _launch(self):
        command = self.prepare()
        log_start = self.log_path.stat().st_size if self.log_path.exists() else 0
        with open(self.log_path, "ab") as log:
            # Its own session: Ctrl-C must reach the caller only, which stops things in order.
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.scratch,
                start_new_session=True,
            )
        deadline = time.monotonic() + self.start_seconds_max
        while not self.ready(log_start):
            if self.process.poll() is not None:
                raise ServerError(self._failure("ended while starting", log_start))
            if time.monotonic() > deadline:
                self.kill()
                raise ServerError(self._failure("does not answer", log_start))
            time.sleep(0.02)

    def _failure(self, what, log_start):
        lines = self.log_since(log_start).splitlines()[-20:]
        return "\n".join([f"{self.name} {what}; {self.log_path} ends with:", *lines])

    def log_since(self, start):
        with open(self.log_path, "rb") as log:
            log.seek(start)
            return log.read().decode(errors="replace")

    def stop(self):
        """Asks the server to end, and insists after STOP_SECONDS_MAX."""
        self._end(signal.SIGTERM)

    def kill(self):
        """Ends the server at once, as a crash would."""
        self._end(signal.SIGKILL)

    def _end(self, number):
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGCONT)  # a paused one would not hear SIGTERM
        self.process.send_signal(number)
        try:
            self.process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def close(self):
        """Stops the server and removes the scratch folder if it is our own."""
        self.stop()
        if self.own_scratch:
            shutil.rmtree(self.scratch, ignore_errors=True)


class KafkaServer(Server):
    """One broker that is its own controller (KRaft). `properties` adds to or replaces lines of
    kafka/server.properties.in."""

    name = "kafka"
    port_count = 2

    def __init__(self, scratch=None, properties=None):
        super().__init__(scratch)
        self.properties = properties or {}
        self.lib = cache_dir() / f"kafka-{kafka_version()}" / "lib"

    @property
    def bootstrap(self):
        return f"127.0.0.1:{self.port}"

    def java(self, main, *arguments):
        """The command line of one of Kafka's main classes."""
        home = os.environ.get("JAVA_HOME")
        program = os.path.join(home, "bin", "java") if home else "java"
        level = "-Dorg.slf4j.simpleLogger"
        logging = [
            f"{level}.defaultLogLevel=warn",
            f"{level}.showDateTime=true",
            f"{level}.dateTimeFormat=HH:mm:ss.SSS",
            f"{level}.log.kafka.server.KafkaRaftServer=info",  # says that the server has started
        ]
        return [program, *JVM_FLAGS, *logging, "-cp", f"{self.lib}/*", main, *map(str, arguments)]

    def prepare(self):
        if not self.lib.is_dir():
            raise ServerError(f"{self.lib} is missing; run tools/setup kafka")
        config = self.scratch / "server.properties"
        data = self.scratch / "data"
        text = (TOOLS / "kafka" / "server.properties.in").read_text()
        values = {
            "CLIENT_PORT": self.ports[0],
            "CONTROLLER_PORT": self.ports[1],
            "DATA_DIR": data,
        }
        for key, value in values.items():
            text = text.replace(f"@{key}@", str(value))
        # Of two lines with the same key the later one counts.
        text += "".join(f"{key}={value}\n" for key, value in self.properties.items())
        config.write_text(text)
        if not (data / "meta.properties").exists():
            format_command = self.java(
                "kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", config
            )
            done = subprocess.run(format_command, capture_output=True, text=True)
            if done.returncode != 0:
                raise ServerError(f"kafka: format failed: {done.stderr.strip()[-2000:]}")
        return self.java("kafka.Kafka", config)

    def ready(self, log_start):
        # The broker says this once it is registered and takes requests; an open port is earlier.
        return "Kafka Server started" in self.log_since(log_start)


class RedisServer(Server):
    """A Redis that keeps nothing on disk: after a restart it is empty."""

    name = "redis"
    start_seconds_max = 20

    @property
    def url(self):
        return f"redis://127.0.0.1:{self.port}/0"

    def prepare(self):
        return [
            "redis-server",
            *("--port", str(self.port), "--bind", "127.0.0.1"),
            *("--save", "", "--appendonly", "no", "--daemonize", "no"),
            *("--dir", str(self.scratch)),
        ]

    def ready(self, log_start):
        del log_start
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        with KafkaServer() as kafka, RedisServer() as redis:
            print(f"kafka {kafka.bootstrap} pid {kafka.pid} log {kafka.log_path}")
            print(f"redis {redis.url} pid {redis.pid} log {redis.log_path}", flush=True)
            signal.pause()
    except KeyboardInterrupt:
        pass
    except ServerError as error:
        print(f"servers: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
