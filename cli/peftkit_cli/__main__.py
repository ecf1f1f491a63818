"""`python -m peftkit_cli` is `peft`."""

import sys

from peftkit_cli.main import main

sys.exit(main())
