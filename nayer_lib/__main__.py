"""`python -m nayer_lib`."""

import sys

try:
    from .cli import main
except KeyboardInterrupt:  # importing takes seconds
    sys.exit(130)

sys.exit(main())
