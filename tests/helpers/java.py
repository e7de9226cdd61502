"""Java, where there is one, with a METEOR that starts in a second."""

import gzip
import os
import shutil
from itertools import islice
from pathlib import Path

import pytest
from pycocoevalcap.meteor import meteor

#: Paraphrases that METEOR reads, of three lines each; all of its ten million take ten seconds at every start.
PARAPHRASES = 1000


def light_java(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Put a ``java`` first on PATH that gives METEOR the first of its paraphrases only.

    Figures stay what they are where no other paraphrase is in the captions. Skips the test where there is no Java.
    """
    real = shutil.which("java")
    if real is None:
        assert os.environ.get("FCIT_REQUIRE_JAVA") != "1", "java is not installed"
        pytest.skip("java is not installed; FCIT_REQUIRE_JAVA=1 makes this a failure")
    with gzip.open(Path(meteor.__file__).parent / "data" / "paraphrase-en.gz") as lines:
        (folder / "few.gz").write_bytes(gzip.compress(b"".join(islice(lines, 3 * PARAPHRASES))))
    program = folder / "bin" / "java"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\ncase "$*" in *meteor*) exec {real} "$@" -a {folder}/few.gz;; *) exec {real} "$@";; esac\n'
    )
    program.chmod(0o755)
    patch.setenv("PATH", str(program.parent), prepend=os.pathsep)
