"""Spans of starts: their ids, what an agent tells, and that sending them never costs the product anything."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from cacheagent.api.schema import MountTimes
from cacheagent.config import TracingSettings
from cacheagent.errors import OriginNotFound
from cacheagent.store import Promise
from cacheagent.tracing import Ref, Span, child_of, new_trace, start_of
from cacheagent.tracing_node import VOLUMES_KEPT, NodeTraces
from cacheagent.tracing_otlp import FLUSH_S, QUEUE, Exporter
from cacheagent.tracing_switch import open_tracing
from cacheagent.tracking import Tracker
from tests.fakes.otlp import OtlpReceiver, otlp_receiver

UID = "0b5d8f3e-6d0e-4a8b-9d0a-3f5a3c1d2e4f"
DIGEST = "sha256:" + "ab" * 32


# --- ids


def test_ids_come_from_the_pod_s_uid_alone() -> None:
    """The first 16 bytes of its SHA-256 are the trace, the next 8 the start: any process arrives at the same."""
    digest = hashlib.sha256(UID.encode()).hexdigest()
    start = start_of(UID)
    assert (f"{start.trace_id:032x}", f"{start.span_id:016x}") == (digest[:32], digest[32:48])
    assert f"{start.trace_id:032x}" == "0a9296033e6704ec7313929598081826"
    assert start_of(UID) == start != start_of(UID[::-1])


def test_a_child_is_another_span_of_the_same_trace() -> None:
    """And a trace of nobody's is another each time."""
    start = start_of(UID)
    child = child_of(start)
    assert child.trace_id == start.trace_id
    assert child.span_id not in {0, start.span_id}
    assert new_trace().trace_id != new_trace().trace_id


# --- off


def test_without_an_endpoint_nothing_of_opentelemetry_is_imported() -> None:
    """Neither by agent, controller and driver, nor by the switch that is off; by the one that is on it is."""
    program = """
import asyncio, sys
import cacheagent.agent, cacheagent.kube.run_controller, csi.publish, csi.driver
from cacheagent.config import TracingSettings
from cacheagent.tracing_switch import open_tracing

async def switch(endpoint):
    async with open_tracing(TracingSettings(endpoint=endpoint), "agent", lambda result, count: None) as send:
        return send is not None, "opentelemetry" in sys.modules

print(asyncio.run(switch("")), asyncio.run(switch("http://127.0.0.1:9")))
"""
    answer = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert answer.stdout.strip() == "(False, False) (True, True)"


@pytest.mark.parametrize(
    "endpoint",
    [
        "collector:4318",
        "ftp://collector",
        "http://user:pw@collector",
        "http://collector?token=x",
        "http://c#x",
        "http://",
    ],
)
def test_an_endpoint_that_is_none_or_holds_a_secret_is_refused(endpoint: str) -> None:
    """It is written into a ConfigMap and into the log."""
    with pytest.raises(msgspec.ValidationError, match="without user, password or query"):
        msgspec.convert({"endpoint": endpoint}, TracingSettings)


@pytest.mark.parametrize(
    "endpoint", ["", "http://collector:4318", "https://collector.example/otlp/", "http://[::1]:4318"]
)
def test_an_endpoint_is_a_url(endpoint: str) -> None:
    """Or nothing."""
    assert msgspec.convert({"endpoint": endpoint}, TracingSettings).endpoint == endpoint


# --- what an agent tells


class Told:
    """What was sent, and a clock that a test sets."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.now = 1000.0
        self.traces = NodeTraces(self.spans.append, now=lambda: self.now)

    def named(self, name: str, trace_id: int = 0) -> list[Span]:
        return [span for span in self.spans if span.name == name and trace_id in {0, span.ref.trace_id}]


@pytest.fixture
def told() -> Told:
    return Told()


def _tracker(name: str = "m", *steps: tuple[str, float], uri: str = "s3://bucket/secret-path") -> Tracker:
    tracker = Tracker(name, uri, 0, lambda _: None)
    tracker.steps = list(steps)
    return tracker


def _promise(volume_id: str = "v1", uid: str = UID, since: float = 1000.0, model: str = "m") -> Promise:
    return Promise(volume_id=volume_id, model=model, namespace="team-a", since=since, owner="team-a/web-0", pod_uid=uid)


def _record(digest: str = DIGEST) -> Any:
    class Fake(msgspec.Struct):
        digest: str
        size_bytes: int = 4096

    return Fake(digest)


STEPS = (
    ("resolving", 990.0),
    ("reserving", 995.0),
    ("fetching", 996.0),
    ("publishing", 1040.0),
    ("verifying", 1040.0),
    ("publishing", 1042.0),
    ("ready", 1043.0),
)


def test_steps_of_a_job_stand_in_the_trace_of_each_pod_that_waited(told: Told) -> None:
    """Cut to what it waited for, each with a link to the step of the job itself."""
    tracker = _tracker("m", *STEPS)
    told.traces.began(tracker)
    told.traces.asked("v1")
    told.now = 1030.0
    told.traces.asked("v2")
    told.now = 1043.0
    told.traces.ended(tracker)
    told.now = 1044.0
    told.traces.kept(_promise("v1"), _record(), hit=False)
    told.traces.kept(_promise("v2", uid="other", since=1031.0), _record(), hit=False)

    job = told.named("bring model")[0]
    own = {span.name: span for span in told.spans if span.parent == job.ref}
    assert list(own) == ["resolve", "reserve", "fetch", "verify", "publish"]
    assert (own["verify"].began_at, own["verify"].ended_at) == (1040.0, 1042.0)
    for uid, began_at, names in (
        (UID, 1000.0, ["fetch", "verify", "publish"]),
        ("other", 1030.0, ["fetch", "verify", "publish"]),
    ):
        start = start_of(uid)
        (wait,) = told.named("wait", start.trace_id)
        assert (wait.parent, wait.began_at, wait.ended_at) == (start, began_at, 1044.0)
        copies = [span for span in told.spans if span.parent == wait.ref]
        assert [span.name for span in copies] == names
        assert [span.links for span in copies] == [(own[name].ref,) for name in names]
        assert (copies[0].began_at, copies[0].attributes["cacheagent.began_before"]) == (began_at, True)
        assert (copies[1].began_at, copies[1].attributes["cacheagent.began_before"]) == (1040.0, False)
        assert all(wait.began_at <= span.began_at < span.ended_at <= wait.ended_at for span in copies)


def test_a_pod_that_found_its_model_waited_for_nothing(told: Told) -> None:
    """A job of long ago is none of its start."""
    tracker = _tracker("m", *STEPS)
    told.traces.began(tracker)
    told.now = 1043.0
    told.traces.ended(tracker)
    told.now = 2000.0
    told.traces.kept(_promise(since=2000.0), _record(), hit=True)
    assert [span.name for span in told.spans if span.ref.trace_id == start_of(UID).trace_id] == ["wait"]
    assert told.named("wait")[0].attributes == {
        "k8s.pod.uid": UID,
        "k8s.namespace.name": "team-a",
        "k8s.pod.name": "web-0",
        "cacheagent.volume": "v1",
        "cacheagent.model": "m",
        "cacheagent.digest": DIGEST,
        "cacheagent.bytes": 4096,
        "cacheagent.hit": True,
    }


def test_a_job_that_ends_a_moment_after_its_model_is_there_is_seen(told: Told) -> None:
    """The record is published before the job is over: its steps so far are in the trace, with the same links."""
    tracker = _tracker("m", *STEPS[:-1])
    told.traces.began(tracker)
    told.now = 1042.5
    told.traces.kept(_promise(), _record(), hit=False)
    copies = {span.name: span for span in told.spans if span.links}
    told.now = 1043.0
    told.traces.ended(tracker)
    assert copies["publish"].links == (told.named("publish", told.named("bring model")[0].ref.trace_id)[0].ref,)


def test_a_job_that_failed_says_in_which_step_and_by_which_code(told: Told) -> None:
    """Its sentence, which may name what belongs to others, stays in the log; the pod sees both tries."""
    tracker = _tracker("m")
    told.traces.began(tracker)
    tracker.steps = [("resolving", 1001.0)]
    tracker.failed(OriginNotFound("s3://bucket/secret-path is not there"))
    tracker.steps[-1] = ("failed", 1002.0)
    told.now = 1002.0
    told.traces.ended(tracker)
    again = _tracker("m", ("resolving", 1003.0), ("fetching", 1004.0), ("ready", 1005.0))
    told.traces.began(again)
    told.now = 1005.0
    told.traces.ended(again)
    told.traces.kept(_promise(), _record(), hit=False)
    assert [(span.name, span.error) for span in told.spans if span.links] == [
        ("resolve", "not-found"),
        ("resolve", ""),
        ("fetch", ""),
    ]
    assert told.named("bring model")[0].error == "not-found"
    assert "secret-path" not in repr(told.spans)
    assert told.named("bring model")[0].attributes["cacheagent.source"] == "s3"


def test_a_job_that_failed_before_its_first_step_has_no_trace(told: Told, caplog: pytest.LogCaptureFixture) -> None:
    """That is no defect, and the pod's other try is told of as usual."""
    tracker = _tracker("m")
    told.traces.began(tracker)
    told.traces.ended(tracker)
    assert told.spans == []
    again = _tracker("m", ("fetching", 1004.0), ("ready", 1005.0))
    told.traces.began(again)
    told.now = 1005.0
    told.traces.ended(again)
    told.traces.kept(_promise(), _record(), hit=False)
    assert [span.name for span in told.spans if span.links] == ["fetch"]
    assert caplog.records == []


def test_other_models_jobs_are_not_in_it(told: Told) -> None:
    """Even if they ran at the same time."""
    tracker = _tracker("other", *STEPS)
    told.traces.began(tracker)
    told.now = 1043.0
    told.traces.ended(tracker)
    told.traces.kept(_promise(), _record(), hit=False)
    assert not [span for span in told.spans if span.links]


def test_a_mount_is_a_part_of_the_start(told: Told) -> None:
    """With the times that the driver measured."""
    told.traces.mounted(
        "v1", MountTimes(pod_uid=UID, began_at=7.0, ended_at=7.5, namespace="n", pod="p", digest=DIGEST)
    )
    (mount,) = told.spans
    assert (mount.name, mount.parent, mount.began_at, mount.ended_at) == ("mount", start_of(UID), 7.0, 7.5)


def test_volumes_that_never_get_anything_are_forgotten(told: Told) -> None:
    """The oldest first; what is asked for without a pod leaves no span."""
    for number in range(VOLUMES_KEPT + 5):
        told.traces.asked(f"v{number}")
    assert len(told.traces._asked) == VOLUMES_KEPT
    assert "v0" not in told.traces._asked
    told.traces.kept(_promise("v9", uid=""), _record(), hit=True)
    assert "v9" not in told.traces._asked
    assert not told.spans


def test_a_defect_costs_a_span_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever calls goes on; the log has the traceback."""

    def broken(_: Span) -> None:
        raise RuntimeError("a defect")

    NodeTraces(broken).kept(_promise(), _record(), hit=True)
    assert "a defect in tracing" in caplog.text


# --- sending


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    with otlp_receiver() as running:
        yield running


def _span(name: str = "s", **more: Any) -> Span:
    ref = new_trace()
    return Span(
        **{"name": name, "ref": ref, "parent": None, "began_at": 1.5, "ended_at": 2.25, "attributes": {}, **more}
    )


@pytest.mark.asyncio
async def test_spans_arrive_as_they_are(receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids, times, attributes, links and errors, with who sends them; what waits is sent at the end. Headers come from
    the environment."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20abc")
    counted: Counter[str] = Counter()
    settings = TracingSettings(endpoint=receiver.endpoint)
    parent, link = Ref(5, 6), Ref(7, 8)
    async with open_tracing(
        settings, "agent", lambda result, count: counted.update({result: count}), node="n1"
    ) as send:
        assert send is not None
        send(_span("a", ref=Ref(5, 9), parent=parent, attributes={"k": 1, "b": True}, links=(link,), error="no-room"))
    (span,) = receiver.spans
    assert (span.service, span.node, span.name) == ("cacheagent-agent", "n1", "a")
    assert (span.trace_id, span.span_id, span.parent) == (f"{5:032x}", f"{9:016x}", f"{6:016x}")
    assert (span.began_at, span.ended_at, span.attributes) == (1.5, 2.25, {"k": 1, "b": True})
    assert (span.links, span.failed, span.error) == (((f"{7:032x}", f"{8:016x}"),), True, "no-room")
    assert receiver.headers[0]["authorization"] == "Bearer abc"
    assert receiver.headers[0]["Content-Type"] == "application/x-protobuf"
    assert counted == {"sent": 1}


@pytest.mark.asyncio
async def test_a_receiver_that_refuses_is_told_of_once(
    receiver: OtlpReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    """Its spans are counted and lost, and it is said when it takes them again."""
    caplog.set_level(logging.INFO)
    counted: Counter[str] = Counter()
    exporter = Exporter(receiver.endpoint, {"service.name": "t"}, lambda result, count: counted.update({result: count}))
    receiver.status = 400
    for _ in range(2):
        exporter.send(_span())
        await asyncio.to_thread(exporter._processor.force_flush)
    receiver.status = 200
    exporter.send(_span())
    await exporter.close()
    assert counted == {"failed": 2, "sent": 1}
    assert [record.message for record in caplog.records] == [
        "spans can't be sent; they are counted and lost",
        "spans are sent again",
    ]


@pytest.mark.asyncio
async def test_nobody_waits_for_a_receiver_that_hangs(receiver: OtlpReceiver) -> None:
    """What is more than the queue holds is dropped and counted at once, and the end comes in time."""
    counted: Counter[str] = Counter()
    exporter = Exporter(receiver.endpoint, {"service.name": "t"}, lambda result, count: counted.update({result: count}))
    receiver.hangs = True
    spans = [_span() for _ in range(QUEUE + 100)]
    began = time.monotonic()
    for span in spans:
        exporter.send(span)
    assert counted == {"dropped": 100}
    await exporter.close()
    assert time.monotonic() - began < FLUSH_S + 10
    assert counted["dropped"] == QUEUE + 100
    receiver.hangs = False
