"""``python -m attnlens``."""

import sys

from attnlens.cli.main import main

sys.exit(main())
