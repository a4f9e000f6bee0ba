"""``python -m edgekd``."""

import sys

from edgekd.cli.main import main

sys.exit(main())
