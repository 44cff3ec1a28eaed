"""Tests; each folder is one way of looking at the same promises."""
