"""Where the stories' workers compute: on the CPU, also where there is a GPU, unless
LORRY_STORIES_ON=cuda.

A GPU computes a row in buckets of various sizes, whose logits agree within a tolerance
(invariant 3), and those of the stories' model lie close: some answers part.
"""

import os

import pytest

ON_GPU = os.environ.get("LORRY_STORIES_ON", "cpu") == "cuda"
ELEMENT_BYTES = 2 if ON_GPU else 4  # of weights, KV and adapters

FASTER = 6  # times, than the CPU, with this model

to_the_letter = pytest.mark.skipif(ON_GPU, reason="it compares texts to the letter")


def tokens(count):
    """Of a job that is to run as long as one of so many takes on the CPU."""
    return count * FASTER if ON_GPU else count


def may_part(count):
    """How many of so many answers may be others than in another batch."""
    if not ON_GPU:
        return 0
    return count if count < 20 else count // 4
