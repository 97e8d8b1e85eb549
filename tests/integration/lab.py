"""A story's laboratory: its topics, its workers, what it sends and what it reads back.

One broker and one Redis serve all stories; each story has topics, a group, a Redis database and a
scratch folder of its own. Workers and tools are the real programs, as processes.
"""

import json
import os
import re
import signal
import subprocess
import time
import urllib.error
import urllib.request

import msgpack
import redis
from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic

import device
import folders
from outcomes import Record, Sent, best_finals, check_finals, decode

# A broker that stories stop is no news, and soon there again.
QUIET = {"log_level": 2, "reconnect.backoff.max.ms": 500}

# A GPU's pool is given in pages.
POOL = {"pool.pages": (64 << 20) // folders.PAGE_BYTES} if device.ON_GPU else {"pool.bytes": "64M"}
PATIENCE_S = 40  # for what takes a second or two on an idle machine


def eventually(what, condition, timeout_s=PATIENCE_S, pause_s=0.02):
    """Waits until `condition` gives something true, and returns it."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(pause_s)


def clean_environment(extra=None):
    """Without what the caller's own configuration would change."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("LORRY_")}
    return {**kept, **(extra or {})}


def as_flags(options):
    """A list as value is a flag that is given several times."""
    return [
        f"--{name}={each}"
        for name, value in options.items()
        for each in (value if isinstance(value, list) else [value])
    ]


# ---- the worker -----------------------------------------------------------------------------


class Worker:
    """One lorryd."""

    def __init__(self, program, name, options, folder, properties=()):
        self.name = name
        self.log_path = folder / f"{name}.log"
        flags = as_flags(options)
        # A rebalance is heard of with a heartbeat: 3 s is librdkafka's own.
        for each in ("heartbeat.interval.ms=300", *properties):
            flags += ["-X", each]
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                [program, *flags],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                env=clean_environment(),
            )

    @property
    def log(self):
        return self.log_path.read_text(errors="replace")

    def log_tail(self):
        return "\n".join(self.log.splitlines()[-60:])

    @property
    def running(self):
        return self.process.poll() is None

    def port(self):
        found = re.search(r"^\S+ info +http listening .*port=(\d+)", self.log, re.M)
        return int(found.group(1)) if found else None

    def get(self, path):
        """(status, text) of its HTTP server; (0, "") while there is none."""
        port = self.port()
        if port is None:
            return 0, ""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metrics(self):
        """{name or name{labels}: value} of /metrics."""
        lines = self.get("/metrics")[1].splitlines()
        pairs = [line.rsplit(" ", 1) for line in lines if line and not line.startswith("#")]
        return {name: float(value) for name, value in pairs}

    def metric(self, name):
        """Of one label where the name has it in braces, else the sum over all."""
        found = self.metrics().items()
        whole = f"lorry_{name}"
        return sum(value for key, value in found if whole in (key, key.split("{")[0]))

    def wait_ready(self, partitions=1):
        """Until it has loaded the model, reached the broker and been given partitions."""

        def ready():
            assert self.running, f"{self.name} ended with {self.process.returncode}"
            return (
                self.get("/readyz")[0] == 200 and self.metric("partitions") >= partitions
            )

        eventually(f"{self.name} is ready with {partitions} partitions", ready)
        return self

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def wait(self, timeout_s=PATIENCE_S):
        return self.process.wait(timeout_s)

    def stop(self):
        """SIGTERM, and its exit code."""
        self.terminate()
        return self.wait()

    def kill(self):
        if self.running:
            self.process.kill()
            self.process.wait()


# ---- the story ------------------------------------------------------------------------------


class Reader:
    """Reads topics from their beginning, whole, on one's own: no group."""

    def __init__(self, bootstrap, topics):
        self.consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": "reader",
                "enable.auto.commit": False,
                "fetch.wait.max.ms": 50,
                "allow.auto.create.topics": False,
                **QUIET,
            }
        )
        self.records = {topic: [] for topic in topics}
        metadata = self.consumer.list_topics(timeout=PATIENCE_S)
        self.partitions = [
            TopicPartition(topic, partition, OFFSET_BEGINNING)
            for topic in topics
            for partition in metadata.topics[topic].partitions
        ]
        self.next = {(p.topic, p.partition): 0 for p in self.partitions}
        self.consumer.assign(self.partitions)

    def close(self):
        self.consumer.close()

    def poll(self, timeout_s=0.05):
        for m in self.consumer.consume(500, timeout_s):
            if m.error() is not None:
                if m.error().retriable() or m.error().code() < 0:
                    continue  # the broker is away, or the end of a partition
                raise KafkaException(m.error())
            self.next[(m.topic(), m.partition())] = m.offset() + 1
            record = Record(
                topic=m.topic(),
                partition=m.partition(),
                offset=m.offset(),
                key=m.key(),
                value=m.value(),
                headers=dict(m.headers() or []),
                timestamp_ms=m.timestamp()[1],
            )
            self.records[m.topic()].append(record)

    def to_end(self):
        """Until all is read that was there when the call was made."""
        ends = {
            (p.topic, p.partition): self.consumer.get_watermark_offsets(p, PATIENCE_S)[1]
            for p in self.partitions
        }
        eventually(
            "the reader is at the end",
            lambda: self.poll() or all(self.next[at] >= end for at, end in ends.items()),
            pause_s=0,
        )


class Story:
    def __init__(self, name, lab, folder, database, partitions=4):
        self.name, self.lab, self.folder = name, lab, folder
        self.bootstrap = lab.kafka.bootstrap
        self.redis_url = f"redis://127.0.0.1:{lab.redis.port}/{database}"
        self.redis = redis.Redis.from_url(self.redis_url, decode_responses=True)
        self.redis.flushdb()
        self.group = name
        self.jobs, self.frames, self.results, self.dead = (
            f"{name}.{kind}" for kind in ("jobs", "frames", "results", "dead")
        )
        self.partitions = partitions
        self.model, self.adapters = lab.model, lab.adapters
        self.workers, self.sent = [], []
        self.tool_logs = []
        self.reader = None
        self.created = False

    # -- topics

    def create_topics(self, partitions=None, configs=None):
        """`configs`: {"jobs": {…}, "results": {…}} of topics that are not as usual."""
        configs = configs or {}
        self.partitions = partitions or self.partitions
        counts = {"jobs": self.partitions, "frames": 2, "results": 2, "dead": 1}
        self.lab.create_topics(
            [
                NewTopic(f"{self.name}.{kind}", count, 1, config=configs.get(kind, {}))
                for kind, count in counts.items()
            ]
        )
        self.created = True

    # -- programs

    def client_options(self):
        return {
            "kafka.brokers": self.bootstrap,
            "kafka.group": self.group,
            "kafka.jobs": self.jobs,
            "kafka.frames": self.frames,
            "kafka.results": self.results,
            "kafka.dead": self.dead,
            "redis.url": self.redis_url,
        }

    def model_options(self):
        return {
            "model": self.model,
            "adapters": self.adapters,
            "device.kind": "cuda" if device.ON_GPU else "cpu",
            "device.threads": 1,
            **POOL,
            "store.bytes": "128M",
        }

    def worker(self, name=None, ready=True, properties=(), **options):
        """Starts a lorryd; options as pool__pages=100 for pool.pages."""
        if not self.created:
            self.create_topics()
        name = name or f"worker-{len(self.workers)}"
        everything = {
            **self.client_options(),
            **self.model_options(),
            "kafka.session_timeout_ms": 6000,
            "http.port": 0,
            "worker.id": name,
            "state.dir": self.folder / "state",
            **{key.replace("__", "."): value for key, value in options.items()},
        }
        worker = Worker(self.lab.lorryd, name, everything, self.folder, properties)
        self.workers.append(worker)
        return worker.wait_ready() if ready else worker

    def tool(self, *words, options=None, expect=0, timeout_s=PATIENCE_S, **how):
        """Runs `lorry`; its exit code must be `expect` (None: any)."""
        done = subprocess.run(
            [self.lab.lorry, *map(str, words), *as_flags(options or {})],
            capture_output=True,
            cwd=self.folder,
            env=clean_environment(),
            timeout=timeout_s,
            **how,
        )
        text = f"$ lorry {' '.join(map(str, words))}\nexit {done.returncode}\n"
        text += done.stdout.decode(errors="replace")[-3000:]
        text += done.stderr.decode(errors="replace")[-3000:]
        self.tool_logs.append(text)
        assert expect is None or done.returncode == expect, text
        return done

    def reference(self, jobs, **options):
        """The finals that `lorry run` gives for the jobs, by id: no Kafka, no Redis, other
        batches."""
        source, target = self.folder / "reference.jsonl", self.folder / "reference.out.jsonl"
        source.write_text("".join(json.dumps(job) + "\n" for job in jobs))
        everything = {**self.model_options(), **options}
        self.tool("run", source, "-o", target, options=everything, expect=None, timeout_s=120)
        finals = [json.loads(line) for line in target.open(newline="\n")]
        return {final["id"]: final for final in finals}

    # -- jobs

    def send_raw(self, value, key=None, headers=None, timestamp_ms=0, partition=None):
        """Sends bytes; returns where they are."""
        return self.lab.send(
            self.jobs, [(value, key, headers or [], timestamp_ms, partition)]
        )[0]

    def send(self, jobs, encoding="msgpack", timestamp_ms=0, partition=None):
        """Sends jobs (dicts with an id), keyed by adapter. Returns them as Sent, and keeps them
        for check()."""
        records = []
        for job in jobs:
            body = job.get("body", job)
            adapter = body.get("model") if body is not job else job.get("adapter")
            if encoding == "json":
                value, kind = json.dumps(job, ensure_ascii=False).encode(), b"application/json"
            else:
                value, kind = msgpack.packb(job), b"application/msgpack"
            key = adapter.encode() if adapter else None
            records.append((value, key, [("content-type", kind)], timestamp_ms, partition))
        places = self.lab.send(self.jobs, records)
        sent = [
            Sent(
                id=job.get("id") or f"@{at.topic}/{at.partition}/{at.offset}",
                topic=at.topic,
                partition=at.partition,
                offset=at.offset,
                encoding=encoding,
                job=job,
                generation=job.get("generation", 0),
            )
            for job, at in zip(jobs, places)
        ]
        self.sent += sent
        return sent

    # -- what comes back

    def read(self):
        """Takes what has come, without waiting long."""
        if self.reader is None:
            topics = (self.frames, self.results, self.dead)
            self.reader = Reader(self.bootstrap, topics)
            self.decoded = 0
        self.reader.poll()
        self._decode()

    def read_to_end(self):
        self.read()
        self.reader.to_end()
        self._decode()

    def _decode(self):
        for topic in (self.frames, self.results):
            for record in self.reader.records[topic]:
                if not record.body:
                    decode(record)

    def records(self, topic):
        self.read()
        return self.reader.records[topic]

    def finals(self):
        """{id: body} of what has come so far."""
        best = best_finals(self.records(self.results))
        return {key[0]: record.body for key, record in best.items()}

    def frames_of(self, job_id):
        return [r.body for r in self.records(self.frames) if r.body["id"] == job_id]

    def streaming(self, *job_ids, tokens=1):
        """True once these jobs have streamed so many tokens."""
        return all(
            sum(len(frame["tokens"]) for frame in self.frames_of(job_id)) >= tokens
            for job_id in job_ids
        )

    def wait_streaming(self, *job_ids, tokens=1):
        eventually(f"{job_ids} stream", lambda: self.streaming(*job_ids, tokens=tokens))

    def wait_finals(self, count=None, timeout_s=PATIENCE_S, alive=True):
        """Until each job sent (or `count`) has a final, while the workers live."""
        count = len(self.sent) if count is None else count

        def all_there():
            for worker in self.workers if alive else ():
                code = worker.process.poll()
                assert code in (None, 0, -signal.SIGKILL), f"{worker.name} ended with {code}"
            return len(self.finals()) >= count

        eventually(f"{count} finals", all_there, timeout_s, pause_s=0)
        return self.finals()

    def check(self):
        """Waits for all finals and checks them; returns them by id."""
        self.wait_finals()
        self.read_to_end()
        return check_finals(
            self.sent, self.reader.records[self.results], self.reader.records[self.frames]
        )

    def committed(self):
        """{partition: next offset} of the group on the jobs topic."""
        wanted = [TopicPartition(self.jobs, n) for n in range(self.partitions)]
        request = ConsumerGroupTopicPartitions(self.group, wanted)
        answer = self.lab.admin.list_consumer_group_offsets([request])[self.group].result(
            PATIENCE_S
        )
        return {p.partition: p.offset if p.offset >= 0 else 0 for p in answer.topic_partitions}

    def check_commits(self):
        """Invariant 1 as an outsider sees it: no committed offset passes a job without a final.
        The offsets are read before the finals, so a final may only be early."""
        committed = self.committed()
        self.read_to_end()
        answered = {
            (record.body["source"]["partition"], record.body["source"]["offset"])
            for record in self.reader.records[self.results]
        }
        for partition, end in committed.items():
            missing = [o for o in range(end) if (partition, o) not in answered]
            assert not missing, f"partition {partition} is committed up to {end}, past {missing}"
        return committed

    def wait_committed(self):
        """Until the group has committed the end of every partition of the jobs topic."""
        ends = {}
        for at in self.sent:
            ends[at.partition] = max(ends.get(at.partition, 0), at.offset + 1)

        def at_end():
            committed = self.committed()
            return all(committed[p] == end for p, end in ends.items())

        eventually(f"offsets {ends} are committed", at_end, pause_s=0.1)

    def close(self):
        for worker in self.workers:
            worker.kill()
        if self.reader is not None:
            self.reader.close()
        self.redis.close()
        if self.created:
            self.lab.delete_topics([self.jobs, self.frames, self.results, self.dead])

    def report(self):
        """(title, text) of each process, for a story that failed."""
        logs = [(worker.name, worker.log_tail()) for worker in self.workers]
        return logs + [("lorry", text) for text in self.tool_logs]


class Lab:
    """The servers, programs and folders that all stories share."""

    def __init__(self, kafka, redis_server, binaries, model, adapters):
        self.kafka, self.redis = kafka, redis_server
        self.lorryd, self.lorry = binaries / "worker" / "lorryd", binaries / "tools" / "lorry"
        self.model, self.adapters = model, adapters
        self.admin = AdminClient({"bootstrap.servers": kafka.bootstrap, **QUIET})
        self.producer = Producer(
            {
                "bootstrap.servers": kafka.bootstrap,
                "partitioner": "murmur2_random",
                "linger.ms": 2,
                "sticky.partitioning.linger.ms": 0,  # jobs without key go everywhere
                "allow.auto.create.topics": False,
                **QUIET,
            }
        )

    def create_topics(self, topics):
        left = {topic.topic: topic for topic in topics}

        def created():
            for name, done in self.admin.create_topics(list(left.values())).items():
                try:
                    done.result(PATIENCE_S)
                    del left[name]
                except KafkaException as error:
                    # A broker that was stopped for some seconds is fenced until its next heartbeat.
                    if error.args[0].code() != KafkaError.INVALID_REPLICATION_FACTOR:
                        raise
            return not left

        eventually("the topics are made", created)

        def known():
            there = self.admin.list_topics(timeout=PATIENCE_S).topics
            return all(
                t.topic in there and len(there[t.topic].partitions) == t.num_partitions
                for t in topics
            )

        eventually("the topics are there", known)

    def delete_topics(self, topics):
        self.admin.delete_topics(topics)  # nobody waits for it: names are not used again

    def topic_config(self, topics):
        """{topic: {name: value}}"""
        asked = [ConfigResource(ConfigResource.Type.TOPIC, topic) for topic in topics]
        answers = self.admin.describe_configs(asked)
        return {
            resource.name: {name: entry.value for name, entry in done.result(PATIENCE_S).items()}
            for resource, done in answers.items()
        }

    def send(self, topic, records):
        """Sends (value, key, headers, timestamp_ms, partition); returns their places in order."""
        places = [None] * len(records)

        def delivered(index):
            def note(error, message):
                assert error is None, error
                places[index] = TopicPartition(topic, message.partition(), message.offset())

            return note

        for index, (value, key, headers, timestamp_ms, partition) in enumerate(records):
            self.producer.produce(
                topic,
                value=value,
                key=key,
                headers=headers,
                timestamp=timestamp_ms,
                partition=-1 if partition is None else partition,
                on_delivery=delivered(index),
            )
        assert self.producer.flush(PATIENCE_S) == 0
        assert all(place is not None for place in places)
        return places
