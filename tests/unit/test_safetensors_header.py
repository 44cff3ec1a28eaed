"""The header rule against hand-made lies and against the reference implementation."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from cacheagent.errors import UnsafeContent
from cacheagent.fetch import check_safetensors_file
from cacheagent.safetensors_header import MAX_HEADER_BYTES, check_header, header_length


def tensor(begin: int, end: int, *, dtype: str = "U8", shape: list[int] | None = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


def judge(tensors: Any, data_bytes: int) -> None:
    header = json.dumps(tensors).encode()
    check_header("m.safetensors", 8 + len(header) + data_bytes, header)


def test_an_honest_header_passes() -> None:
    """Any order, metadata, scalars, empty tensors, sub-byte and unknown dtypes."""
    judge({"b": tensor(4, 8, dtype="F32", shape=[1]), "a": tensor(0, 4, dtype="F32", shape=[])}, 8)
    judge({"__metadata__": {"format": "pt"}, "e": tensor(0, 0), "q": tensor(0, 1, dtype="F4", shape=[2])}, 1)
    judge({"new": tensor(0, 3, dtype="F2_NEXT_YEAR", shape=[12])}, 3)
    judge({}, 0)


@pytest.mark.parametrize(
    ("tensors", "data_bytes", "complaint"),
    [
        ({"a": tensor(0, 4)}, 5, "its tensors end at 4, its data at 5"),
        ({"a": tensor(0, 6)}, 5, "its tensors end at 6, its data at 5"),
        ({"a": tensor(0, 2), "b": tensor(3, 5)}, 5, "tensor 'b' begins at 3 where 2 was expected"),
        ({"a": tensor(0, 3), "b": tensor(2, 5)}, 5, "tensor 'b' begins at 2 where 3 was expected"),
        ({"a": tensor(0, 5, dtype="F32", shape=[1])}, 5, "does not fit its 5 bytes"),
        ({"a": tensor(0, 5, shape=[-5])}, 5, "not natural numbers"),
        ({"a": {"dtype": "U8", "shape": [1]}}, 1, "has no dtype, shape and data_offsets"),
        ({"a": tensor(0, 1) | {"data_offsets": [1, 0]}}, 1, "not natural numbers in order"),
        ({"a": tensor(0, 1) | {"data_offsets": [0, True]}}, 1, "not natural numbers"),
        ({"a": tensor(0, 1) | {"shape": "1"}}, 1, "not natural numbers"),
        ({"a": 1}, 1, "has no dtype"),
        ([], 0, "not a JSON object"),
    ],
)
def test_a_header_that_lies_is_refused(tensors: Any, data_bytes: int, complaint: str) -> None:
    """Holes, overlaps, wrong ends and shapes that do not fit."""
    with pytest.raises(UnsafeContent, match=complaint):
        judge(tensors, data_bytes)


@pytest.mark.parametrize("header", [b"{", b"\xff", b"[" * 100_000, b'{"a": 1, "a": 2}'])
def test_a_header_that_is_not_plain_json_is_refused(header: bytes) -> None:
    """Truncated, not UTF-8, nested without end, or naming a tensor twice."""
    with pytest.raises(UnsafeContent, match="its header"):
        check_header("m.safetensors", 8 + len(header), header)


def test_the_claimed_length_is_judged_before_it_is_read() -> None:
    """A header of exabytes is refused by its eight bytes; an honest claim is returned."""
    assert header_length("m", 100, (92).to_bytes(8, "little")) == 92
    for size, claim, complaint in [
        (100, 93, "in a file of 100"),
        (2**60, MAX_HEADER_BYTES + 1, "more than the format"),
    ]:
        with pytest.raises(UnsafeContent, match=complaint):
            header_length("m", size, claim.to_bytes(8, "little"))
    with pytest.raises(UnsafeContent, match="too short"):
        header_length("m", 7, b"1234567")


numbers = st.integers(min_value=0, max_value=24)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["U8", "F32", "BF16", "F64"]),
        "shape": st.lists(st.integers(0, 4), max_size=3),
        "data_offsets": st.lists(numbers, min_size=2, max_size=2),
    }
)
honest = st.lists(st.tuples(st.sampled_from([("U8", 1), ("F32", 4), ("F64", 8)]), st.integers(0, 3)), max_size=4)


@settings(max_examples=150, deadline=None)
@given(
    tensors=st.one_of(st.dictionaries(st.sampled_from("abc"), entries, max_size=3), honest),
    data_bytes=numbers,
)
def test_the_rule_agrees_with_the_reference_implementation(
    tmp_path_factory: pytest.TempPathFactory, tensors: Any, data_bytes: int
) -> None:
    """What the safetensors library opens, we accept, and what it refuses, we refuse."""
    if isinstance(tensors, list):
        tensors, data_bytes = _laid_out(tensors)
    header = json.dumps(tensors).encode()
    path: Path = tmp_path_factory.mktemp("st") / "m.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(data_bytes))
    try:
        with safe_open(path, framework="np") as opened:
            accepted = set(opened.keys()) == set(tensors)
    except SafetensorError:
        accepted = False
    with path.open("rb") as stream, nullcontext() if accepted else pytest.raises(UnsafeContent):
        check_safetensors_file("m.safetensors", path.stat().st_size, stream)


def _laid_out(tensors: list[tuple[tuple[str, int], int]]) -> tuple[dict[str, Any], int]:
    laid: dict[str, Any] = {}
    offset = 0
    for number, ((dtype, size), count) in enumerate(tensors):
        laid[f"t{number}"] = {"dtype": dtype, "shape": [count], "data_offsets": [offset, offset + size * count]}
        offset += size * count
    return laid, offset
