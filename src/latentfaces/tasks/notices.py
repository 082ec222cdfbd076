"""What a person should know, though the task goes on."""

import sys
from collections.abc import Sequence


def warn(sentence: str) -> None:
    """Tell the person, and go on."""
    print(f"warning: {sentence}", file=sys.stderr)


def and_others(names: Sequence[str], indices: Sequence[int]) -> str:
    """The first by name, the others by their number."""
    more = len(indices) - 1
    return names[indices[0]] + (f" (as {more} more)" if more else "")
