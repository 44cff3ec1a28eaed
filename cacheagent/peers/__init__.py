"""Peers: nodes that want the same digest bring each piece from the origin once, and give it to each other.

docs/design.md, "Peers", tells how. Nothing outside of an agent that has a peer port imports this package.
"""
