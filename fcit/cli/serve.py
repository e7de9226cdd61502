"""``fcit serve``: answers over HTTP, for programs that speak OpenAI's interface."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from fcit.cli.chat import loaded, loading
from fcit.cli.commands import Add
from fcit.errors import EXIT_OK, ConfigError
from fcit.serve.limits import Limits

_TEXT = """\
POST /v1/chat/completions answers as `fcit chat` does: greedy, each question routed as in the run, with the weights of
the subspaces in the reply (fcit.mix). GET /v1/models lists the run and each of its subspaces, RUN/SUBSPACE, which
answers alone. Images are data: URLs, or files below --images. Questions that wait are answered together.

Without a key it serves this machine only. SIGINT and SIGTERM end it when what it has taken in is answered."""
_EXAMPLE = """\
fcit serve my-adapters --images pictures
  FCIT_API_KEY=... fcit serve runs/task-disco-1 --host 0.0.0.0 --port 8000

  from openai import OpenAI
  client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="-")
  client.chat.completions.create(model="my-adapters", messages=[{"role": "user", "content": [
      {"type": "image_url", "image_url": {"url": "cat.png"}}, {"type": "text", "text": "What is this?"}]}])"""


def arguments(add: Add) -> None:
    """Declare the command."""
    command = add("serve", _serve, "answer over HTTP as OpenAI's clients ask", _EXAMPLE, _TEXT)
    loading(command)
    command.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    command.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: %(default)s)")
    command.add_argument("--name", help="of the model in requests (default: the folder's)")
    command.add_argument(
        "--images", type=Path, metavar="DIR", help="requests may name files below it, links followed; default: none"
    )
    command.add_argument("--api-key", metavar="KEY", help="that requests name; better in FCIT_API_KEY (default: none)")
    bounds = command.add_argument_group("bounds")
    for bound in fields(Limits):
        kind = type(bound.default)
        shown = f"{bound.metadata['help']} (default: {bound.default:,})"
        bounds.add_argument(f"--max-{bound.name}", type=kind, default=bound.default, metavar="N", help=shown)


def _serve(args: argparse.Namespace) -> int:
    from fcit.serve.server import key_of, listening, serve

    limits = Limits(**{bound.name: getattr(args, f"max_{bound.name}") for bound in fields(Limits)})
    if args.images is not None and not args.images.is_dir():
        raise ConfigError(f"--images: no such folder {str(args.images)!r}")
    key = key_of(args.api_key)
    with listening(args.host, args.port, key) as place:
        assistant = loaded(args)
        name = args.name or args.dir.resolve().name
        serve(assistant, name, place, args.images, limits, key)
    return EXIT_OK
