"""One link of the chain between an annotation and mounted weights: what is there, or what is not and the next step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Mark = Literal["ok", "waiting", "broken", "unseen"]

CHAIN: Final = (
    "annotation",
    "webhook",
    "authorization",
    "scheduling",
    "node",
    "assignment",
    "source",
    "download",
    "publish",
    "mount",
    "containers",
)
"""In the order in which a pod goes through them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """`waiting`: it will come by itself. `broken`: somebody has to do something. `unseen`: it lies behind another one
    that is not there."""

    name: str
    mark: Mark
    text: str = ""
    next: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """All links, and the first that is not there."""

    subject: str
    namespace: str
    links: tuple[Link, ...]

    @property
    def first_missing(self) -> Link | None:
        """None when everything is there."""
        return next((link for link in self.links if link.mark in {"waiting", "broken"}), None)


def ok(name: str, text: str) -> Link:
    """It is there."""
    return Link(name=name, mark="ok", text=text)


def waiting(name: str, text: str, then: str) -> Link:
    """It will come by itself."""
    return Link(name=name, mark="waiting", text=text, next=then)


def broken(name: str, text: str, then: str) -> Link:
    """Somebody has to do something."""
    return Link(name=name, mark="broken", text=text, next=then)
