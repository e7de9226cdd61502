"""Text of others on a terminal."""

import io
import logging
import selectors
import signal
import sys

import pytest
from rich.console import Console

from clients.site import logs
from fcit.deploy.child import Child
from fcit.io.printable import PrintableFormatter, printable
from fcit.report import terminal

EVIL = "a\x1b[31mb\x1b]0;title\x07\x9b2Jc\x08\x00"
TAMED = "a?[31mb?]0;title??2Jc??"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain: naïve ☃ 漢字 {x} [red]", "plain: naïve ☃ 漢字 {x} [red]"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        (EVIL, TAMED),
        ("over\rwritten\x0b\x0c\x85\u2028", "over written    "),
        ("turned \u202e round \u2066", "turned ? round ?"),
        ("hidden \u200b\ufeff", "hidden ??"),
        ("half \ud800", "half ?"),
        ("\u00a0\u3000", "  "),
        ("", ""),
    ],
)
def test_what_is_printed_of_a_text(text, shown):
    assert printable(text) == shown


def test_log_lines_and_tracebacks():
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(PrintableFormatter("%(message)s"))
    log = logging.Logger("test")
    log.addHandler(handler)
    try:
        raise ValueError(EVIL)
    except ValueError:
        log.exception("said %s", EVIL)
    assert f"said {TAMED}\nTraceback" in out.getvalue()
    assert out.getvalue().endswith(f"ValueError: {TAMED}\n")


def test_a_site_s_logs(tmp_path):
    log = logs.to_file("tests.console", tmp_path / "site.log")
    log.info("%s", EVIL)
    log.handlers[0].close()
    assert (tmp_path / "site.log").read_text().endswith(f"{TAMED}\n")


def test_what_a_child_prints(tmp_path):
    """SuperLink and SuperNode: colours are taken away, the rest is made harmless."""
    code = f"import sys; sys.stdout.buffer.write({(EVIL + chr(10)).encode()!r})"
    out = io.StringIO()
    log = logging.Logger("test")
    log.addHandler(logging.StreamHandler(out))
    child = Child("x", [sys.executable, "-c", code], {}, tmp_path, log, (0.0, 0.0), signal.SIGTERM)
    with selectors.DefaultSelector() as selector:
        child.start(selector)
        while child.read():
            selector.select()
        child.stop(selector, 10)
    assert out.getvalue() == "ab?]0;title??2Jc??\n"


def test_tables_and_sentences_of_a_report():
    out = io.StringIO()
    console = Console(file=out, width=100)
    terminal._print(console, [["run", "mean"], [EVIL, "1.0"]], "title")
    terminal._say(console, [EVIL])
    assert "\x1b" not in out.getvalue()
    assert out.getvalue().count("?]0;title??2Jc??") == 2
