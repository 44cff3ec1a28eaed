"""The controller's spans of a start: from what the webhook and Kubernetes wrote on the pod."""

from __future__ import annotations

from typing import Any

import pytest

from cacheagent.kube import names, slim
from cacheagent.kube.plan.views import Pod, parse_pod
from cacheagent.kube.pod_waits import PodWaits
from cacheagent.kube.start_traces import PLAUSIBLE_S, Review, StartTraces, spans_of, written_review
from cacheagent.tracing import Span, start_of
from tests.unit.test_controller_metrics import BEGIN, body, bound, kept, mounted


def _admitted(raw: Any, began_at: float, ended_at: float) -> Any:
    raw["metadata"]["annotations"][names.ADMITTED] = written_review(Review(began_at, ended_at))
    return raw


def _pod(raw: Any) -> Pod:
    return parse_pod(slim.pod(raw))


def test_a_start_from_its_admission_to_its_weights() -> None:
    """One trace, named by the UID: the whole, the admission to the microsecond, the way to its node."""
    raw = mounted(bound(body("a", gpus="8"), 15), 75)
    found = {span.name: span for span in spans_of(_pod(_admitted(raw, BEGIN + 0.25, BEGIN + 0.2505)), BEGIN + 75.5)}
    start = start_of("uid-a")
    assert list(found) == ["start", "admission", "schedule"]
    assert (found["start"].ref, found["start"].parent) == (start, None)
    assert {found[name].parent for name in ("admission", "schedule")} == {start}
    times = {name: (span.began_at - BEGIN, span.ended_at - BEGIN) for name, span in found.items()}
    assert times["start"] == pytest.approx((0.25, 75.5))
    assert times["admission"] == pytest.approx((0.25, 0.2505), abs=1e-5)
    assert times["schedule"] == pytest.approx((0.2505, 15))
    assert found["start"].attributes == {
        "k8s.pod.uid": "uid-a",
        "k8s.namespace.name": "shop",
        "k8s.pod.name": "a",
        "k8s.node.name": "n1",
        "cacheagent.gpus": 8,
    }


@pytest.mark.parametrize(
    "written",
    ["", "yesterday", "/", "2027-01-15T08:00:00+00:00", written_review(Review(BEGIN - 3600, BEGIN - 3599.9)),
     written_review(Review(BEGIN + 1, BEGIN)), written_review(Review(BEGIN, BEGIN + PLAUSIBLE_S + 1))],
)  # fmt: skip
def test_an_admission_that_cannot_be_this_pod_s_is_none(written: str) -> None:
    """Anybody can write annotations, and a pod that was copied brings those of another; the start begins when the pod
    was made."""
    raw = mounted(bound(body("a"), 15), 75)
    raw["metadata"]["annotations"][names.ADMITTED] = written
    found = list(spans_of(_pod(raw), BEGIN + 500))
    assert [span.name for span in found] == ["start", "schedule"]
    assert (found[0].began_at, found[0].ended_at) == (BEGIN, BEGIN + 76)


def test_each_pod_that_gets_its_weights_is_told_once() -> None:
    """Of those that had them before this replica led, nothing is."""
    spans: list[Span] = []
    traces, waits = StartTraces(spans.append, now=lambda: BEGIN), PodWaits()
    old = mounted(bound(body("old"), 1), 2)
    for pods in ([old], [old, bound(body("a"), 1)], [old, mounted(bound(body("a"), 1), 3)], [old]):
        traces.started(waits.look(kept(*pods)).started_pods)
    assert [(span.name, span.attributes["k8s.pod.name"]) for span in spans] == [("start", "a"), ("schedule", "a")]


def test_a_defect_costs_spans_and_not_the_plan(caplog: pytest.LogCaptureFixture) -> None:
    """It is in the log."""

    def broken(_: Span) -> None:
        raise RuntimeError("a defect")

    StartTraces(broken).started(kept(mounted(bound(body("a"), 1), 3)))
    assert "a defect in tracing" in caplog.text
