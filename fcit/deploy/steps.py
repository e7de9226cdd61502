"""The steps of a deployment, each shown before it is done; a dry run only shows them."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fcit.errors import FCITError
from fcit.io.files import write_text


class DeployError(FCITError):
    """A command of a deployment failed, or a program or file that it needs is missing."""

    code = "deploy"


PRIVATE, PUBLIC, PROGRAM = 0o600, 0o644, 0o755


@dataclass(frozen=True)
class Steps:
    """Does the steps of a deployment one by one, or only shows them."""

    dry: bool = False

    def say(self, text: str) -> None:
        """Show a line."""
        print(text, flush=True)

    def run(self, *command: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
        """Run a command and return what it printed; files it makes are this user's only.

        Raises:
            DeployError: it is not installed or fails; quotes the end of its output.
        """
        words = [str(word) for word in command]
        self.say("$ " + shlex.join(words))
        if self.dry:
            return ""
        environment = env or os.environ
        program = shutil.which(words[0], path=environment.get("PATH"))
        if program is None:
            raise DeployError(f"{words[0]} is not installed (Debian: apt install {_PACKAGES.get(words[0], words[0])})")
        done = subprocess.run(
            [program, *words[1:]], env=environment, cwd=cwd, capture_output=True, text=True, umask=0o077
        )
        if done.returncode:
            lines = (done.stderr.strip() or done.stdout.strip()).splitlines()[-5:]
            raise DeployError(f"{words[0]} failed with code {done.returncode}: " + " / ".join(lines))
        return done.stdout

    def folder(self, path: Path) -> None:
        """Make a folder that only this user can look into."""
        if not self.dry:
            path.mkdir(parents=True, exist_ok=True)
            path.chmod(0o700)

    def write(self, path: Path, text: str, mode: int = PRIVATE) -> None:
        """Write a file with these permissions.

        Raises:
            DiskFull: no room; the file is left as it was.
        """
        self.say(f"write {path}")
        if not self.dry:
            write_text(path, text)
            path.chmod(mode)

    def copy(self, source: Path, target: Path, mode: int = PRIVATE) -> None:
        """Copy a file."""
        self.say(f"copy  {source} to {target}")
        if not self.dry:
            shutil.copyfile(source, target)
            target.chmod(mode)

    def move(self, source: Path, target: Path, mode: int = PRIVATE) -> None:
        """Move a file."""
        self.say(f"move  {source} to {target}")
        if not self.dry:
            source.replace(target)
            target.chmod(mode)


_PACKAGES = {"ssh-keygen": "openssh-client", "nginx": "nginx-light"}
