import pytest

from fcit.deploy.deployment import Deployment
from fcit.errors import ConfigError


@pytest.mark.parametrize(
    "text",
    [
        "5",
        "a: [",
        "x: 1",
        "host: a\nport: '9092'\nbind: 127.0.0.1\nsuperlink_port: 9091",
        "host: a\nport: 99999\nbind: 127.0.0.1\nsuperlink_port: 9091",
    ],
)
def test_damaged_facts_are_one_sentence(tmp_path, text):
    (tmp_path / "deployment.yaml").write_text(text)
    with pytest.raises(ConfigError):
        Deployment.open(tmp_path)


def test_facts_are_read_back(tmp_path):
    made = Deployment.plan(tmp_path, "fcit.example.org", 9092, None, 9091)
    made.file.write_text(made.facts())
    assert Deployment.open(tmp_path) == made
