"""Adapters that are added, replaced and removed while a worker runs. Whatever happens to the
folder, a final's answer is the one of exactly that revision which it names."""

import shutil
import threading
import time

import pytest

import device
import folders
from lab import eventually
from outcomes import check_same


@pytest.fixture
def root(story, tmp_path):
    """An adapter root of this story's own, empty."""
    folder = tmp_path / "root"
    folder.mkdir()
    story.adapters = folder
    return folder


def job(job_id, adapter, max_tokens=40, temperature=0.9):
    return {
        "id": job_id,
        "adapter": adapter,
        "prompt": f"job number {job_id[-3:]}",
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "temperature": temperature,
        "seed": 11,
    }


def test_replaced_while_its_jobs_run(story, root, long_model):
    """The old revision serves who came before, to the end; the new one who comes after."""
    story.model = long_model
    folders.place_adapter(root, "mine", seed=1, rank=4)
    before = [job(f"before-{i}", "mine", max_tokens=2500) for i in range(3)]
    expected = story.reference(before)
    story.worker(scheduler__rows=8)
    story.send(before)
    story.wait_streaming(*(each["id"] for each in before))
    folders.place_adapter(root, "mine", seed=2, rank=8)
    after = [job(f"after-{i}", "mine") for i in range(3)]
    story.send(after)
    story.wait_finals(3)
    assert set(story.finals()) == {each["id"] for each in after}, "both run side by side"
    finals = story.check()
    expected |= story.reference(after)
    check_same(finals, expected)
    assert len({final["revision"] for final in finals.values()}) == 2


def test_replaced_between_two_attempts(story, root, long_model):
    """A job that is run again is run as a whole with what is there then."""
    story.model = long_model
    folders.place_adapter(root, "mine", seed=1, rank=4)
    jobs = [job(f"j-{i}", "mine", max_tokens=2500) for i in range(2)]
    first = story.worker("first")
    story.send(jobs)
    story.wait_streaming(*(each["id"] for each in jobs), tokens=5)
    first.kill()
    folders.place_adapter(root, "mine", seed=2, rank=4)
    expected = story.reference(jobs)
    story.worker("second")
    finals = story.check()  # its frames are those of one attempt, and equal the final's text
    check_same(finals, expected)
    assert {final["attempt"] for final in finals.values()} == {2}


@pytest.mark.parametrize("store_bytes", ["64M", "3M"])
def test_replaced_again_and_again(story, root, store_bytes):
    """Jobs are preempted, adapters evicted and replaced, all at once; with 3M the store holds
    hardly more than what is resident."""
    versions, names = 4, [f"a{i}" for i in range(4)]

    def place(version):
        for number, name in enumerate(names):
            folders.place_adapter(
                root, name, seed=10 * version + number, rank=8, modules=tuple(folders.MODULES)
            )

    jobs = [
        job(f"j-{i:03}", names[i % len(names)], max_tokens=20 + 100 * (i % 3)) for i in range(160)
    ]
    expected = []
    for version in range(versions):
        place(version)
        expected.append(story.reference(jobs))
    worker = story.worker(
        pool__pages=44, scheduler__rows=8, scheduler__wait_steps=20, store__bytes=store_bytes
    )
    done = threading.Event()

    def replace():
        turn = 0
        while not done.is_set():
            place(turn % versions)
            turn += 1
            time.sleep(0.1)

    replacing = threading.Thread(target=replace)
    replacing.start()
    try:
        for begin in range(0, len(jobs), 40):
            story.send(jobs[begin : begin + 40])
            story.wait_finals(begin + 20)
        finals = story.check()
    finally:
        done.set()
        replacing.join()
    for job_id, final in finals.items():
        assert final["status"] == "succeeded", final["error"]
        same = [e[job_id] for e in expected if e[job_id]["revision"] == final["revision"]]
        assert len(same) == 1, (job_id, final["revision"])
        check_same({job_id: final}, {job_id: same[0]})
    assert len({final["revision"] for final in finals.values()}) > len(names), "several versions"
    assert worker.metric("adapter_evictions_total") > 0
    assert worker.metric("preemptions_total") > 0


def test_removed_while_its_jobs_run(story, root, long_model):
    """What runs goes on; what comes later is known to be absent; what comes back works."""
    story.model = long_model
    folders.place_adapter(root, "mine", seed=1, rank=4)
    running = [job("running", "mine", max_tokens=device.tokens(3000))]
    expected = story.reference(running)
    story.worker()
    story.send(running)
    story.wait_streaming("running")
    (root / "mine").rename(root.parent / "away")
    story.send([job("later", "mine")])
    assert story.wait_finals(1)["later"]["error"]["code"] == "unknown_adapter"
    finals = story.check()
    check_same({"running": finals["running"]}, expected)
    (root.parent / "away").rename(root / "mine")
    again = [job("again", "mine")]
    story.send(again)
    check_same({"again": story.check()["again"]}, story.reference(again))


def test_removed_while_jobs_wait(story, root):
    """All folders go while their jobs wait to be fetched: each job has its answer, or is told that
    nobody has that name. None waits for ever."""
    names = [f"a{i:02}" for i in range(40)]
    for number, name in enumerate(names):
        folders.make_adapter(root / name, seed=number, rank=8, modules=tuple(folders.MODULES))
    jobs = [job(f"j-{name}-{i}", name, max_tokens=80) for name in names for i in range(3)]
    expected = story.reference(jobs)
    story.worker(pool__pages=40, scheduler__rows=4, store__bytes="2M", store__threads=1)
    story.send(jobs)
    story.wait_finals(1)
    for name in names:
        (root / name).rename(root.parent / name)
    finals = story.check()
    for job_id, final in finals.items():
        if final["status"] == "succeeded":
            check_same({job_id: final}, {job_id: expected[job_id]})
        else:
            assert final["status"] == "rejected", final
            assert final["error"]["code"] == "unknown_adapter", final
    assert {final["status"] for final in finals.values()} == {"succeeded", "rejected"}


def test_many_added_at_once(story, root):
    """Two hundred folders are renamed into the root while the worker runs."""
    worker = story.worker(pool__pages=80, scheduler__rows=8)
    early = [job(f"early-{i}", f"new-{i}") for i in range(3)]
    story.send(early)
    finals = story.check()
    assert {final["error"]["code"] for final in finals.values()} == {"unknown_adapter"}
    beside = root.parent / "beside"
    names = [f"new-{i}" for i in range(200)]
    for number, name in enumerate(names):
        folders.make_adapter(beside / name, seed=number, rank=1 + number % 9)
    jobs = [job(f"j-{name}", name, max_tokens=6) for name in names]
    for name in names:
        (beside / name).rename(root / name)
    story.send(jobs)
    story.check()
    finals = {each["id"]: story.finals()[each["id"]] for each in jobs}
    check_same(finals, story.reference(jobs, **{"store.bytes": "512M"}))
    assert len({final["revision"] for final in finals.values()}) == len(names)
    eventually("none is used any more", lambda: worker.metric("jobs_held") == 0)
    shutil.rmtree(beside)


def test_revisions_are_kept_over_restarts(story, root):
    """Files that are known are not hashed again; files that were touched are, and give the same
    revision; files that were replaced give another."""
    for number, name in enumerate(("kept", "touched", "replaced")):
        folders.place_adapter(root, name, seed=number, rank=4)
    jobs = [job(f"first-{name.name}", name.name) for name in sorted(root.iterdir())]
    time.sleep(2.1)  # what is younger might still change without a trace
    lines = story.folder / "state" / "revisions"
    first = story.worker("first")
    story.send(jobs)
    before = {final["adapter"]: final["revision"] for final in story.check().values()}
    assert first.stop() == 0
    kept = lines.read_text().split()
    assert [kept.count(name) for name in before] == [1, 1, 1]
    assert set(before.values()) <= set(kept)

    (root / "touched" / "adapter_model.safetensors").touch()
    folders.place_adapter(root, "replaced", seed=9, rank=4)
    time.sleep(2.1)
    story.worker("second")
    again = [job(f"again-{name}", name) for name in before]
    story.send(again)
    finals = story.check()
    after = {name: finals[f"again-{name}"]["revision"] for name in before}
    assert [after[name] == before[name] for name in ("kept", "touched", "replaced")] == [
        True,
        True,
        False,
    ]
    check_same({each["id"]: finals[each["id"]] for each in again}, story.reference(again))
    kept = lines.read_text().split()
    assert [kept.count(name) for name in ("kept", "touched", "replaced")] == [1, 2, 2]
