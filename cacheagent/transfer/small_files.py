"""The job that brings many small files, in batches."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from cacheagent.errors import LocationExpired, TargetAbandoned, TransferFailed
from cacheagent.model import FileHashes
from cacheagent.transfer.base import OnSmall, SmallOrder, SmallResult
from cacheagent.transfer.job import Flight, RemoteJob, Setting, Unit
from cacheagent.transfer.orders import Failed, FetchSmall, Report, SmallDone, SmallFile, SmallItem
from cacheagent.transfer.origin import Origin
from cacheagent.transfer.retry import is_refusal, refusal_error
from cacheagent.transfer.schedule import batch_size
from cacheagent.transfer.whereabouts import display_name

CAPPED_BATCH_S: Final = 2.0
"""How long a batch may take because of its job's cap: what is done is told when a batch ends. Chosen."""


@dataclass(frozen=True, kw_only=True)
class SmallCall:
    """What one call of `fetch_small` is about; all its files are at one origin."""

    orders: Sequence[SmallOrder]
    source_kind: str
    priority: int
    on_done: OnSmall


@dataclass(eq=False, kw_only=True)
class Batch(Unit):
    """Files that one worker fetches one after the other."""

    orders: list[SmallOrder]


class SmallJob(RemoteJob[Batch]):
    """Batches are cut when a connection is free, so that few files spread over all of them."""

    def __init__(self, setting: Setting, origin: Origin, call: SmallCall, outcome: asyncio.Future[None]) -> None:
        super().__init__(setting, origin, call.priority, outcome, call.source_kind)
        self.blobs = frozenset(order.blob_id for order in call.orders)
        self._on_done = call.on_done
        self._orders = list(reversed(call.orders))
        self._left = len(call.orders)
        self._located_at = self._loop.time()
        if not call.orders:
            outcome.set_result(None)

    @property
    def waiting(self) -> int:
        """Batches to give, at least one while files are left."""
        return super().waiting or int(bool(self._orders) and not self.outcome.done())

    def take(self, connections: int) -> Batch:
        """See Job."""
        if self._pending:
            return super().take(connections)
        size = batch_size(len(self._orders), self.origin.limit.current)
        most_bytes = self._most_bytes()
        orders: list[SmallOrder] = []
        length = 0
        while self._orders and len(orders) < size:
            if orders and length + self._orders[-1].size_bytes > most_bytes:
                break
            orders.append(self._orders.pop())
            length += orders[-1].size_bytes
        return Batch(length=length, orders=orders)

    def _most_bytes(self) -> float:
        """In one batch; the first file may be larger."""
        rate = self.cap.bucket.bytes_per_s if self.cap is not None else 0
        return rate * CAPPED_BATCH_S if rate else math.inf

    def name(self, unit: Batch) -> str:
        """The first of them stands for all."""
        first = display_name(unit.orders[0].location)
        return first if len(unit.orders) == 1 else f"{first} and {len(unit.orders) - 1} small files more"

    async def fly(self, flight: Flight[Batch]) -> Report:
        """See Job."""
        items = tuple(
            SmallItem(
                blob_id=order.blob_id,
                location=order.location,
                size_bytes=order.size_bytes,
                target=order.target,
                checksums=order.checksums,
            )
            for order in flight.unit.orders
        )
        try:
            asked = FetchSmall(id=flight.work_id, items=items, cap=self.cap_number)
            return await flight.worker.ask(asked, lambda _: self.goes_on(flight))
        except TargetAbandoned:
            for item in items:  # the next try makes new ones; who hangs writes into files that have no name any more
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(item.target)
            raise

    def landed(self, flight: Flight[Batch], report: Report) -> None:
        """See Job: what a batch finished before it failed is kept."""
        assert isinstance(report, SmallDone | Failed), report
        self._keep(flight, report.files)
        if isinstance(report, Failed):
            self.failed(flight, report)
        elif flight.unit.orders:
            self.fail(TransferFailed(f"{self.name(flight.unit)}: the worker says it is done, and files are missing"))
        elif self._left == 0 and not self.outcome.done():
            self.outcome.set_result(None)

    def failed(self, flight: Flight[Batch], failed: Failed) -> None:
        """A refusal of old locations is for the caller, who can ask for all of them again at once."""
        if not is_refusal(failed):
            super().failed(flight, failed)
        elif self._loop.time() - self._located_at > self._setting.config.fresh_location_s:
            name = self.name(flight.unit)
            self.fail(LocationExpired(f"{name}: {failed.message}", hint="ask the source again where the files are"))
        else:
            self.fail(refusal_error(failed, self.name(flight.unit)))

    def _keep(self, flight: Flight[Batch], files: Iterable[SmallFile]) -> None:
        done = {file.blob_id: file for file in files}
        if not done:
            return
        unit = flight.unit
        arrived = [order for order in unit.orders if order.blob_id in done]
        unit.orders = [order for order in unit.orders if order.blob_id not in done]
        self._left -= len(arrived)
        self.succeeded(flight.origin)
        seconds = self._loop.time() - flight.started
        self._setting.observer.piece_done(self.source_kind, sum(order.size_bytes for order in arrived), seconds)
        self._on_done([_result(order, done[order.blob_id]) for order in arrived])


def _result(order: SmallOrder, file: SmallFile) -> SmallResult:
    pieces = (file.blake3,) if order.size_bytes else ()
    return SmallResult(blob_id=order.blob_id, hashes=FileHashes(pieces=pieces, verified_by=file.verified_by))
