"""All tests of several processes: mlx.launch -n 2 -- python tests/distributed/run.py FOLDER.

One program, because starting the processes takes longer than most of the tests.
"""

import members
import replicated
import split

members.run([*replicated.CASES, *split.CASES])
