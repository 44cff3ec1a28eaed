"""Where a blob's bytes are and how old that knowledge is; what people and schedulers call the place."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from cacheagent.location import HttpLocation, Location

HTTP_GROUP: Final = "http"
_END_OF_HOST: Final = re.compile("[/?#]")


@dataclass(eq=False, kw_only=True)
class Located:
    """A location, when it was asked for (seconds), and whether it has ever worked."""

    location: Location
    asked_at: float
    worked: bool = False

    def may_have_expired(self, now: float, fresh_s: float) -> bool:
        """Whether a refusal can be the URL's age rather than the credentials."""
        return self.worked or now - self.asked_at > fresh_s


def display_name(location: Location) -> str:
    """For messages: a URL without query, user and fragment, which may be secret; or the path."""
    if not isinstance(location, HttpLocation):
        return location.path
    parts = urlsplit(location.url)
    return f"{parts.scheme}://{_host(parts.netloc)}{parts.path}"


def origin_key(location: Location, mountinfo: str) -> str:
    """Scheme, host and port of a URL; the mount point of a path. `mountinfo`: the text of /proc/self/mountinfo."""
    if not isinstance(location, HttpLocation):
        return f"mount:{mount_point(location.path, mountinfo)}"
    scheme, _, rest = location.url.partition("://")  # urlsplit would be most of what a small file costs the loop
    return f"{scheme}://{_host(_END_OF_HOST.split(rest, 1)[0])}"


def group_key(location: Location, key: str) -> str:
    """Which workers serve it: those for HTTP, or those of its mount."""
    return HTTP_GROUP if isinstance(location, HttpLocation) else key


def mount_point(path: str, mountinfo: str) -> str:
    """The mount that a path lies on, without touching the path: a mount that hangs would hang us too."""
    points = (_unescape(line.split(" ", 5)[4]) for line in mountinfo.splitlines())
    normal = os.path.normpath(path)
    covering = (point for point in points if normal == point or normal.startswith(point.rstrip("/") + "/"))
    return max(covering, key=len, default="/")


def read_mountinfo() -> str:
    """What is mounted, as this process sees it. From the kernel's memory: does not block on any mount."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as stream:
        return stream.read()


def _host(netloc: str) -> str:
    return netloc.rpartition("@")[2].lower()


def _unescape(field: str) -> str:
    for escaped, plain in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(escaped, plain)
    return field
