"""The tests of several processes: mlx.launch -n 2 -- python tests/distributed/run.py FOLDER.

One program, because starting the processes takes longer than most of the tests. Those that are as
slow with more members, and show no more, run with two.
"""

import members
import memory
import options
import replicated
import saved
import split

cases = [case for each in (replicated, split, options, saved, memory) for case in each.CASES]
if members.SIZE == 2:
    cases += [
        case
        for each in (replicated, split, options, saved, memory)
        for case in each.FOR_TWO_MEMBERS
    ]
members.run(cases)
