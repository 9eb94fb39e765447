"""``python -m lens_magic``: the command ``lens-magic``."""

import sys

from .cli import main

sys.exit(main())
