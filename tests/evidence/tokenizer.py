"""The shipped tokenizer is the one that the command makes: ``python -m tests.evidence.tokenizer`` (fifteen seconds).

Part of ``make evidence``; ends with 1 where they differ.
"""

from __future__ import annotations

import json
import sys

from fcit.models.backbone import TINY
from fcit.models.tiny import build


def main() -> int:
    """Make it from all of its texts and compare words and merges."""
    made = json.loads(build.train_tokenizer().to_str())["model"]
    shipped = json.loads((TINY / "llava" / "tokenizer.json").read_text())["model"]
    different = [part for part in ("vocab", "merges") if made[part] != shipped[part]]
    print(f"tokenizer: {', '.join(different)} differ" if different else "tokenizer: the shipped one is made again")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
