"""The images of a test cluster: the product's own by its real Dockerfile, and the pause image.

A node doesn't import them (seconds of unpacking each time): they are imported once into a template of containerd's
folder, which is named by a hash of what the image is made of, and a node gets hard links to it. That is safe since
containerd never writes to a blob or to a committed layer again; its databases, which it does write, are copied.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import cacheagent
from tests.e2e.cluster.archive import write_pause_archive
from tests.e2e.cluster.binaries import ROOT
from tests.e2e.cluster.process import run, spawn
from tests.e2e.cluster.slot import state_folder
from tests.e2e.cluster.waiting import say, wait_until
from tests.privileges import as_root_for_long

PRODUCT_IMAGE = f"localhost/cacheagent:{cacheagent.__version__}"
KEPT_TEMPLATES = 3

_INPUTS = ("Dockerfile", "pyproject.toml", "README.md", "LICENSE", "requirements/runtime.txt", "scripts/image")
_INPUT_FOLDERS = ("cacheagent", "csi")
_FORMAT = b"1"
"""Changes when templates are made in another way."""


def images_folder() -> Path:
    return state_folder() / "images"


def inputs_hash() -> str:
    """Of everything that the product's image is made of."""
    digest = hashlib.sha256(_FORMAT)
    files = [ROOT / name for name in _INPUTS]
    for folder in _INPUT_FOLDERS:
        files += [path for path in sorted((ROOT / folder).rglob("*")) if path.is_file() and path.suffix != ".pyc"]
    for path in files:
        if path.exists():
            digest.update(f"{path.relative_to(ROOT)} {path.stat().st_mode & 0o111}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    images_folder().mkdir(parents=True, exist_ok=True)
    with (images_folder() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def get_template() -> Path:
    """The template for the sources as they are now; made if need be (a minute and more, mostly the image).

    With `E2E_IMAGE=newest` in the environment it is the one that was used last, whatever the sources are: for work on
    the harness itself.
    """
    with _alone():
        template = images_folder() / inputs_hash()
        if os.environ.get("E2E_IMAGE") == "newest":
            template = max(_templates(), key=lambda path: path.stat().st_mtime, default=template)
        if not template.exists():
            say(f"building the image and a template of it, {template}")
            beside = template.with_name(f".{template.name}.new")
            run("rm", "-rf", beside)
            _make_template(beside)
            beside.rename(template)
        os.utime(template)
        _forget_old_templates()
    return template


def _templates() -> list[Path]:
    return [path for path in images_folder().iterdir() if path.is_dir() and not path.name.startswith(".")]


def _make_template(folder: Path) -> None:
    folder.mkdir()
    log = folder / "image.log"

    def build() -> None:
        with log.open("w") as output:
            subprocess.run(
                [ROOT / "scripts/image"], check=True, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=ROOT
            )

    try:
        as_root_for_long(build)
    except subprocess.CalledProcessError as error:
        raise AssertionError(f"scripts/image failed: {log.read_text()[-2000:]}") from error
    write_pause_archive(folder / "pause.tar")
    _import(folder, [folder / "pause.tar", ROOT / "build/image.tar"])


def _import(folder: Path, archives: list[Path]) -> None:
    """By a containerd of its own, which is stopped before anybody copies what it made."""
    config, socket = folder / "containerd.toml", f"/run/cacheagent-e2e-template-{os.getpid()}"
    config.write_text(
        f'version = 2\nroot = "{folder}/containerd"\nstate = "{socket}"\n'
        'disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]\n'
        f'[grpc]\n  address = "{socket}/s"\n'
    )
    enters = ["unshare", "--mount", "--propagation", "private", "--fork", "--kill-child=SIGKILL"]
    program = spawn(
        "containerd of the template", ["containerd", "--config", config], folder / "containerd.log", enters=enters
    )
    ctr = ("ctr", "--address", f"{socket}/s", "-n", "k8s.io")
    try:
        wait_until(lambda: run(*ctr, "version"), "containerd of the template answers", 30.0)
        for archive in archives:
            run(*ctr, "images", "import", "--snapshotter=overlayfs", archive, limit=300.0)
    finally:
        program.stop()
        run("rm", "-rf", socket)


def _forget_old_templates() -> None:
    """Each is a gigabyte. One that somebody is cloning is among the newest."""
    templates = sorted(_templates(), key=lambda path: path.stat().st_mtime)
    for path in templates[:-KEPT_TEMPLATES]:
        if time.time() - path.stat().st_mtime > 600:
            run("rm", "-rf", path)


def clone_template(template: Path, target: Path) -> None:
    """Give a node its own containerd folder. The target must not be there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    run("cp", "--archive", "--link", template / "containerd", target)
    for path in run("find", target, "-name", "*.db", "-type", "f").stdout.split():
        run("cp", "--preserve=all", path, f"{path}.own")
        run("mv", f"{path}.own", path)
