"""What people may write for sizes, rates and durations, and what they read when it is something else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheagent.quantity import Duration, Rate, Size


@pytest.mark.parametrize(
    ("written", "size_bytes"),
    [
        (0, 0),
        (4096, 4096),
        ("4096", 4096),
        ("10GiB", 10 * 2**30),
        ("10 GiB", 10 * 2**30),
        ("1.5TB", 1_500_000_000_000),
        ("64KiB", 65536),
        ("64kB", 64000),
        ("7B", 7),
    ],
)
def test_sizes_are_bytes(written: object, size_bytes: int) -> None:
    """Decimal and binary units both mean what their names say."""
    assert Size.parse(written) == size_bytes


@pytest.mark.parametrize("written", ["10Gb", "GiB", "-1GiB", "10 gib", "", True, None, 1.5, "1e9", -5])
def test_what_is_not_a_size_is_refused(written: object) -> None:
    """A size that could be misread is refused, and the sentence shows a right one."""
    with pytest.raises(ValueError, match=r"expected a size such as 10GiB or 500MB, got "):
        Size.parse(written)


@pytest.mark.parametrize(
    ("written", "bytes_per_s"),
    [(0, 0), ("200MB/s", 200_000_000), ("1GiB/s", 2**30), ("10Gbit/s", 1_250_000_000), ("800bit/s", 100)],
)
def test_rates_are_bytes_a_second(written: object, bytes_per_s: int) -> None:
    """Networks are sold in bits, disks in bytes: both can be written."""
    assert Rate.parse(written) == bytes_per_s


@pytest.mark.parametrize("written", ["200MB", 200, "200 MBps", "fast/s", None, False])
def test_what_is_not_a_rate_is_refused(written: object) -> None:
    """A rate without its unit is refused, whatever it may have meant."""
    with pytest.raises(ValueError, match=r"expected a rate such as 200MB/s or 10Gbit/s"):
        Rate.parse(written)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [(0, 0), ("30s", 30), ("5m", 300), ("1h30m", 5400), ("250ms", 0.25), ("7d", 604800), ("1 h 5 s", 3605)],
)
def test_durations_are_seconds(written: object, seconds: float) -> None:
    """Units may be combined."""
    assert Duration.parse(written) == seconds


@pytest.mark.parametrize("written", [30, "30", "5 minutes", "m", "", "-5s", None, False])
def test_what_is_not_a_duration_is_refused(written: object) -> None:
    """A bare number is refused: nobody can say whether it meant seconds or minutes."""
    with pytest.raises(ValueError, match=r"expected a duration such as 30s, 5m or 1h30m, got "):
        Duration.parse(written)


@given(st.integers(min_value=0, max_value=2**53))
def test_a_size_written_as_plain_bytes_is_exact(size_bytes: int) -> None:
    """No rounding where no unit asks for it."""
    assert Size.parse(str(size_bytes)) == Size.parse(size_bytes) == size_bytes
