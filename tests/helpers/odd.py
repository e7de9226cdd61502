"""Random and hostile input: odd texts, numbers, values and JSON, and how many of them are tried."""

import tracemalloc

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

MANY = settings(
    derandomize=True,
    max_examples=60,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

#: Texts with what parsers stumble over: null characters, halves of surrogate pairs, signs of YAML and paths.
texts = st.text(max_size=20) | st.sampled_from(
    [
        "",
        "\0",
        "\ud800",
        "a" * 5000,
        "~nobody-at-all/x",
        "../..",
        "/dev/zero",
        "*a",
        "&a",
        "<<",
        "!!int x",
        "./a.py:B",
        "0x_",
        "2024-99-99",
        "1e999",
        "null",
        "no.module.of.this.name:X",
        ":",
        "a:b",
        ".:.",
        "\u2028",
    ]
)
numbers = st.integers() | st.floats() | st.sampled_from([2**63, -(2**63), 10**400, 10**4000, -0.0])
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


def nested(levels: int, opening: str = "[", closing: str = "]") -> str:
    return opening * levels + closing * levels


#: Texts of JSON that no generator of values makes.
ODD_JSON = [
    "",
    "{",
    "NaN",
    "Infinity",
    "[-Infinity]",
    '{"a": 1, "a": 2}',
    nested(100_000),
    nested(300),
    '{"a":' * 5000,
    "9" * 5000,
    "1e999",
    '"\\ud800"',
    "\ufeff{}",
    "[" + "1," * 1000 + "]",
    nested(5000, '{"a":[', "]}"),
]


def peak(work) -> int:
    """Bytes that Python and numpy held at once while working."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
