"""Virtual machines: drawn once per seed and client, and read from tables of traces."""

import hashlib

import numpy as np
import pytest

from fcit.config.devices import Devices
from fcit.errors import ConfigError
from fcit.federation.devices import DAY, HOUR, Device, Fleet, Window, read_traces
from fcit.federation.sampling import suitable


def fleet(profile: str, seed: int = 0, **keys) -> Fleet:
    return Fleet(Devices.model_validate({"profile": profile, **keys}), seed, 50)


def test_an_order_takes_download_training_and_upload():
    device = Device(speed=10.0, down=1000.0, up=500.0)
    assert device.seconds(2000, 30, 250) == 2000 / 1000 + 30 / 10 + 250 / 500
    assert device.wait(123.0) == 0


@pytest.mark.parametrize("profile", ["uniform", "lognormal", "phone", "hospital"])
def test_a_client_has_one_machine_per_seed_whoever_is_asked_first(profile):
    one, other = fleet(profile), fleet(profile)
    assert [one[k] for k in (3, 7)] == [other[k] for k in (7, 3)][::-1]
    assert (one[3] == fleet(profile, seed=1)[3]) is (profile == "uniform")


def test_uniform_clients_have_the_speed_and_the_links_of_the_keys():
    device = fleet("uniform", speed=4.0, down=8.0, up=2.0)[17]
    assert device == Device(speed=4.0, down=1e6, up=0.25e6)


def test_a_middle_client_has_the_speed_of_the_key_and_a_quick_one_is_quick_in_every_profile():
    speeds = {p: [fleet(p, speed=8.0)[k].speed for k in range(50)] for p in ("lognormal", "phone", "hospital")}
    assert 4.0 < np.median(speeds["lognormal"]) < 16.0
    assert len({tuple(np.argsort(each)) for each in speeds.values()}) == 1
    spreads = [np.std(np.log(speeds[p])) for p in ("lognormal", "phone", "hospital")]
    assert spreads == sorted(spreads, reverse=True)


def test_a_window_may_reach_over_midnight():
    night = Window(22 * HOUR, 6 * HOUR)
    assert night.wait(23 * HOUR) == 0
    assert night.wait(DAY + 3 * HOUR) == 0
    assert night.wait(4 * HOUR) == 18 * HOUR  # it has just closed
    assert Device(1, 1, 1, (night, Window(12 * HOUR, HOUR))).wait(9 * HOUR) == 3 * HOUR


@pytest.mark.parametrize("profile", ["phone", "hospital"])
def test_some_clients_are_away_at_noon_and_reachable_at_midnight(profile):
    devices = fleet(profile)
    assert not devices.always
    assert sum(devices[k].wait(12 * HOUR) == 0 for k in range(50)) < 10
    assert sum(devices[k].wait(0.0) == 0 for k in range(50)) > 25


def traces(folder, text: str):
    path = folder / "traces.csv"
    path.write_text(text)
    return path


def test_traces_with_two_windows_of_one_client(tmp_path):
    path = traces(tmp_path, "client,speed,down,up,begin,end\n0,2,8,4,22,4\n1,1,8,8,,\n0,2,8,4,12,13\n")
    devices, sha = read_traces(path, 2)
    assert devices[0] == Device(2.0, 1e6, 0.5e6, (Window(22 * HOUR, 6 * HOUR), Window(12 * HOUR, HOUR)))
    assert devices[1] == Device(1.0, 1e6, 1e6)
    fleet = Fleet(Devices.model_validate({"profile": str(path)}), 0, 2)
    assert fleet[0] == devices[0]
    assert fleet.traces == sha == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("rows", ["0,2,8,4,22,4\n0,2,8,4,,\n", "0,2,8,4,,\n0,2,8,4,22,4\n"])
def test_a_row_without_hours_is_the_whole_day_and_other_clients_do_not_count(tmp_path, rows):
    path = traces(tmp_path, f"client,speed,down,up,begin,end\n{rows}7,1,1,1,3,4\n")
    fleet = Fleet(Devices.model_validate({"profile": str(path)}), 0, 1)
    assert fleet[0] == Device(2.0, 1e6, 0.5e6)
    assert fleet.always


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("client,speed\n0,1\n", "its first line must be"),
        ("client,speed,down,up\n0,1,1,1\n", "has no row for client 1"),
        ("client,speed,down,up\n0,fast,1,1\n", "line 2: expected numbers"),
        ("client,speed,down,up\n0,0,1,1\n", "line 2: needs a client from 0 on"),
        ("client,speed,down,up\n0,1,nan,1\n", "line 2: needs a client from 0 on"),
        ("client,speed,down,up,begin,end\n0,1,1,1,3,\n", "both or neither"),
        ("client,speed,down,up,begin,end\n0,1,1,1,3,25\n", "0 to 24"),
        ("client,speed,down,up\n0,1,1,1\n0,2,1,1\n", "another speed or link"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused_with_its_line(tmp_path, text, complaint):
    with pytest.raises(ConfigError, match=complaint):
        read_traces(traces(tmp_path, text), 2)


def test_a_table_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"devices\.profile: .*none\.csv: cannot be read"):
        read_traces(tmp_path / "none.csv", 1)


def test_suitable_clients_are_drawn_evenly_and_without_a_look_at_the_whole_pool():
    looked = []
    drawn = suitable(np.random.default_rng(0), 100_000, 10, lambda k: bool(looked.append(k)) or k % 2 == 0)
    assert len(set(drawn)) == 10
    assert all(k % 2 == 0 for k in drawn)
    assert len(looked) < 60
    counts = np.zeros(10)
    for seed in range(300):
        counts[suitable(np.random.default_rng(seed), 10, 3, lambda k: k > 3)] += 1
    assert counts[:4].sum() == 0
    assert counts[4:].sum() == 900
    assert counts[4:].min() > 110


def test_there_may_be_fewer_suitable_clients_than_wanted():
    assert sorted(suitable(np.random.default_rng(0), 300, 5, lambda k: k in (7, 299))) == [7, 299]
    assert suitable(np.random.default_rng(0), 5, 5, lambda k: False) == []
