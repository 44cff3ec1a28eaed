"""What can go wrong here and nowhere else. `csi.statuses` says what the kubelet is told."""

from __future__ import annotations

from cacheagent.errors import CacheAgentError


class NotReady(CacheAgentError):
    """The weights are not here yet; the kubelet asks again by itself."""

    code = "not-ready"


class WrongAnswer(CacheAgentError):
    """The agent named something that is not to be mounted: a defect, or somebody else behind its socket."""

    code = "wrong-answer"


class MountFailed(CacheAgentError):
    """The kernel refused to mount or unmount."""

    code = "mount"
