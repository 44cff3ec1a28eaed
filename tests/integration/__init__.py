"""The real program against real servers on loopback."""
