"""Which sites take part: what most of them have is the standard, and one site's fault keeps out that site only."""

from collections.abc import Callable

import numpy as np
import pytest

from fcit.errors import ConfigError, RunError, StopRequested
from fcit.federation.messages import ProbeOrder
from fcit.io.files import read_json, write_json
from server.courier import NOBODY
from server.stop import Stop
from tests.helpers.grids import FakeGrid, answer, probe
from tests.helpers.waiting import wait
from tests.server.stories import QUICK, fails, said, tells

# ---------------------------------------------------------------------- the beginning


def test_every_site_is_probed_once(hands, events):
    grid = FakeGrid(n7="2", n8="0", n9="1")
    grid.story[9] = tells(versions={"torch": "2.13", "threads": "64"})  # a machine's own affair
    shake = hands(grid)
    assert shake.start().identity_width == 4
    shake.update()
    assert sorted(grid.asked) == [7, 8, 9]
    assert shake.courier.nodes == [8, 9, 7]
    assert events == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"versions": {"torch": "2.12", "threads": "1"}}, "versions.torch is '2.12', '2.13' at client 1"),
        ({"hashes": {"backbone": "xyz"}}, "hashes.backbone is 'xyz', 'abc' at client 1"),
        ({"hashes": {}}, "hashes.backbone is 'not there', 'abc' at client 1"),
        ({"shapes": {"x": [2, 4]}}, "shapes.x is '(2, 4)', '(2, 3)' at client 1"),
        ({"identity_width": 5}, "identity_width is '5', '4' at client 1"),
        (
            {"tensors": {"p": np.zeros(2, np.float32)}},
            "the tensors that training starts from are not those at client 1",
        ),
        ({"tensors": {}}, "the tensors that training starts from are not those at client 1"),
        ({"tensors": {"p": np.array([1, np.nan], np.float32)}}, "its 'p' is not made of finite float32 numbers"),
        ({"tensors": {"p": np.ones(2, np.float64)}}, "its 'p' is not made of finite float32 numbers"),
    ],
    ids=["version", "hash", "missing", "shape", "width", "zeros", "no tensors", "nan", "float64"],
)
def test_a_site_unlike_most_is_left_out_and_told_with_both_values(hands, events, changes, says):
    """Also if it is the first one."""
    grid = FakeGrid(n7="0", n8="1", n9="2")
    grid.story[7] = tells(**changes)
    shake = hands(grid)
    assert shake.start().tensors["p"].tolist() == [1, 1]
    assert shake.courier.nodes == [8, 9]
    assert said(events) == [("refused", 0)]
    assert events[0]["reason"] == says


@pytest.mark.parametrize("story", [fails("refused ref-17"), lambda m: [answer(m, ProbeOrder(config=""))]])
def test_a_site_that_cannot_answer_is_left_out(hands, events, story):
    grid = FakeGrid(n7="0", n8="1", n9="2")
    grid.story[7] = story
    shake = hands(grid)
    shake.start()
    assert shake.courier.nodes == [8, 9]
    assert said(events) == [("refused", 0)]


def test_a_site_of_another_wire_format_is_told_what_to_do(hands, events):
    grid = FakeGrid(n7="0", n8="1", n9="2")
    grid.story[7] = fails("message 12")
    hands(grid).start()
    assert events[0]["reason"].startswith("message 12: it could not read the order; ")
    assert "Update fcit there" in events[0]["reason"]


def test_numbers_rounded_by_another_format_are_alike_and_the_more_frequent_ones_are_taken(hands, events):
    exact, rounded = np.full(2, 1.001, np.float32), np.ones(2, np.float32)
    grid = FakeGrid(n7="0", n8="1", n9="2")
    grid.story[7] = tells(tensors={"p": rounded})
    grid.story[8] = grid.story[9] = tells(tensors={"p": exact})
    shake = hands(grid)
    assert np.array_equal(shake.start().tensors["p"], exact)
    assert shake.courier.nodes == [7, 8, 9]
    assert events == []


def test_builds_of_one_torch_for_other_processors_are_alike(hands, events):
    """Sites with and without a GPU; constraints.txt pins the version and no build."""
    grid = FakeGrid(n7="0", n8="1", n9="2")
    for node, build in ((7, "2.13.0+cpu"), (8, "2.13.0+cu130"), (9, "2.13.0")):
        grid.story[node] = tells(versions={"torch": build, "threads": "1"})
    shake = hands(grid)
    shake.start()
    assert shake.courier.nodes == [7, 8, 9]
    assert events == []


def test_two_sites_that_differ_are_no_majority(hands):
    grid = FakeGrid(n7="0", n8="1")
    grid.story[8] = tells(hashes={"backbone": "xyz"})
    with pytest.raises(ConfigError, match=r"client 1: hashes.backbone is 'xyz', 'abc' at client 0") as error:
        hands(grid, min_updates=1).start()
    assert "1 of 2 connected clients are alike" in str(error.value)


def test_fewer_than_needed_set_no_standard(hands, events):
    """One false site that answers first does not decide for the others."""
    grid = FakeGrid(n7="0", n8="1", n9="2")
    grid.story[7] = tells(hashes={"backbone": "xyz"})
    grid.story[8] = grid.story[9] = lambda m: []
    shake = hands(grid, on_too_few="retry", retries=50, **QUICK)

    def wake(kind: str, **values) -> None:
        """The others answer from the second attempt on."""
        if kind == "too-few":
            grid.story.pop(8, None)
            grid.story.pop(9, None)

    shake.courier.say = wake
    assert shake.start().hashes == {"backbone": "abc"}
    assert shake.courier.nodes == [8, 9]


@pytest.mark.parametrize(
    ("policy", "attempts"), [({"on_too_few": "stop"}, 1), ({"on_too_few": "retry", "retries": 2}, 3)]
)
def test_too_few_sites_that_can_answer(hands, events, policy, attempts):
    grid = FakeGrid(n7="0", n8="1")
    grid.story[8] = fails("refused ref-17")
    with pytest.raises(ConfigError, match="client 1: refused ref-17"):
        hands(grid, **policy).start()
    assert grid.asked.count(8) == attempts
    assert [e["event"] for e in events].count("too-few") == attempts - 1
    assert [e["event"] for e in events].count("refused") == 1


def test_nobody_answers(hands):
    grid = FakeGrid(n7="0", n8="1")
    grid.story[7] = grid.story[8] = lambda m: []
    with pytest.raises(ConfigError, match="client 0: no answer within"):
        hands(grid, **QUICK).start()


def test_too_few_sites_are_connected(hands):
    grid = FakeGrid(n7="1", n8="site-2", n9="01", n10="5")  # names that are no client's
    with pytest.raises(RunError, match=r"1 of 3 clients .*min_updates.*--name k"):
        hands(grid, **QUICK).start()
    assert grid.looked > 1


def test_with_on_too_few_wait_the_run_begins_when_enough_sites_can_take_part(hands, events):
    grid, stop = FakeGrid(n7="0", n8="1"), Stop()
    grid.story[8] = fails("refused ref-17")
    shake = hands(grid, stop, on_too_few="wait", pause=3.0)
    pauses = []

    def pin(seconds: float) -> None:
        """Meanwhile the site pins the app."""
        pauses.append(seconds)
        grid.story.pop(8, None)

    stop.pause = pin
    shake.start()
    assert pauses == [3.0]
    assert said([e for e in events if "client" in e]) == [("refused", 1), ("joined", 1)]
    assert shake.courier.nodes == [7, 8]


def test_a_wish_to_stop_ends_the_wait_for_enough_sites(hands):
    grid, stop = FakeGrid(n7="0"), Stop()
    stop.request = StopRequested("enough")
    with pytest.raises(StopRequested):
        hands(grid, stop, on_too_few="wait").start()


# ---------------------------------------------------------------------- going on with a run


def test_what_the_run_began_with_counts_whoever_is_connected_later(hands, events, tmp_path):
    hands(FakeGrid(n7="0", n8="1")).start()
    grid = FakeGrid(n7="0", n8="1", n9="2")
    grid.story[7] = grid.story[8] = tells(tensors={"p": np.zeros(2, np.float32)}, shapes={"x": [2, 3]})
    shake = hands(grid, min_updates=1)
    assert shake.start().tensors["p"].tolist() == [1, 1]
    assert shake.courier.nodes == [9]
    assert [e["reason"] for e in events] == 2 * [
        "the tensors that training starts from are not those when this run began"
    ]


def other_backbone(grid: FakeGrid) -> None:
    grid.story[7] = grid.story[8] = tells(hashes={"backbone": "xyz"})


def test_other_hashes_than_when_the_run_began_are_too_few(hands):
    hands(FakeGrid(n7="0", n8="1")).start()
    grid = FakeGrid(n7="0", n8="1")
    other_backbone(grid)
    with pytest.raises(ConfigError, match=r"hashes.backbone is 'xyz', 'abc' when this run began"):
        hands(grid).start()


@pytest.mark.parametrize("change", [other_backbone, lambda grid: None])
def test_a_run_of_an_older_version_compares_what_it_wrote_down(hands, tmp_path, change: Callable[[FakeGrid], None]):
    known = {"backend": {"torch": "2.13", "threads": "9"}, "hashes": {"backbone": "abc"}, "id": "x"}
    write_json(tmp_path / "environment.json", known)
    grid = FakeGrid(n7="0", n8="1", n9="2")
    change(grid)
    shake = hands(grid, min_updates=1)
    shake.start()
    assert shake.courier.nodes == ([9] if change is other_backbone else [7, 8, 9])
    assert read_json(tmp_path / "environment.json") == known


def test_a_damaged_start_is_named(hands, tmp_path):
    hands(FakeGrid(n7="0", n8="1")).start()
    write_json(tmp_path / "start" / "probe.json", {"shapes": {}})
    with pytest.raises(RunError, match=r"start/probe.json: damaged"):
        hands(FakeGrid(n7="0", n8="1")).start()


def test_what_a_site_can_afford_is_noted_and_need_not_be_alike(hands, events):
    grid = FakeGrid(n1="0", n2="1", n3="2")
    grid.story = {1: tells(rank=4), 2: tells(), 3: tells(rank=16)}
    shake = hands(grid)
    shake.start()
    assert shake.afforded == {0: 4, 2: 16}
    assert not any(event["event"] == "refused" for event in events)


def test_a_run_that_goes_on_meanwhile_waits_for_no_new_site(hands, events, monkeypatch):
    grid = FakeGrid(n7="0", n8="1")
    shake = hands(grid, timeout=3600.0)
    shake.start()
    grid.names[9] = "2"
    grid.story[9] = lambda m: []
    asked = set()
    shake.glance(asked, set())
    shake.glance(asked, set())
    assert grid.asked.count(9) == 1
    assert shake.courier.node(2) == NOBODY
    assert [event["event"] for event in events] == []  # it is given a minute before its silence is a fault
    monkeypatch.setattr("server.handshake._LONG", 0.0)
    shake.glance(asked, set())
    assert [(event["event"], event["client"]) for event in events] == [("refused", 2)]
    grid.answer_late(9, probe())

    def seated() -> bool:
        shake.glance(asked, set())
        return shake.courier.node(2) == 9

    wait(seated)


def test_a_site_that_left_keeps_its_node_until_its_order_is_answered(hands):
    grid = FakeGrid(n7="0", n8="1")
    shake = hands(grid)
    shake.start()
    del grid.names[8]
    shake.glance(set(), {1})
    assert shake.courier.node(1) == 8
    shake.glance(set(), set())
    assert shake.courier.node(1) == NOBODY
