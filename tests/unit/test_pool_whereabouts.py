"""Where bytes are: the origin, the mount, what people may read of it, and how old the knowledge is."""

from __future__ import annotations

import pytest

from cacheagent.location import HttpLocation, PathLocation
from cacheagent.transfer.whereabouts import Located, display_name, group_key, mount_point, origin_key, read_mountinfo

MOUNTINFO = r"""22 1 8:1 / / rw,relatime - ext4 /dev/root rw
30 22 0:40 / /mnt/models rw - nfs4 server:/export rw
31 30 0:41 / /mnt/models/llama rw - nfs4 other:/llama rw
32 22 0:42 / /mnt/with\040space rw - lustre fs rw
"""


@pytest.mark.parametrize(
    ("path", "point"),
    [
        ("/mnt/models/a/b.safetensors", "/mnt/models"),
        ("/mnt/models/llama/x", "/mnt/models/llama"),
        ("/mnt/models-old/x", "/"),
        ("/mnt/models", "/mnt/models"),
        ("/mnt/models/../x", "/"),
        ("/mnt/with space/x", "/mnt/with space"),
    ],
)
def test_a_path_belongs_to_the_deepest_mount_above_it(path: str, point: str) -> None:
    """By whole names, without touching the path."""
    assert mount_point(path, MOUNTINFO) == point


def test_this_machine_has_mounts() -> None:
    """The kernel's own text is understood."""
    assert mount_point("/proc/self/status", read_mountinfo()) == "/proc"


def test_origins_are_hosts_and_mounts() -> None:
    """Two URLs of one server are one origin and share the HTTP workers; a mount has its own."""
    one = HttpLocation(url="https://user:secret@Host:9000/b/a?X-Amz-Signature=s")
    two = HttpLocation(url="https://host:9000/other")
    path = PathLocation(path="/mnt/models/a", size_bytes=1, mtime_ns=1)
    assert origin_key(one, "") == origin_key(two, "") == "https://host:9000"
    assert origin_key(path, MOUNTINFO) == "mount:/mnt/models"
    assert group_key(one, origin_key(one, "")) == "http"
    assert group_key(path, origin_key(path, MOUNTINFO)) == "mount:/mnt/models"


def test_names_for_people_hold_no_secrets() -> None:
    """Neither the signature nor the user of a URL; a path is shown as it is."""
    location = HttpLocation(url="https://user:secret@host/b/a%20b.bin?X-Amz-Signature=s#f", headers={"Token": "t"})
    assert display_name(location) == "https://host/b/a%20b.bin"
    assert display_name(PathLocation(path="/m/a", size_bytes=1, mtime_ns=1)) == "/m/a"


def test_a_refusal_may_be_age_only_for_what_worked_or_is_old() -> None:
    """A fresh location that never worked is refused for good."""
    located = Located(location=HttpLocation(url="http://o/a"), asked_at=100.0)
    assert not located.may_have_expired(150.0, 60.0)
    assert located.may_have_expired(161.0, 60.0)
    located.worked = True
    assert located.may_have_expired(101.0, 60.0)
