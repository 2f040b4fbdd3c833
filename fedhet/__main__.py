"""`python -m fedhet` is `fedhet`."""

import sys

from fedhet.cli import main

sys.exit(main())
