"""Threads that wait: how long they spin before they sleep.  Imported before torch is.

torch computes with a thread a core, and by default one that waits for the others spins.  Beside
other busy programs that costs several times the work itself, since it spins on the cores that the
others need.  A short spin costs nothing on an idle machine.  GNU's OpenMP, with which torch comes
on Linux, reads this when it is loaded.  Whoever has set a variable of OpenMP is left alone.
"""

import os

SPINS = "1000"  # rounds

if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = SPINS
