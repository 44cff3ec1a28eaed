"""Servers and simulators that behave, or misbehave, as they are told."""
