"""The one way in which a pod is refused."""

from __future__ import annotations

from typing import ClassVar, Literal

from cacheagent.errors import CacheAgentError


class PodRefused(CacheAgentError):
    """The pod can't be admitted as it is. The message is one sentence that says what to change.

    `status`: 400 for what is written wrongly, 403 for what is not permitted. `may_pass`: our copy of the cluster may
    be a moment behind, so the answer may be another one a second later."""

    code: ClassVar[str] = "pod-refused"

    def __init__(self, message: str, *, status: Literal[400, 403] = 400, may_pass: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.may_pass = may_pass
