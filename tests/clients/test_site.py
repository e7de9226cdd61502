"""SITE.yaml: read whole, every mistake with its key; paths are relative to it."""

import pytest
import yaml

from fcit.config import site as sites
from fcit.errors import ConfigError


def load(tmp_path, **raw):
    file = tmp_path / "SITE.yaml"
    file.write_text(yaml.safe_dump(raw))
    return sites.load(file)


def task(**more):
    return {"train": "train.json", "test": "test.json", **more}


def test_paths_are_relative_to_the_file_given_or_not(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    site = load(tmp_path, home="state", data_root="/elsewhere")
    assert site.home == str(tmp_path / "state")
    assert site.data_root == "/elsewhere"
    assert site.key == str(tmp_path / "site.key")
    assert site.ca == str(tmp_path / "ca.crt")
    assert site.model is None
    assert site.benchmark is None


def test_own_scorers_are_relative_to_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    (tmp_path / "mine.py").write_text("def rule(answers, records): ...\n", encoding="utf-8")
    site = load(tmp_path, tasks=[task(scorer="./mine.py:rule")])
    assert site.tasks[0].scorer == f"{tmp_path}/mine.py:rule"


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"wroker": "resident"}, "wroker: unknown key; did you mean 'worker'"),
        ({"name": "hospital-a"}, "name: "),
        ({"superlink": "fcit.example.org"}, "superlink: "),
        ({"apps": ["latest"]}, "apps.0: "),
        ({"port": 0}, "port: "),
        ({"worker": "forked"}, "worker: "),
        ({"stream": "site"}, "stream: site needs tasks"),
        ({"stream": "site", "tasks": [task(start_stage=2), task(start_stage=1)]}, "ascending"),
        ({"tasks": [task(scorer="exakt")]}, "exakt"),
        ({"tasks": [task(train="../other/train.json")]}, "below data_root"),
        ({"tasks": [task(images="/etc")]}, "below data_root"),
        ({"max_bad_share": 1.0}, "max_bad_share: "),
    ],
)
def test_mistakes_are_named(tmp_path, raw, said):
    with pytest.raises(ConfigError, match=r"SITE\.yaml") as caught:
        load(tmp_path, **raw)
    assert said in str(caught.value)


def test_all_mistakes_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, port=0, apps=["x"], threads=0)
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize("text", ["- a list", "a: [", "\x00", ""])
def test_what_is_no_mapping_is_said_to_be_none(tmp_path, text):
    file = tmp_path / "SITE.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"SITE\.yaml"):
        sites.load(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        sites.load(tmp_path / "none.yaml")


def test_which_task_a_stage_trains(tmp_path):
    site = load(tmp_path, stream="site", tasks=[task(start_stage=1), task(start_stage=3)])
    assert [site.current(stage) for stage in range(5)] == [None, 0, 0, 1, 1]
