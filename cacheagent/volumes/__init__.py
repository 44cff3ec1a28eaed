"""Volumes of pods: who may mount what, which version, and how long one has to wait for it."""

from cacheagent.volumes.volumes import ASKED, Volumes
from cacheagent.volumes.waitlist import Asked

__all__ = ["ASKED", "Asked", "Volumes"]
