"""How the soak of five sites counts absences."""

from tests.evidence.absences import Accident, Round, count, longest


def rounds(*members: set[int]) -> list[Round]:
    """Rounds of ten seconds each, the first from 0 to 10."""
    return [Round(10.0 * n, 10.0 * n + 10, frozenset(m)) for n, m in enumerate(members)]


GONE = rounds({0, 1}, {1}, {1}, {1}, {0, 1}, {0, 1})


def test_the_round_of_the_accident_itself_does_not_count():
    kill = Accident("kill", 0, begin=15.0, over=15.0)
    assert count([kill], GONE, 2) == {"kill": {"accidents": 1, "longest": 2, "missed": {"2": 1}}}
    assert longest(GONE, 2) == {0: 3, 1: 0}


def test_rounds_that_begin_before_it_is_over_do_not_count():
    clock = Accident("clock", 0, begin=15.0, over=25.0)
    assert count([clock], GONE, 2)["clock"]["longest"] == 1


def test_what_is_not_over_is_not_counted():
    assert count([Accident("clock", 0, 15.0, None)], GONE, 2) == {"clock": {"accidents": 1, "longest": 0, "missed": {}}}


def test_the_next_accident_to_the_same_site_ends_the_count_and_one_to_another_site_does_not():
    first = Accident("kill", 0, 5.0, 5.0)
    again, other, operator = (Accident("other", site, 25.0, 25.0) for site in (0, 1, None))
    assert count([first, again], GONE, 2)["kill"]["longest"] == 1
    assert count([first, other], GONE, 2)["kill"]["longest"] == 3
    assert count([first, operator], GONE, 2)["kill"]["longest"] == 3


def test_an_accident_at_the_operator_is_one_to_every_site():
    operator = Accident("kill SuperLink", None, 5.0, 5.0)
    assert count([operator], GONE, 2)["kill SuperLink"] == {"accidents": 1, "longest": 3, "missed": {"0": 1, "3": 1}}
