"""I8: no credential, token or signed URL reaches a log, an answer, a metric, a record or the process list.

The typical flows run with tokens that are known here, good and refused, and everything that the product wrote or said
is searched for them. The positive controls: the origins did receive them, and the search finds a planted one.
"""

from __future__ import annotations

import asyncio
import base64
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import psutil
import pytest

from cacheagent.api.client import AgentClient
from cacheagent.demo.seaweedfs import S3Server
from cacheagent.model import PIECE_SIZE_BYTES
from cacheagent.spec import ModelSpec, SourceSpec
from tests.fakes.faults import Reset, Status
from tests.fakes.hub import Hub
from tests.fakes.models import checkpoint, write_files
from tests.fakes.origin import Origin
from tests.fakes.peer_agents import PeerAgents
from tests.fakes.running_agent import RunningAgent
from tests.fakes.s3 import client_for, new_bucket
from tests.fakes.wiretap import Wiretap

HUB_TOKEN = "hf_knownHubTokenForTheSearch0123456789"
WEB_TOKEN = "knownWebTokenForTheSearch0123456789"
WRONG_TOKEN = "knownWrongTokenForTheSearch0123456789"
SIGNED = re.compile(rb"(?:X-Amz-Signature|X-Amz-Credential|[?&]Signature)=[A-Za-z0-9%/]", re.IGNORECASE)
LIMIT_S = 120.0
STEP = 256 * 1024


def findings(name: str, content: bytes, tokens: list[str]) -> list[str]:
    """What of the secrets stands in something; the finding does not repeat it."""
    found = [
        f"{name}: token {number}" for number, token in enumerate(tokens) for shape in shapes(token) if shape in content
    ]
    return found + [f"{name}: a signed URL" for _ in SIGNED.findall(content)]


def shapes(token: str) -> set[bytes]:
    """As it is, as URLs have it, and in base64 wherever it begins in what was encoded."""
    plain = token.encode()
    found = {plain, quote(token, safe="").encode()}
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + plain)[(4 * before + 2) // 3 : -4]
        found |= {encoded, encoded.translate(bytes.maketrans(b"+/", b"-_"))}
    return found


class ProcessList:
    """Command lines of every process that ran below this one while it watched."""

    def __init__(self) -> None:
        self.lines: set[str] = set()
        self._stop = threading.Event()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._stop.is_set():
            for child in me.children(recursive=True):
                try:
                    self.lines.add("\0".join(child.cmdline()))
                except psutil.Error:  # it ended meanwhile
                    continue
            self._stop.wait(0.05)

    @contextmanager
    def watching(self) -> Iterator[None]:
        thread = threading.Thread(target=self._watch)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()


def spec(name: str, uri: str, *, endpoint: str = "", region: str = "", credential: str = "") -> ModelSpec:
    return ModelSpec(name=name, source=SourceSpec(uri=uri, endpoint=endpoint, region=region, credential=credential))


async def api_answers(agent: RunningAgent, specs: list[ModelSpec]) -> dict[str, bytes]:
    """Bring every model over the socket, listening to the event stream, then ask for everything that can be asked."""
    answers: dict[str, bytes] = {}
    socket = str(agent.root / "agent.sock")
    heard: list[bytes] = []

    async def listen(session: aiohttp.ClientSession) -> None:
        async with session.get("http://agent/v1/events", timeout=aiohttp.ClientTimeout(total=None)) as response:
            async for line in response.content:
                heard.append(line)  # noqa: PERF401 - what was heard must survive the cancellation

    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(socket)) as session:
        listening = asyncio.create_task(listen(session))
        async with AgentClient(Path(socket)) as client:
            for wanted in specs:
                status = await client.ensure(wanted, wait_s=LIMIT_S)
                answers[f"ensure {wanted.name} {status.phase}"] = repr(status).encode()
        for path in ("version", "status", "models", "leases"):
            async with session.get(f"http://agent/v1/{path}") as response:
                answers[path] = await response.read()
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
    answers["events"] = b"".join(heard)
    return answers


def written_files(root: Path) -> dict[str, bytes]:
    """Everything below the cache directory that is not weights."""
    weights = {"blobs", "models"}
    return {
        str(path): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.relative_to(root).parts[0] not in weights and path.stat().st_size < 1 << 20
    }


@pytest.mark.s3_real
def test_no_secret_is_ever_written_or_said(
    seaweedfs: S3Server, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3, Hub and web, with good and with wrong credentials, through the agent and without one."""
    files = checkpoint(size_bytes=6 << 20)
    bucket = new_bucket(client_for(seaweedfs))
    for path, content in files.items():
        client_for(seaweedfs).put_object(Bucket=bucket, Key=f"m/{path}", Body=content)
    hub.create("acme/private", private=True, readers=(HUB_TOKEN,)).commit(files)
    write_files(tmp_path / "web", files)
    for name, value in {
        "AWS_ACCESS_KEY_ID": seaweedfs.access_key,
        "AWS_SECRET_ACCESS_KEY": seaweedfs.secret_key,
        "CACHEAGENT_TOKEN_HUB": HUB_TOKEN,
        "CACHEAGENT_TOKEN_WEB": WEB_TOKEN,
        "CACHEAGENT_TOKEN_WRONG": WRONG_TOKEN,
    }.items():
        monkeypatch.setenv(name, value)
    s3 = {"endpoint": seaweedfs.endpoint, "region": seaweedfs.region}
    processes = ProcessList()
    with Origin({f"m/{path}": content for path, content in files.items()}, token=WEB_TOKEN) as web:
        web.add_sums("m")
        web.inject(Reset(after_bytes=1000), path="m/model-00001-of-00003.safetensors", nth=1)
        hub.storage.inject(Status(500), nth=1)
        specs = [
            spec("s3", f"s3://{bucket}/m", **s3),
            spec("s3-missing", f"s3://{bucket}/nothing", **s3),
            spec("hub", "hf://acme/private", endpoint=hub.url, credential="hub"),
            spec("hub-wrong", "hf://acme/private", endpoint=hub.url, credential="wrong"),
            spec("web", f"{web.url}/m/", credential="web"),
            spec("web-wrong", f"{web.url}/m/", credential="wrong"),
        ]
        with processes.watching(), RunningAgent(tmp_path, logs={"level": "debug"}) as agent:
            said = asyncio.run(api_answers(agent, specs))
            said["metrics"] = agent.get("/metrics")[1].encode()
        cli = [
            sys.executable,
            "-m",
            "cacheagent",
            "pull",
            f"{web.url}/m/",
            "--root",
            str(tmp_path / "own"),
            "-o",
            "json",
        ]
        with processes.watching():
            for credential in ("web", "wrong"):
                ended = subprocess.run(
                    [*cli, "--credential", credential, "--refresh"], capture_output=True, check=False, timeout=LIMIT_S
                )
                said[f"cli {credential} {ended.returncode}"] = ended.stdout + ended.stderr
        reached = {request.headers.get("authorization") for request in web.requests}
        reached |= {request.headers.get("authorization") for request in hub.requests}

    outcomes = {name.split()[1]: name.split()[2] for name in said if name.startswith("ensure ")}
    ready, failed = {"s3", "hub", "web"}, {"s3-missing", "hub-wrong", "web-wrong"}
    assert outcomes == dict.fromkeys(ready, "ready") | dict.fromkeys(failed, "failed")
    assert {"cli web 0", "cli wrong 1"} <= set(said)
    assert {f"Bearer {token}" for token in (HUB_TOKEN, WEB_TOKEN, WRONG_TOKEN)} <= reached
    assert not hub.tokens_seen_by_storage()
    assert len(said["events"]) > 1000
    assert any("cacheagent.transfer.worker" in line for line in processes.lines)

    said["log"] = agent.log.read_bytes()
    said |= written_files(agent.root) | written_files(tmp_path / "own")
    said["process list"] = "\n".join(processes.lines).encode()
    assert sum("records/" in name for name in said) == 4
    tokens = [HUB_TOKEN, WEB_TOKEN, WRONG_TOKEN, seaweedfs.secret_key]
    assert [finding for name, content in said.items() for finding in findings(name, content, tokens)] == []


@pytest.mark.s3_real
def test_no_secret_goes_from_one_agent_to_another(
    seaweedfs: S3Server, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two agents exchange models of S3, a Hub and the web in the clear, both ways, past somebody who keeps all that
    goes by. The controls: all weights went by, and the origins that show it were shown the tokens."""
    files = {
        name: {"a.bin": os.urandom(PIECE_SIZE_BYTES + 4321), "config.json": b"{}"} for name in ("s3", "hub", "web")
    }
    bucket = new_bucket(client_for(seaweedfs))
    for path, content in files["s3"].items():
        client_for(seaweedfs).put_object(Bucket=bucket, Key=f"m/{path}", Body=content)
    hub.create("acme/private", private=True, readers=(HUB_TOKEN,)).commit(files["hub"])
    for name, value in {
        "AWS_ACCESS_KEY_ID": seaweedfs.access_key,
        "AWS_SECRET_ACCESS_KEY": seaweedfs.secret_key,
        "CACHEAGENT_TOKEN_HUB": HUB_TOKEN,
        "CACHEAGENT_TOKEN_WEB": WEB_TOKEN,
    }.items():
        monkeypatch.setenv(name, value)
    with Origin({f"m/{path}": content for path, content in files["web"].items()}, token=WEB_TOKEN) as web:
        web.add_sums("m")
        sources: dict[str, dict[str, Any]] = {
            "s3": {"uri": f"s3://{bucket}/m", "endpoint": seaweedfs.endpoint, "region": seaweedfs.region},
            "hub": {"uri": "hf://acme/private", "endpoint": hub.url, "credential": "hub"},
            "web": {"uri": f"{web.url}/m/", "credential": "web"},
        }
        models = [{"name": name, "kind": "tree", "source": source} for name, source in sources.items()]
        with (
            Wiretap() as to_n0,
            Wiretap() as to_n1,
            PeerAgents(tmp_path, web, 2, via={"n0": to_n0.port, "n1": to_n1.port}) as fleet,
        ):
            to_n0.to, to_n1.to = fleet.ports["n0"], fleet.ports["n1"]
            n0, n1 = fleet.agents["n0"], fleet.agents["n1"]
            n0.configure(*models[:2])
            n1.configure(models[2])
            fleet.start()
            for agent, mine in ((n0, ("s3", "hub")), (n1, ("web",))):
                for name in mine:
                    agent.wait_until_ready(name)
            for agent in (n0, n1):
                agent.configure(*models)
                agent.send(signal.SIGHUP)
            for agent in (n0, n1):
                for name in sources:
                    agent.wait_until_ready(name)
        heard = {"to n0": to_n0.heard, "to n1": to_n1.heard}
    for tap, names in (("to n0", ("s3", "hub")), ("to n1", ("web",))):
        for name in names:
            data = files[name]["a.bin"]
            assert any(data[at : at + 64] in heard[tap] for at in range(0, len(data) - 64, STEP)), name
    assert f"Bearer {WEB_TOKEN}" in {request.headers.get("authorization") for request in web.requests}
    assert f"Bearer {HUB_TOKEN}" in {request.headers.get("authorization") for request in hub.requests}
    tokens = [HUB_TOKEN, WEB_TOKEN, seaweedfs.secret_key]
    assert [finding for tap, content in heard.items() for finding in findings(tap, content, tokens)] == []


def test_the_search_finds_what_is_planted() -> None:
    """Each token in each of its shapes, and each kind of signed URL."""
    tokens = [HUB_TOKEN, WEB_TOKEN]
    planted = f"x {WEB_TOKEN} https://h/k?a=1&Signature=ab https://h/k?X-Amz-Signature=00".encode()
    assert findings("log", planted, tokens) == ["log: token 1", "log: a signed URL", "log: a signed URL"]
    assert findings("log", b"nothing to see: Signature=", tokens) == []
    for before in (b"", b"x", b"xy", b"Bearer "):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            assert findings("log", encode(before + WEB_TOKEN.encode() + b" and more"), tokens) != []
    odd = "aToken+of/many=signs"
    assert findings("log", quote(odd, safe="").encode(), [odd]) == ["log: token 0"]
