"""No token, key or signed URL is anywhere but where it belongs: in the agent's memory and in requests to its origin."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from cacheagent.demo.seaweedfs import S3Server
from cacheagent.model import MIB
from tests.fakes.faults import Reset, Status
from tests.fakes.hub import Hub
from tests.fakes.moto import running_moto
from tests.fakes.origin import Origin
from tests.fakes.running_agent import PATIENCE_S, RunningAgent
from tests.fakes.s3 import client_for, new_bucket

FILES = {"config.json": b"{}", "weights.bin": bytes(range(251)) * (20 * MIB // 251)}
HUB_TOKEN = "hf_GoodTokenOfTheReader0123456789"
WRONG_TOKEN = "hf_WrongTokenOfAStranger0123456789"
WEB_TOKEN = "web-token-8d1c2f"
SIGNED = re.compile(r"(X-Amz-Signature|X-Amz-Credential|[?&]Signature)=(?!\[hidden\])", re.IGNORECASE)


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    """An S3 with known keys."""
    with running_moto() as server:
        yield server


def test_known_secrets_are_nowhere(tmp_path: Path, s3: S3Server) -> None:
    """Pulls that succeed, are refused, break off and are repeated; then everything that can be read is searched."""
    client = client_for(s3)
    bucket = new_bucket(client)
    for path, body in FILES.items():
        client.put_object(Bucket=bucket, Key=f"m/{path}", Body=body)
    client.close()
    with Hub() as hub, Origin({f"m/{path}": body for path, body in FILES.items()}, token=WEB_TOKEN) as web:
        hub.create("org/model", private=True, readers=(HUB_TOKEN,)).commit(FILES)
        web.add_sums("m")
        hub.storage.inject(Reset(after_bytes=1000))
        web.inject(Status(503), path="m/weights.bin")
        agent = RunningAgent(
            tmp_path,
            {"name": "s3", "kind": "tree", "source": {"uri": f"s3://{bucket}/m", "endpoint": s3.endpoint}},
            {"name": "s3-none", "kind": "tree", "source": {"uri": f"s3://{bucket}-x/m", "endpoint": s3.endpoint}},
            {"name": "hub", "kind": "tree", "source": _hub(hub, "reader")},
            {"name": "hub-refused", "kind": "tree", "source": _hub(hub, "stranger")},
            {"name": "web", "kind": "tree", "source": {"uri": f"{web.url}/m/", "credential": "web"}},
            {"name": "web-refused", "kind": "tree", "source": {"uri": f"{web.url}/m/", "credential": "stranger"}},
            logs={"level": "debug"},
        )
        agent.environment = {
            "AWS_ACCESS_KEY_ID": s3.access_key,
            "AWS_SECRET_ACCESS_KEY": s3.secret_key,
            "CACHEAGENT_TOKEN_READER": HUB_TOKEN,
            "CACHEAGENT_TOKEN_STRANGER": WRONG_TOKEN,
            "CACHEAGENT_TOKEN_WEB": WEB_TOKEN,
        }
        with agent:
            for name in ("s3", "hub", "web"):
                agent.wait_until_ready(name)
            agent.wait_until(lambda: {w.state for w in agent.status().wanted if w.state != "ready"} == {"failed"})
            texts = _everything_readable(agent)
        texts |= {"log": agent.log.read_text()}

        used = [each.headers.get("authorization", "") for each in (*hub.requests, *web.requests)]
        for token in (HUB_TOKEN, WRONG_TOKEN, WEB_TOKEN):
            assert f"Bearer {token}" in used, "it was used where it belongs, or this test shows nothing"
        assert hub.tokens_seen_by_storage() == []
        signatures = {each.query.partition("Signature=")[2] for each in hub.storage.requests} - {""}
        assert signatures

    secrets = {s3.secret_key, HUB_TOKEN, WRONG_TOKEN, WEB_TOKEN, *signatures}
    assert {name: found for name, text in texts.items() if (found := _found(text, secrets))} == {}
    assert len(texts) > 12
    for secret in (*secrets, "https://host/x?X-Amz-Signature=00"):
        assert _found(f"before {secret} after", secrets), "the search itself works"


def _hub(hub: Hub, credential: str) -> dict[str, str]:
    return {"uri": "hf://org/model", "endpoint": hub.url, "credential": credential}


def _found(text: str, secrets: set[str]) -> list[str]:
    return [secret for secret in secrets if secret in text] + [match[0] for match in SIGNED.finditer(text)]


def _everything_readable(agent: RunningAgent) -> dict[str, str]:
    """By where it was read: API, metrics, commands, small files of the cache, command lines of all processes."""
    texts = {
        "status": msgspec.json.encode(agent.status()).decode(),
        "first event": repr(agent.ask(lambda client: anext(client.events()))),
        "metrics": agent.get("/metrics")[1],
        "health": agent.get("/healthz")[1],
    }
    for command in (["status"], ["ls"], ["ls", "-o", "json"], ["status", "-o", "json"]):
        argv = [sys.executable, "-m", "cacheagent", *command, "--root", str(agent.root)]
        ended = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        texts[" ".join(command)] = ended.stdout + ended.stderr
    for path in agent.root.rglob("*"):
        if path.is_file() and path.stat().st_size < MIB:
            texts[str(path)] = path.read_bytes().decode(errors="replace")
    process = psutil.Process(agent.process.pid)
    for each in (process, *process.children(recursive=True)):
        texts[f"process {each.pid}"] = " ".join(each.cmdline())
    return texts
