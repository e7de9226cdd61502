"""``python -m fcit.cli``: the ``fcit`` command where it is not on the path."""

import sys

from fcit.cli.main import main

sys.exit(main())
