"""A family whose module cannot be imported in a worker."""

import os

from faulty import go_wrong
from walks import Walks

if os.environ["RL2META_TEST_MAIN"] != str(os.getpid()):
    go_wrong(os.environ["RL2META_TEST_HOW"])


class BrokenWalks(Walks):
    pass
