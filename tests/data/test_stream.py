"""The two kinds of streams: a benchmark's, whose questions the server has, and the sites' own."""

import pytest

from fcit.config import RunConfig
from fcit.data.benchmark import Benchmark
from fcit.data.fingerprints import fingerprint
from fcit.data.stream import SiteStream, Stream, described, open_stream
from fcit.errors import DataError

SITES = {"stream": "site", "federation": {"stages": 3, "clients_per_round": 4, "max_records": 50}}


@pytest.fixture
def sites() -> Stream:
    return open_stream(RunConfig.model_validate(SITES))


@pytest.fixture
def benchmark() -> Stream:
    return open_stream(RunConfig.model_validate({"benchmark": "fcit-mini-short"}))


def test_the_configuration_chooses(sites, benchmark):
    assert isinstance(sites, SiteStream)
    assert isinstance(benchmark, Benchmark)


def test_a_benchmark_names_tasks_and_data_sets(benchmark):
    assert benchmark.name == "fcit-mini-short"
    assert benchmark.stage_count == len(benchmark.tasks) == 4
    assert benchmark.slots(0) == [(0,)] * 5
    assert benchmark.evaluation(3) == [name for task in benchmark.tasks for name in task] == list(benchmark.datasets)


def test_of_sites_the_server_knows_the_number_of_stages(sites):
    assert (sites.name, sites.root, sites.stage_count) == ("sites", None, 3)
    assert sites.slots(2) == [()] * 4
    assert not sites.evaluation(2)
    assert not sites.tasks
    assert not sites.datasets


def test_of_sites_nothing_is_prepared_and_no_model_is_loaded(sites):
    sites.judged_by(lambda: pytest.fail("a tokenizer was loaded"))
    sites.prepare()
    sites.divide()
    assert sites.warnings == []


def test_records_and_questions_are_at_the_sites(sites):
    assert sites.most_records(0, []) == 50
    with pytest.raises(DataError, match="the questions are at the sites"):
        sites.test("0.0")


def test_the_fingerprint_of_sites_is_of_code_alone(sites):
    assert fingerprint.of(sites) == {"version": fingerprint.VERSION, "datasets": {}, "partitions": [], "code": {}}
    assert "partitions" not in fingerprint.of(sites, trains=False)


def test_a_stream_in_words(sites, benchmark):
    assert described(sites.config) == "3 stages of tasks that the sites kept to themselves"
    assert described(benchmark.config) == "`fcit-mini-short` (homogeneous, seed 0)"
