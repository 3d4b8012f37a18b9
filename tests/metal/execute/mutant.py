"""A way to break the kernels that the checks have to notice."""

from typing import NamedTuple


class Mutant(NamedTuple):
    what: str
    text: str
    instead: str
    checks: str  # those to run, as pytest's -k has it
    notice: str  # what they say
    library: str = "SGD"
    kernels: str = ""  # what the names of those begin with that are enough, beside the scalars'


ASAN = "AddressSanitizer"
BARRIER = "wait_for_group();"
