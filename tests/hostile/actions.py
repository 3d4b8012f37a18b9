"""The table of actions: what foreign code does in the middle of a step."""

from .calls import CALLS
from .puts import PUTS

ACTIONS = PUTS | CALLS
