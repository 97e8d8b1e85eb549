"""What ends a worker before it starts, and with which exit code."""

import shutil
import socket
import subprocess

import pytest

from lab import as_flags, clean_environment

DONE, USAGE, MODEL, BROKER = 0, 2, 3, 5
NO_BROKER = "127.0.0.1:1"


def run(lab, folder, flags, environment=None, timeout_s=30):
    """(exit code, all it said) of a lorryd that is expected to end by itself."""
    done = subprocess.run(
        [lab.lorryd, *flags],
        capture_output=True,
        text=True,
        cwd=folder,
        env=clean_environment(environment),
        timeout=timeout_s,
    )
    return done.returncode, done.stdout + done.stderr


def flags_of(story, **options):
    everything = {
        **story.client_options(),
        **story.model_options(),
        "http.port": 0,
        "kafka.start_timeout_s": 1,
        **{key.replace("__", "."): value for key, value in options.items()},
    }
    return as_flags(everything)


def test_broker_down_at_start(story):
    code, said = run(
        story.lab,
        story.folder,
        flags_of(story, kafka__brokers=NO_BROKER, kafka__start_timeout_s=2),
    )
    assert code == BROKER
    assert "kafka.brokers" in said.splitlines()[-1] and NO_BROKER in said.splitlines()[-1]


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda m: (m / "model.safetensors").unlink(), ["model.safetensors"]),
        (lambda m: (m / "config.json").unlink(), ["config.json"]),
        (lambda m: (m / "tokenizer.json").unlink(), ["tokenizer.json"]),
        (lambda m: (m / "config.json").write_text("{"), ["config.json"]),
        (
            lambda m: (m / "model.safetensors").write_bytes(
                (m / "model.safetensors").read_bytes()[:50_000]
            ),
            ["model.safetensors"],
        ),
        (shutil.rmtree, ["tiny"]),
    ],
    ids=["no-weights", "no-config", "no-tokenizer", "bad-config", "cut-weights", "no-folder"],
)
def test_bad_model(story, damage, words):
    model = story.folder / "tiny"
    shutil.copytree(story.model, model)
    damage(model)
    code, said = run(
        story.lab, story.folder, flags_of(story, model=model, kafka__brokers=NO_BROKER)
    )
    assert code == MODEL, said
    assert all(word in said.splitlines()[-1] for word in words), said


@pytest.mark.parametrize(
    "text, words",
    [
        ("kafka:\n  broker: localhost:9092\n", ["broker", "kafka.brokers"]),
        ("kafak:\n  brokers: localhost:9092\n", ["kafak", "kafka"]),
        ("scheduler:\n  rows: many\n", ["scheduler.rows", "many"]),
        ("scheduler:\n  rows: 65537\n", ["scheduler.rows"]),
        ("kafka: [\n", ["line"]),
    ],
    ids=["key", "section", "type", "range", "syntax"],
)
def test_bad_configuration_file(story, text, words):
    (story.folder / "lorry.yaml").write_text(text)
    code, said = run(story.lab, story.folder, ["--model", story.model, "--http.port", "0"])
    assert code == USAGE
    assert all(word in said for word in words), said
    assert "lorry.yaml" in said


def test_bad_flags_and_environment(story):
    for flags, environment, words in [
        (["--kafka.broker", "x"], {}, ["--kafka.broker", "--kafka.brokers"]),
        (["--scheduler.rows", "-1"], {}, ["scheduler.rows"]),
        (["stray"], {}, ["stray"]),
        ([], {"LORRY_KAFKA_BROKER": "x"}, ["LORRY_KAFKA_BROKER", "LORRY_KAFKA_BROKERS"]),
        (["-X", "no.such.property=1"], {}, ["no.such.property"]),
        (["--device.kind", "abacus"], {}, ["device.kind", "cpu"]),
        (["--pool.bytes", "1M"], {}, ["pool"]),
        (["--pool.bytes", "64M", "--store.bytes", "32M"], {}, ["store.bytes"]),
        (["--redis.url", "http://127.0.0.1"], {}, ["redis.url"]),
    ]:
        base = ["--model", story.model, "--http.port", "0", "--device.kind", "cpu",
                "--kafka.brokers", story.bootstrap]  # fmt: skip
        code, said = run(story.lab, story.folder, [*base, *flags], environment)
        assert code == USAGE, (flags, environment, said)
        assert all(word in said for word in words), said


def test_configuration_sources_override_each_other(story):
    """flag > environment > file > default."""
    (story.folder / "lorry.yaml").write_text("kafka:\n  brokers: 127.0.0.1:1\n  start_timeout_s: 1\n")
    base = ["--model", story.model, "--device.kind", "cpu", "--http.port", "0"]
    for flags, environment, winner in [
        ([], {}, "127.0.0.1:1"),
        ([], {"LORRY_KAFKA_BROKERS": "127.0.0.1:2"}, "127.0.0.1:2"),
        (["--kafka.brokers", "127.0.0.1:3"], {"LORRY_KAFKA_BROKERS": "127.0.0.1:2"}, "127.0.0.1:3"),
    ]:
        code, said = run(story.lab, story.folder, [*base, *flags], environment)
        assert code == BROKER, said
        assert winner in said.splitlines()[-1]


def test_missing_topic_is_named(story):
    story.create_topics()
    for option in ("kafka__jobs", "kafka__frames", "kafka__results", "kafka__dead"):
        code, said = run(story.lab, story.folder, flags_of(story, **{option: "no.such.topic"}))
        assert code == USAGE
        last = said.splitlines()[-1]
        assert "no.such.topic" in last and option.replace("__", ".") in last
        assert "lorry topics create" in last


@pytest.mark.parametrize("policy", ["compact", "compact,delete"])
def test_compacted_jobs_topic_is_refused(story, policy):
    story.create_topics(configs={"jobs": {"cleanup.policy": policy}})
    code, said = run(story.lab, story.folder, flags_of(story))
    assert code == USAGE
    assert story.jobs in said.splitlines()[-1] and policy in said.splitlines()[-1]


def test_taken_http_port(story):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        code, said = run(story.lab, story.folder, flags_of(story, http__port=port))
    assert code == USAGE
    assert "http.port" in said and str(port) in said


def test_help_and_version(story):
    code, said = run(story.lab, story.folder, ["--help"])
    assert code == DONE and "--kafka.brokers" in said and "SIGTERM" in said
    code, said = run(story.lab, story.folder, ["--version"])
    assert code == DONE and said.startswith("lorryd ")


def test_secrets_are_not_printed(story):
    """A password in the configuration is in no log line."""
    flags = flags_of(story, redis__url="redis://:hunter2@127.0.0.1:1/0", kafka__brokers=NO_BROKER)
    flags += ["-X", "sasl.password=hunter3", "--log.level", "debug"]
    code, said = run(story.lab, story.folder, flags)
    assert code == BROKER
    assert "hunter" not in said
