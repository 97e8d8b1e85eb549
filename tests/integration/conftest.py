"""Fixtures of the stories. LORRY_BIN names the build folder (default build/dev)."""

import itertools
import os
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import folders  # noqa: E402
import lab as laboratory  # noqa: E402
from servers import KafkaServer, RedisServer  # noqa: E402

ADAPTERS = {  # id: how it is made; ranks and modules differ
    "alpha": {"seed": 1, "rank": 4},
    "beta": {"seed": 2, "rank": 8, "modules": ("q_proj", "k_proj", "v_proj", "o_proj")},
    "gamma": {"seed": 3, "rank": 1, "modules": ("down_proj",)},
    "delta": {"seed": 4, "rank": 24, "modules": tuple(folders.MODULES)},
}

serial = itertools.count()


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    binaries = Path(os.environ.get("LORRY_BIN") or ROOT / "build" / "dev").resolve()
    for program in (binaries / "worker" / "lorryd", binaries / "tools" / "lorry"):
        assert program.exists(), f"{program} is missing: build it first"
    scratch = tmp_path_factory.mktemp("lab")
    model = folders.make_model(scratch / "tiny", positions=2048)
    adapters = scratch / "adapters"
    adapters.mkdir()
    for adapter_id, how in ADAPTERS.items():
        folders.make_adapter(adapters / adapter_id, **how)
    with KafkaServer(scratch / "kafka") as kafka, RedisServer(scratch / "redis") as redis_server:
        yield laboratory.Lab(kafka, redis_server, binaries, model, adapters)


@pytest.fixture(scope="session")
def long_model(tmp_path_factory):
    """A model whose context is so long that a job without end runs as long as a story wants."""
    return folders.make_model(tmp_path_factory.mktemp("long") / "tiny", positions=100_000)


@pytest.fixture
def story(lab, tmp_path, request):
    number = next(serial)
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[:60].strip("-")
    one = laboratory.Story(f"s{number}-{name}", lab, tmp_path, database=number % 16)
    request.node.story = one
    yield one
    one.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    story = getattr(item, "story", None)
    if story is not None and report.failed:
        report.sections += story.report()
    return report
