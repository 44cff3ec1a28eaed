"""The demo, step by step: the product's own commands against a real S3 server, for a person to watch."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import click
import yaml

from cacheagent.api.client import AgentClient
from cacheagent.cli.output import duration, print_table, size
from cacheagent.demo.bucket import Bucket
from cacheagent.demo.checkpoint import find_minilm, write_checkpoint
from cacheagent.demo.child import running_child, wait_until_ready
from cacheagent.demo.seaweedfs import S3Server, running_seaweedfs
from cacheagent.errors import AgentUnavailable, CacheAgentError
from cacheagent.progress import JobStatus

SHARDS: Final = 8
KILL_AT: Final = 0.4
"""Share of the second pull after which the agent is killed. Chosen: clearly in the middle."""
READY_TIMEOUT_S: Final = 60.0


def run_demo(*, size_bytes: int, directory: Path | None) -> None:
    """Run every step and clean up, also after Ctrl-C. Raises CacheAgentError if a step does not show what it should."""
    with _workspace(directory, needed_bytes=6 * size_bytes) as work, running_seaweedfs(work / "s3") as server:
        _Demo(work, server, size_bytes).run()


@dataclass
class _Demo:
    work: Path
    server: S3Server
    size_bytes: int
    rows: list[tuple[str, str, str, str]] = field(default_factory=list)

    @property
    def root(self) -> Path:
        return self.work / "cache"

    def run(self) -> None:
        bucket = self._fill_bucket()
        with self._agent():
            _title("A cold pull: eight shards and a real small model, by the agent, verified")
            cold = self._pull("s3://models/llama")
            self._row("cold pull", cold.bytes_fetched, cold.elapsed_s)
            self._pull("s3://models/minilm")
            self._command("ls")

            _title("What was cached is what the origin holds")
            self._compare_tensor(bucket, Path(cold.path))
            self._command("verify", "llama")

            _title(f"kill -9 at {KILL_AT:.0%} of a second pull")
            self._pull_and_kill("s3://models/llama-next")
        with self._agent():
            click.echo("the agent is started again; nobody repairs anything")
            resumed = self._pull("s3://models/llama-next")
            if not resumed.bytes_kept:
                raise CacheAgentError(
                    "the second try kept nothing of the first", hint="this is a bug; please report it"
                )
            self._row("resumed after kill -9", resumed.bytes_fetched, resumed.elapsed_s)

            _title("Again: a hit")
            seconds = asyncio.run(self._hit())
            self._row("hit", 0, seconds)
            click.echo(f"found in {duration(seconds)}, without asking the origin")
        self._rival(bucket)
        _title("Side by side")
        print_table(("STEP", "BYTES FETCHED", "TIME", "RATE"), self.rows)

    def _fill_bucket(self) -> Bucket:
        _title(
            f"A real S3 server (SeaweedFS) on {self.server.endpoint}: two versions of a checkpoint, and a real model"
        )
        bucket = Bucket(self.server, "models")
        bucket.create()
        for number, prefix in enumerate(("llama", "llama-next")):
            with tempfile.TemporaryDirectory(dir=self.work) as checkpoint:
                write_checkpoint(Path(checkpoint), size_bytes=self.size_bytes, shards=SHARDS, seed=number)
                click.echo(f"uploaded {size(bucket.upload(Path(checkpoint), prefix))} to s3://models/{prefix}")
        click.echo(f"uploaded {size(bucket.upload(find_minilm(), 'minilm'))} to s3://models/minilm")
        return bucket

    @contextmanager
    def _agent(self) -> Iterator[None]:
        """A running agent; killed or not, it is gone at the end."""
        config = self.work / "models.yaml"
        config.write_text(yaml.safe_dump({"root": str(self.root), "listen": "", "store": {"floor": "1GB"}}))
        log = self.work / "agent.log"
        command = [sys.executable, "-m", "cacheagent", "agent", "--config", str(config)]
        with running_child(command, log_path=log, environment=self._environment()) as child:
            self._agent_pid = child.pid
            wait_until_ready(child, self._agent_answers, name="the agent", log_path=log, timeout_s=READY_TIMEOUT_S)
            click.echo(f"$ cacheagent agent --config {config.name} &        # pid {child.pid}")
            yield

    def _agent_answers(self) -> bool:
        async def ask() -> bool:
            async with AgentClient(self.root / "agent.sock") as client:
                try:
                    await client.version()
                except AgentUnavailable:
                    return False
                return True

        return asyncio.run(ask())

    def _pull(self, uri: str) -> JobStatus:
        """`cacheagent pull`, on the person's own terminal; then what the agent says of it."""
        self._command("pull", uri, "--endpoint", self.server.endpoint, "--region", self.server.region)
        return asyncio.run(self._job(uri))

    async def _job(self, uri: str) -> JobStatus:
        async with AgentClient(self.root / "agent.sock") as client:
            return next(job for job in (await client.status()).jobs if job.uri == uri)

    def _pull_and_kill(self, uri: str) -> None:
        pull = subprocess.Popen(
            self._arguments("pull", uri, "--endpoint", self.server.endpoint, "--region", self.server.region),
            env={**os.environ, **self._environment()},
        )
        try:
            status = asyncio.run(self._at_share(uri, KILL_AT))
            os.kill(self._agent_pid, signal.SIGKILL)
            click.echo(f"killed with {size(status.bytes_done)} of {size(status.bytes_total)} on disk")
        finally:
            pull.wait(READY_TIMEOUT_S)

    async def _at_share(self, uri: str, share: float) -> JobStatus:
        async with AgentClient(self.root / "agent.sock") as client:
            async for status in client.events():
                if status.uri == uri and status.bytes_total and status.bytes_done >= share * status.bytes_total:
                    return status
        raise CacheAgentError("the agent stopped before it was killed", hint=f"its log is {self.work / 'agent.log'}")

    async def _hit(self) -> float:
        async with AgentClient(self.root / "agent.sock") as client:
            await client.version()  # the connection is there, as a driver's would be
            started = time.perf_counter()
            await client.ensure("llama", wait_s=10)
            return time.perf_counter() - started

    def _compare_tensor(self, bucket: Bucket, tree: Path) -> None:
        from safetensors import safe_open

        shard = f"model-00003-of-{SHARDS:05}.safetensors"
        with safe_open(tree / "files" / shard, framework="np") as opened:
            name = min(opened.keys())
            cached = opened.get_tensor(name)
        if cached.tobytes() != bucket.tensor_bytes(f"llama/{shard}", name):
            raise CacheAgentError(
                f"tensor {name} of {shard} differs from the origin", hint="this is a bug; please report it"
            )
        click.echo(f"{shard}: tensor {name} {cached.dtype}{list(cached.shape)} equals the origin's, byte for byte")

    def _rival(self, bucket: Bucket) -> None:
        _title("The same by boto3, as a start-up script would (not verified, nothing kept for the next pod)")
        started = time.perf_counter()
        fetched = bucket.download("llama", self.work / "by-boto3")
        self._row("boto3 download_file", fetched, time.perf_counter() - started)

    def _row(self, step: str, fetched: int, seconds: float) -> None:
        rate = f"{size(fetched / seconds)}/s" if fetched else "-"
        self.rows.append((step, size(fetched), duration(seconds), rate))

    def _command(self, *arguments: str) -> None:
        click.echo(f"$ cacheagent {' '.join(arguments)}")
        ended = subprocess.run(self._arguments(*arguments), env={**os.environ, **self._environment()}, check=False)
        if ended.returncode:
            raise CacheAgentError(
                f"`cacheagent {arguments[0]}` ended with {ended.returncode}",
                hint=f"the agent's log is {self.work / 'agent.log'}",
            )

    def _arguments(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "cacheagent", *arguments, "--root", str(self.root)]

    def _environment(self) -> dict[str, str]:
        return {"AWS_ACCESS_KEY_ID": self.server.access_key, "AWS_SECRET_ACCESS_KEY": self.server.secret_key}


@contextmanager
def _workspace(directory: Path | None, *, needed_bytes: int) -> Iterator[Path]:
    """A directory of our own below `directory`, removed at the end."""
    parent = directory or Path(tempfile.gettempdir())
    free = shutil.disk_usage(parent).free
    if free < needed_bytes:
        raise CacheAgentError(
            f"the demo needs {size(needed_bytes)} in {parent}, {size(free)} are free",
            hint="give another place with --dir, or a smaller --size-gb",
        )
    with tempfile.TemporaryDirectory(prefix="cacheagent-demo-", dir=parent) as work:
        yield Path(work)


def _title(text: str) -> None:
    click.secho(f"\n== {text}", bold=True)
