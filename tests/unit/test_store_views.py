"""Both views of a published tree as their readers see them: read-only, offline, as another user, and as any agent."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cacheagent.model import SMALL_FILE_BYTES
from cacheagent.store import Store
from cacheagent.store.tree import commit_of
from tests.fakes.cache import (
    DOMAIN,
    NO_FLOOR,
    blobs_of,
    bring,
    content_of,
    files_under,
    hashes_of,
    manifest_of,
    reserve,
    stage,
)

REPO = "acme/tiny-llama"
FILES = {
    "config.json": json.dumps({"model_type": "llama", "hidden_size": 16, "num_attention_heads": 2}).encode(),
    "sub/notes.txt": b"n",
    "tokenizer.json": json.dumps(
        {
            "version": "1.0",
            "added_tokens": [],
            "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "hello": 1}, "unk_token": "[UNK]"},
        }
    ).encode(),
    "tokenizer_config.json": b'{"tokenizer_class": "PreTrainedTokenizerFast"}',
    "model.safetensors": content_of("w", SMALL_FILE_BYTES),
}
NOBODY = 65534


@contextmanager
def read_only_mount(source: Path, target: Path) -> Iterator[Path]:
    """What a pod gets: a read-only bind mount. Without root: the tree itself, which is read-only for its owner too."""
    target.mkdir()
    bind: list[str | Path] = ["mount", "--bind", source, target]
    if os.geteuid() != 0 or subprocess.run(bind, check=False, capture_output=True).returncode != 0:
        yield source
        return
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", target], check=True)
        yield target
    finally:
        subprocess.run(["umount", target], check=True)


OFFLINE = """
import json, os, sys
from huggingface_hub import hf_hub_download, snapshot_download
from transformers import AutoConfig, AutoTokenizer
repo = sys.argv[1]
snapshot = snapshot_download(repo, local_files_only=True)
print(json.dumps({
    "snapshot": sorted(os.listdir(snapshot)),
    "commit": os.path.basename(snapshot),
    "file": open(hf_hub_download(repo, "sub/notes.txt")).read(),
    "hidden": AutoConfig.from_pretrained(repo).hidden_size,
    "tokens": AutoTokenizer.from_pretrained(repo)("hello")["input_ids"],
}))
"""


@pytest.mark.parametrize("revision", ["", "0123456789abcdef0123456789abcdef01234567"])
def test_the_hf_view_loads_by_repository_id_offline_from_a_read_only_mount(tmp_path: Path, revision: str) -> None:
    """As engines do: HF_HUB_CACHE points at the mount, HF_HUB_OFFLINE is set; nothing else."""
    store = Store.open(tmp_path / "cache", NO_FLOOR)
    reservation = reserve(store, FILES)
    stage(store, FILES)
    manifest = manifest_of(FILES, repo_id=REPO, revision=revision)
    hashes = {blob: hashes_of(content) for blob, content in blobs_of(FILES).items()}
    record = store.publish(manifest, DOMAIN, hashes, uri="hf://x", name="m", pin=False, priority=0)
    reservation.release()
    with read_only_mount(store.path(record.digest) / "hf", tmp_path / "mount") as mount:
        environment = {
            "HF_HUB_CACHE": str(mount),
            "HF_HUB_OFFLINE": "1",
            "HOME": str(tmp_path),
            "PATH": os.environ["PATH"],
        }
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", OFFLINE, REPO],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "snapshot": sorted({path.split("/")[0] for path in FILES}),
        "commit": revision or record.digest.removeprefix("sha256:")[:40],
        "file": "n",
        "hidden": 16,
        "tokens": [1],
    }
    store.close()


def test_the_two_views_are_one_copy(tmp_path: Path) -> None:
    """Hard links, no symlinks: those do not survive a bind mount. Without a repository id there is only one view."""
    store = Store.open(tmp_path / "cache", NO_FLOOR)
    record = bring(store, FILES, repo_id=REPO)
    tree = store.path(record.digest)
    snapshot = tree / "hf" / "models--acme--tiny-llama" / "snapshots" / commit_of(record.manifest)
    assert files_under(tree / "files") == files_under(snapshot) == FILES
    for path in FILES:
        assert (tree / "files" / path).samefile(snapshot / path)
    assert not any(path.is_symlink() for path in tree.rglob("*"))
    plain = bring(store, {"a": b"1"})
    assert {path.name for path in store.path(plain.digest).iterdir()} == {"files"}
    store.close()


AS_NOBODY = """
import os, sys
sys.path[:0] = sys.argv[2:]
from pathlib import Path
from cacheagent.store import Store
from tests.fakes.cache import NO_FLOOR, bring, content_of, stage, reserve
os.setgid(65534)
os.setuid(65534)  # after the imports: the interpreter may live where only root can read
root = Path(sys.argv[1])
files = {"a/b/c.bin": content_of("1", 2**20), "a/d": b"x", "e": b""}
store = Store.open(root, NO_FLOOR)
record = bring(store, files, repo_id="org/name")
tree = store.path(record.digest) / "files"
for change in (lambda: (tree / "new").touch(), (tree / "e").unlink):
    try:
        change()
    except PermissionError:
        print("refused")
store.repair_piece(next(iter(store.blobs_of(record.digest))), 0, files["a/b/c.bin"])
store.close()
store = Store.open(root, NO_FLOOR)
print(store.evict(record.digest))
held = reserve(store, files)
stage(store, files)
store.close()
store = Store.open(root, NO_FLOOR)
print(bring(store, files, repo_id="org/name").digest == record.digest)
store.close()
"""


def test_an_agent_without_privileges_publishes_evicts_and_repairs() -> None:
    """Directories of mode 0555 can't be renamed or emptied by their owner as they are; root never notices."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else; the other tests run without privileges already")
    home = tempfile.mkdtemp()
    os.chown(home, NOBODY, NOBODY)
    root = Path(home) / "cache"
    command = [sys.executable, "-c", AS_NOBODY, str(root), *filter(None, sys.path)]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    kept = subprocess.run(["find", root / "trash"], user=NOBODY, capture_output=True, text=True, check=True)
    remove = ["sh", "-c", 'chmod -R u+w "$0" && rm -r "$0"', str(root)]
    subprocess.run(remove, user=NOBODY, cwd="/", check=True)  # this process may lack root's power to
    os.chown(home, os.geteuid(), -1)
    Path(home).rmdir()
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["refused", "refused", str(2**20 + 1), "True"]
    assert kept.stdout.split() == [str(root / "trash")]


def test_more_equal_files_than_the_filesystem_takes_names_for_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ext4 takes 65,000 names for one file; a data set of empty labels may have more."""
    store = Store.open(tmp_path / "cache", NO_FLOOR)
    real = os.link

    def limited(source: str, target: str) -> None:
        if os.stat(source).st_nlink > 5:
            raise OSError(errno.EMLINK, "Too many links", source)
        real(source, target)

    monkeypatch.setattr(os, "link", limited)
    files = {f"labels/{number}.txt": b"same" for number in range(20)}
    record = bring(store, files)
    assert files_under(store.path(record.digest) / "files") == files
    assert {path.stat().st_mode & 0o777 for path in store.path(record.digest).rglob("*.txt")} == {0o444}
    store.close()
