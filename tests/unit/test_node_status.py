"""A node's report: an entry for each version and each question, and what of a change is news."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from cacheagent.errors import OriginForbidden, UsageError
from cacheagent.kube.node_models import Found, NodePolicy, assignment_of
from cacheagent.kube.node_status import MOST_LIARS, Seen, progress_of, state_of, status_of
from cacheagent.kube.objects import ModelCacheNodeSpec, ModelCacheNodeStatus, NodeModel, NodeModelStatus, Source
from cacheagent.progress import JobStatus
from cacheagent.store import Lease, Record, Store, Usage
from tests.fakes.cache import NO_FLOOR, bring

NEW = "sha256:" + "e" * 64
USAGE = Usage(capacity=1000, free=500, used=10, reserved=0, evictable=0, floor=0, models=1, blobs=1, quarantined=0)


@pytest.fixture
def record(tmp_path: Path) -> Record:
    """The version that is on disk."""
    store = Store.open(tmp_path / "cache", NO_FLOOR)
    try:
        return bring(store, {"a": b"abc"}, name="llama")
    finally:
        store.close()


def model(name: str = "llama", **more: Any) -> NodeModel:
    """As the controller assigns it."""
    return NodeModel(name=name, source=Source(uri=f"s3://bucket/{name}"), kind="tree", **more)


def seen(*models: NodeModel, job: JobStatus | None = None, **more: Any) -> Seen:
    """What the agent sees."""
    spec = ModelCacheNodeSpec(models=models)
    found = more.get("found", {})
    assignment, wrong = assignment_of(spec, found, NodePolicy())
    facts: dict[str, Any] = {
        "spec": spec,
        "generation": 7,
        "assignment": assignment,
        "found": found,
        "errors": {},
        "wrong": wrong,
        "records": (),
        "leases": (),
        "job": lambda _: job,
        "retry_in_s": lambda _: 12.0,
        "running": (),
        "wanted": (),
        "evicting": (),
        "usage": USAGE,
        "incarnation": "1a",
        "reported_at": "2026-01-01T00:00:00Z",
    }
    return Seen(**facts | more)


def entries(status: ModelCacheNodeStatus) -> list[tuple[str, str, str, str]]:
    """Name, phase, digest, token."""
    return [(entry.name, entry.phase, entry.digest, entry.resolved_for) for entry in status.models]


def test_an_open_question_is_answered_beside_the_version_in_force(record: Record) -> None:
    """Asked and not known yet, known, and not to be known: the old version stays ready all the while."""
    asked = model(digest=record.digest, resolve="q2")
    old = ("llama", "ready", record.digest, "")
    assert entries(status_of(seen(asked, records=[record]))) == [("llama", "resolving", "", ""), old]
    error = OriginForbidden("bucket: 403", hint="name a credential")
    failed = status_of(seen(asked, records=[record], errors={"q2": error}))
    assert entries(failed) == [("llama", "failed", "", ""), old]
    assert (failed.models[0].code, failed.models[0].message) == ("forbidden", "bucket: 403 (name a credential)")
    found = {"q2": Found(digest=NEW, revision="c0ffee", files=3, size_bytes=30)}
    answered = status_of(seen(asked, records=[record], found=found))
    assert entries(answered) == [old, ("llama", "pending", NEW, "q2")]
    assert (answered.models[-1].revision, answered.models[-1].size_bytes) == ("c0ffee", 30)
    same = {"q2": Found(digest=record.digest)}
    assert entries(status_of(seen(asked, records=[record], found=same))) == [("llama", "ready", record.digest, "q2")]


def test_a_first_version_is_fetched_as_soon_as_it_is_known() -> None:
    """Before the controller has pinned it; without a question the node waits."""
    job = JobStatus(name="llama", uri="s3://bucket/llama", phase="fetching", bytes_total=30, bytes_fetched=10)
    found = {"q1": Found(digest=NEW, files=3, size_bytes=30)}
    status = status_of(seen(model(resolve="q1"), found=found, job=job, running=[job]))
    assert entries(status) == [("llama", "fetching", NEW, "q1")]
    assert (status.models[0].bytes_done, status.models[0].size_bytes) == (10, 30)
    assert entries(status_of(seen(model()))) == [("llama", "pending", "", "")]


def test_what_fails_says_why_and_what_to_do() -> None:
    """Downloads, models that make no sense, sources that are not permitted."""
    job = JobStatus(name="llama", uri="s3://b/m", phase="failed", error="no-room", message="needs 1 TB", hint="unpin")
    (entry,) = status_of(seen(model(digest=NEW), job=job)).models
    assert (entry.phase, entry.code, entry.message) == ("failed", "no-room", "needs 1 TB (unpin)")
    (entry,) = status_of(seen(model("Not A Name"))).models
    assert (entry.phase, entry.code) == ("failed", UsageError.code)
    (entry,) = status_of(seen(replace(model(), source=Source(uri="file:///etc")))).models
    assert (entry.phase, entry.code) == ("failed", "refused")
    (entry,) = status_of(seen(model(digest=NEW), job=replace(job, message="x" * 2000))).models
    assert len(entry.message) == 500


@pytest.mark.parametrize(("on_demand", "when"), [(False, "later"), (True, "when a pod here asks for it")])
def test_what_was_evicted_comes_back_as_it_came(on_demand: bool, when: str) -> None:  # noqa: FBT001 - a case
    """By itself, or when somebody wants it; the same after a restart, when nobody remembers the eviction."""
    assigned = model(digest=NEW, on_demand=on_demand)
    job = JobStatus(name="llama", uri="s3://bucket/llama", phase="ready", bytes_total=30, bytes_fetched=30)
    (entry,) = status_of(seen(assigned, job=job)).models
    assert (entry.phase, entry.bytes_done) == ("pending", 0)
    assert entry.message == f"it was evicted, and is fetched again {when}"
    (entry,) = status_of(seen(assigned)).models
    assert entry.message == (f"it is fetched {when}" if on_demand else "others go first")


def test_every_version_on_disk_is_told_of_once(record: Record) -> None:
    """Also one that is assigned no more, and one that is old, under the model that knows it; with its mounts."""
    leases = [Lease(volume_id=f"v{number}", digest=record.digest, owner="", since=1.0) for number in range(2)]
    (entry,) = status_of(seen(records=[record], leases=leases)).models
    assert (entry.name, entry.phase, entry.mounted) == ("llama", "ready", 2)
    status = status_of(seen(model("renamed", digest=NEW, versions=(record.digest,)), records=[record]))
    assert entries(status) == [("renamed", "ready", record.digest, ""), ("renamed", "pending", NEW, "")]


def test_what_is_news(record: Record) -> None:
    """States at once; figures now and then; the wall clock and others' writes to the disk never."""
    job = JobStatus(name="llama", uri="s3://bucket/llama", phase="fetching", bytes_total=30, bytes_fetched=10)
    before = status_of(seen(model(digest=NEW), job=job))
    later = status_of(seen(model(digest=NEW), job=replace(job, bytes_fetched=20), reported_at="2026-01-02T00:00:00Z"))
    assert state_of(before) == state_of(later)
    assert progress_of(before) != progress_of(later)
    noise = replace(USAGE, free=501)
    still = status_of(seen(model(digest=NEW), job=job, usage=noise, reported_at="2026-01-02T00:00:00Z"))
    assert (state_of(before), progress_of(before)) == (state_of(still), progress_of(still))
    fuller = status_of(seen(model(digest=NEW), job=job, usage=replace(USAGE, free=300)))
    assert progress_of(before) != progress_of(fuller)
    failed = status_of(seen(model(digest=NEW), job=replace(job, phase="failed", error="forbidden", message="403")))
    assert state_of(before) != state_of(failed)
    ready = status_of(seen(model(digest=record.digest), records=[record]))
    mounted = status_of(
        seen(
            model(digest=record.digest),
            records=[record],
            leases=[Lease(volume_id="v", digest=record.digest, owner="", since=1.0)],
        )
    )
    assert state_of(ready) != state_of(mounted)
    assert isinstance(ready.models[0], NodeModelStatus)


def test_who_lied_is_news(record: Record) -> None:
    """In order, and a bounded number of them: what a report holds must not grow with what happens to a node."""
    before = status_of(seen(model(), records=[record]))
    after = status_of(seen(model(), records=[record], liars={"n3", "n2"}))
    assert (before.liars, after.liars) == ((), ("n2", "n3"))
    assert state_of(before) != state_of(after)
    assert len(status_of(seen(model(), liars={f"n{number}" for number in range(1000)})).liars) == MOST_LIARS
