"""The rows of INPUTS."""

from robust_nc.data.inputs import INPUTS

# Written out: another number changes every value that was measured on that kind of input.
STREAMS = {
    "clean": 0,
    "pgd": 1,
    "gaussian": 2,
    "sign": 3,
    "targeted": 4,
    "gaussian_l2": 5,
    "seen": 6,
}


def test_random_streams_are_those_of_published_numbers():
    assert {name: INPUTS[name].stream for name in STREAMS} == STREAMS


def test_no_two_kinds_of_input_share_a_random_stream():
    streams = [kind.stream for kind in INPUTS.values()]
    assert len(set(streams)) == len(streams)
