"""Follows the demo's jobs on the frames and results topics, as any client of them would."""

import collections
import json
import time

import confluent_kafka
import msgpack

import jobs

RATE_SECONDS = 4.0  # over which tokens/s is shown
RECORDS_MAX = 1000  # taken at once


class WatchError(Exception):
    pass


class Job:
    """What the topics have said of one job."""

    def __init__(self, sent):
        self.adapter = jobs.adapter(sent)
        self.question = jobs.question(sent)
        self.tokens_max = sent["max_tokens"]
        self.attempt = (0, "")
        self.pieces = []  # (position, tokens, text) of frames
        self.final = None

    @property
    def running(self):
        return self.final is None and self.attempt[0] > 0

    @property
    def tokens(self):
        if self.final is not None:
            return self.final["usage"]["completion_tokens"]
        return self.pieces[-1][0] + self.pieces[-1][1] if self.pieces else 0

    @property
    def length(self):
        """Tokens that it will have, as a guess while it runs."""
        return self.tokens if self.final is not None else (self.tokens + self.tokens_max) / 2

    @property
    def text(self):
        return "".join(piece[2] for piece in self.pieces)

    def take_frame(self, frame):
        attempt = (frame["attempt"], frame["run"])
        if attempt < self.attempt:
            return
        if attempt > self.attempt:  # a later attempt takes over from its first position on
            self.attempt = attempt
            self.pieces = [piece for piece in self.pieces if piece[0] < frame["pos"]]
        if frame["kind"] == "tokens":
            self.pieces.append((frame["pos"], len(frame["tokens"]), frame["text"]))


def record_value(message):
    """A frame or a final. Output has its job's encoding; JSON is told by its first byte."""
    value = message.value()
    return json.loads(value) if value[:1] == b"{" else msgpack.unpackb(value)


def mean_length(group):
    """Of the jobs that have begun; 0 when none has."""
    lengths = [job.length for job in group if job.attempt[0] > 0]
    return sum(lengths) / len(lengths) if lengths else 0.0


class Watch:
    """Reads both topics from their beginning."""

    def __init__(self, bootstrap, sent, frames_topic, results_topic):
        self.jobs = {job["id"]: Job(job) for job in sent}
        self.results_topic = results_topic
        self.finals = 0
        self.start()
        self.consumer = confluent_kafka.Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": "lorry-demo",  # required, though nothing is committed
                "enable.auto.commit": False,
                "fetch.wait.max.ms": 50,
                "log_level": 0,
            }
        )
        topics = self.consumer.list_topics(timeout=10).topics
        self.consumer.assign(
            [
                confluent_kafka.TopicPartition(topic, partition, 0)
                for topic in (frames_topic, results_topic)
                for partition in topics[topic].partitions
            ]
        )

    def start(self):
        """The jobs are sent: time begins."""
        self.begin = time.monotonic()
        self.heard = self.begin  # when the last record came
        self.rates = collections.deque([(self.begin, 0)])

    def close(self):
        self.consumer.close()

    @property
    def done(self):
        return self.finals == len(self.jobs)

    def take(self, seconds):
        """Takes what comes; waits at most this long for the first."""
        for message in self.consumer.consume(RECORDS_MAX, seconds):
            if message.error():
                raise WatchError(f"reading from Kafka: {message.error()}")
            record = record_value(message)
            job = self.jobs.get(record["id"])
            if job is None:
                raise WatchError(f"a record for {record['id']}, which was not sent")
            self.heard = time.monotonic()
            if message.topic() != self.results_topic:
                job.take_frame(record)
            elif job.final is None:  # any final is valid; one that comes again changes nothing
                job.final = record
                self.finals += 1
        now = time.monotonic()
        self.rates.append((now, self.tokens))
        while now - self.rates[0][0] > RATE_SECONDS:
            self.rates.popleft()

    @property
    def tokens(self):
        return sum(job.tokens for job in self.jobs.values())

    @property
    def tokens_per_second(self):
        """Lately."""
        (then, before), (now, after) = self.rates[0], self.rates[-1]
        return (after - before) / (now - then) if now > then else 0.0

    def eta_seconds(self):
        """Tokens to come at the mean rate so far: a running job is taken to be half way between
        what it has and the most it may have, one to come as long as the mean of its adapter.
        None: not known yet."""
        if self.finals == 0:
            return None
        to_come = 0.0
        all_mean = mean_length(self.jobs.values())
        for group in self.by_adapter().values():
            mean = mean_length(group) or all_mean
            for job in group:
                if job.final is None:
                    to_come += (job.length if job.running else mean) - job.tokens
        return to_come * (time.monotonic() - self.begin) / max(self.tokens, 1)

    def by_adapter(self):
        groups = collections.defaultdict(list)
        for job in self.jobs.values():
            groups[job.adapter].append(job)
        return groups
