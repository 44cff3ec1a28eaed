"""Sends spans by OTLP over HTTP. The only module that imports OpenTelemetry.

The SDK's own queue and thread do the work. What may wait is bounded, and everything that is not sent is counted: the
product never waits for a receiver.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from cacheagent import __version__
from cacheagent.tracing import Count, Ref, Span

LOG: Final = logging.getLogger(__name__)

PATH: Final = "/v1/traces"
"""Appended to the endpoint, as OTEL_EXPORTER_OTLP_ENDPOINT means it."""
QUEUE: Final = 2048
"""Spans that wait or are on their way: some hundred starts, about 2 MB. The SDK's own default."""
BATCH: Final = 256
EVERY_S: Final = 1.0
"""How long a span waits for others. Chosen: the SDK's 5 s are long for somebody who looks at a start."""
EXPORT_S: Final = 5.0
"""For one batch, retries included. Chosen."""
FLUSH_S: Final = 1.0
"""For what waits at the end. The agent has 4.5 s for everything."""


class Exporter:
    """`send` is for one thread. `count` is called from others too."""

    def __init__(self, endpoint: str, resource: Mapping[str, str], count: Count) -> None:
        # It logs each failed try of each batch; what is worth knowing is said here, once.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        self._count = count
        self._resource = Resource.create({**resource, "service.version": __version__})
        self._scope = InstrumentationScope("cacheagent", __version__)
        self._otlp = OTLPSpanExporter(endpoint=endpoint.rstrip("/") + PATH, timeout=EXPORT_S)
        self._counted = _Counted(self._otlp, endpoint, count)
        self._processor = BatchSpanProcessor(
            self._counted,
            max_queue_size=QUEUE,
            max_export_batch_size=BATCH,
            schedule_delay_millis=EVERY_S * 1000,
        )
        self._offered = 0

    def send(self, span: Span) -> None:
        """Have it sent, or count it as dropped."""
        # The processor's own queue would drop in silence; it never gets more than it has room for.
        if self._offered - self._counted.done >= QUEUE:
            self._count("dropped", 1)
            return
        self._offered += 1
        self._processor.on_end(self._readable(span))

    async def close(self) -> None:
        """Send what waits, for `FLUSH_S` at most; the rest is dropped and counted."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        def flush() -> None:
            self._processor.shutdown()  # type: ignore[no-untyped-call]  # waits long for a receiver that hangs
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(ended.set)

        # A daemon: nothing waits for it when its time is over, not even the interpreter.
        threading.Thread(target=flush, name="last spans", daemon=True).start()
        with suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_S):
                await ended.wait()
        if not ended.is_set():
            self._counted.shutdown()  # no more retries
        if left := self._offered - self._counted.done:
            self._count("dropped", left)
            LOG.warning("spans were not sent before the end", extra={"spans": left})

    def _readable(self, span: Span) -> ReadableSpan:
        return ReadableSpan(
            name=span.name,
            context=_context(span.ref),
            parent=_context(span.parent) if span.parent else None,
            resource=self._resource,
            attributes=dict(span.attributes),
            links=[Link(_context(ref)) for ref in span.links],
            kind=SpanKind.INTERNAL,
            status=Status(StatusCode.ERROR, span.error) if span.error else Status(StatusCode.UNSET),
            start_time=_nanoseconds(span.began_at),
            end_time=_nanoseconds(max(span.began_at, span.ended_at)),
            instrumentation_scope=self._scope,
        )


class _Counted(SpanExporter):
    """The exporter, on the processor's thread. `done`: spans that it is finished with."""

    def __init__(self, exporter: SpanExporter, endpoint: str, count: Count) -> None:
        self.done = 0
        self._exporter = exporter
        self._endpoint = endpoint
        self._count = count
        self._well = True

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Raises nothing: the processor would log it with every batch."""
        try:
            result = self._exporter.export(spans)
        except Exception:
            LOG.exception("a defect of the exporter")
            result = SpanExportResult.FAILURE
        well = result is SpanExportResult.SUCCESS
        self.done += len(spans)
        self._count("sent" if well else "failed", len(spans))
        if well != self._well:
            self._well = well
            if well:
                LOG.info("spans are sent again", extra={"endpoint": self._endpoint})
            else:
                LOG.warning("spans can't be sent; they are counted and lost", extra={"endpoint": self._endpoint})
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


def _context(ref: Ref) -> SpanContext:
    return SpanContext(ref.trace_id, ref.span_id, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
