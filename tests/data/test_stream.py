"""The two kinds of streams: a benchmark's, whose questions the server has, and the sites' own."""

import pytest

from fcit.config import RunConfig
from fcit.data.benchmark import Benchmark
from fcit.data.fingerprints import fingerprint
from fcit.data.spec import Label, read_spec
from fcit.data.stream import SiteStream, Stream, described, labels, open_stream
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


def test_stages_are_lettered_in_their_order_and_described_by_their_data_sets(benchmark, sites):
    assert labels(benchmark)[:2] == [("A", "ocr-vqa"), ("B", "flickr30k")]
    assert labels(sites) == [(letter, f"what was learnt in stage {n}") for n, letter in enumerate("ABC", start=1)]
    several = open_stream(RunConfig.model_validate({"benchmark": "fcit-mini-short", "setting": "heterogeneous"}))
    assert labels(several)[0] == ("A", "ocr-vqa; flickr30k; figureqa; super-clevr")


def test_the_letters_of_a_benchmark_are_those_of_its_tasks_unless_a_task_returns(benchmark):
    texts = ["books", "photos", "plots", "solids"]
    given = [Label(letter=letter, description=text) for letter, text in zip("DCBA", texts, strict=True)]
    benchmark.spec = benchmark.spec.model_copy(update={"labels": given})
    assert labels(benchmark) == list(zip("DCBA", texts, strict=True))
    benchmark.spec = benchmark.spec.model_copy(update={"homogeneous": [1, 0, 1, 2, 3]})
    del benchmark.stages
    assert labels(benchmark) == list(zip("ABCDE", [texts[1], texts[0], *texts[1:]], strict=True))


def test_a_line_that_ends_all_instructions_is_part_of_a_description(benchmark):
    lined = benchmark.datasets["ocr-vqa"].model_copy(update={"suffix": "Answer with a single word."})
    benchmark.spec = benchmark.spec.model_copy(update={"datasets": {**benchmark.datasets, "ocr-vqa": lined}})
    assert labels(benchmark)[0] == ("A", "ocr-vqa (Answer with a single word.)")


def test_the_shipped_letters():
    """Against the order of the tasks in MLLM-CL, as its authors' routers have them."""
    names = ("ucit", "mllm-dcl", "mllm-acl")
    letters = {name: "".join(label.letter for label in read_spec(name).labels) for name in names}
    assert letters == {"ucit": "ABCDEF", "mllm-dcl": "ECDBA", "mllm-acl": "ACBD"}
