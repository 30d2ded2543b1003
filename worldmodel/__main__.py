"""`python -m worldmodel`, for launchers that start modules."""

import sys

from worldmodel.cli import main

sys.exit(main())
