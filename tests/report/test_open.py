"""`fcit report --open`: the page in the browser, or a sentence where there is none."""

import webbrowser

from fcit.cli.report import _opened


def test_the_page_is_opened_by_its_full_address(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda address: opened.append(address) or True)
    assert _opened(tmp_path / "a page.html") == "opened in the browser"
    assert opened == [f"file://{tmp_path}/a%20page.html"]


def test_without_a_browser_the_path_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(webbrowser, "open", lambda address: False)
    assert _opened(tmp_path / "page.html") == f"no browser is at hand here; open {tmp_path / 'page.html'} in one"
