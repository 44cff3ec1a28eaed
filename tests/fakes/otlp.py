"""A real OTLP receiver over HTTP: decodes what it is sent, keeps the spans, and can refuse or hang."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2

PATIENCE_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Received:
    """One span as it came. Ids are hex, times seconds since the epoch; `error` is the status's message."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent: str
    began_at: float
    ended_at: float
    attributes: dict[str, Any]
    links: tuple[tuple[str, str], ...]
    failed: bool
    error: str
    node: str = ""


class OtlpReceiver:
    """Runs in a thread of its own. `status`: what it answers; `hangs`: it doesn't."""

    def __init__(self) -> None:
        self.endpoint = ""
        self.status = 200
        self.hangs = False
        self.bodies: list[bytes] = []
        self.headers: list[Mapping[str, str]] = []
        self._spans: list[Received] = []
        self._changed = threading.Condition()

    @property
    def spans(self) -> list[Received]:
        """All that came and were taken."""
        with self._changed:
            return list(self._spans)

    def wait_for(self, condition: Callable[[list[Received]], bool]) -> list[Received]:
        """Until the spans are so."""
        with self._changed:
            assert self._changed.wait_for(lambda: condition(self._spans), PATIENCE_S), self._spans
            return list(self._spans)

    def wait_for_names(self, *names: str) -> list[Received]:
        """Until there is a span of each name."""
        return self.wait_for(lambda spans: {span.name for span in spans} >= set(names))

    async def _take(self, request: web.Request) -> web.Response:
        body = await request.read()
        while self.hangs:  # noqa: ASYNC110 - another thread says so
            await asyncio.sleep(0.05)
        if self.status != 200:
            return web.Response(status=self.status)
        spans = list(_decode(body))
        with self._changed:
            self.bodies.append(body)
            self.headers.append(request.headers.copy())
            self._spans += spans
            self._changed.notify_all()
        answer = ExportTraceServiceResponse().SerializeToString()
        return web.Response(body=answer, content_type="application/x-protobuf")

    async def serve(self, host: str, ready: threading.Event, stop: asyncio.Event) -> None:
        """Until `stop`."""
        app = web.Application()
        app.router.add_post("/v1/traces", self._take)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, host, 0).start()
        self.endpoint = "http://{}:{}".format(*runner.addresses[0])
        ready.set()
        await stop.wait()
        await runner.cleanup()


@contextmanager
def otlp_receiver(host: str = "127.0.0.1") -> Iterator[OtlpReceiver]:
    """One that listens inside `with`."""
    receiver, ready, stop = OtlpReceiver(), threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(receiver.serve(host, ready, stop))

    thread = threading.Thread(target=run, name="OTLP receiver")
    thread.start()
    try:
        assert ready.wait(PATIENCE_S)
        yield receiver
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(PATIENCE_S)


def _decode(body: bytes) -> Iterator[Received]:
    for group in ExportTraceServiceRequest.FromString(body).resource_spans:
        resource = _values(group.resource.attributes)
        for scope in group.scope_spans:
            for span in scope.spans:
                yield _received(span, str(resource["service.name"]), str(resource.get("k8s.node.name", "")))


def _received(span: trace_pb2.Span, service: str, node: str) -> Received:
    return Received(
        service=service,
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        began_at=span.start_time_unix_nano / 1e9,
        ended_at=span.end_time_unix_nano / 1e9,
        attributes=_values(span.attributes),
        links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
        failed=span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
        error=span.status.message,
        node=node,
    )


def _values(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in map(_pair, pairs)}


def _pair(pair: Any) -> KeyValue:
    assert isinstance(pair, KeyValue)
    return pair


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    return None if kind is None else getattr(value, kind)
