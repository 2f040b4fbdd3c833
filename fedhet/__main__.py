"""`python -m fedhet` is `fedhet`."""

import sys

from fedhet.cli.main import main

sys.exit(main())
