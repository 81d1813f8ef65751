"""`python -m metatuner` is `metatuner`."""

import sys

from metatuner.cli import main

sys.exit(main())
