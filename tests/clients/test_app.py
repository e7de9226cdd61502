"""What comes out of the ClientApp at a site."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from flwr.app import ConfigRecord, RecordDict

from clients.site import gate
from fcit import config as configuration
from fcit.federation import codec
from fcit.federation.messages import (
    ClientUpdate,
    Description,
    KeysOrder,
    MaskedUpdate,
    MaskOrder,
    Name,
    OpenedShares,
    Probe,
    PublicKeys,
    SealedShares,
    ShareOrder,
    UnmaskOrder,
)
from fcit.privacy.record_accountant import Steps, epsilon
from fcit.privacy.secagg.client import Participant
from fcit.privacy.secagg.keys import Keys, fresh
from fcit.privacy.secagg.roster import Member, Rules
from fcit.privacy.secagg.server import Group
from fcit.privacy.secagg.vector import Coding, Contribution
from tests.helpers.sites import RECORDS, Site, describe_order, make, ordered, probe_order, start, train_order


@pytest.fixture
def site(tmp_path) -> Site:
    return Site(make(tmp_path))


def probe_of(site: Site, config: str | None = None) -> Probe:
    return codec.decode(site.send("query.probe", probe_order(config)).content, Probe)


def update_of(site: Site, order) -> ClientUpdate:
    reply = site.send("train", order)
    assert not reply.has_error(), site.log
    return codec.decode(reply.content, ClientUpdate)


def test_a_site_probes_describes_and_trains_on_its_own_files(site):
    probe = probe_of(site)
    assert set(probe.hashes) == {"backbone", "tokenizer", "processor", "identity", "layout"}
    description = codec.decode(site.send("query.describe", describe_order()).content, Description)
    assert description.count == RECORDS
    assert description.tensors["total"].shape == (probe.identity_width,)
    tensors = start(probe)
    update = update_of(site, train_order(tensors))
    assert update.examples == RECORDS
    assert set(update.tensors) == set(tensors)
    assert update.skipped == 0
    assert any((update.tensors[n] != tensors[n]).any() for n in tensors)
    assert update.how == {"dtype": "float32", "micro_batch": None, "checkpointing": False}
    assert codec.decode(site.send("query.whoami", RecordDict()).content, Name).client == 0


def test_bad_records_are_passed_over_and_counted(site):
    tensors = start(probe_of(site))
    (site.file.parent / "data" / "datasets" / "secret" / "secret-3.png").write_bytes(b"no image")
    update = update_of(site, train_order(tensors))
    assert (update.examples, update.skipped) == (RECORDS - 1, 1)
    config = ordered(privacy={"record_dp": "on", "record_noise_multiplier": 1.0})
    private = update_of(site, train_order(tensors, config))
    assert (private.loss, private.skipped) == (0.0, 0)
    assert private.how == {"dtype": "float32", "micro_batch": None, "checkpointing": False}


def test_micro_batches_and_checkpointing_are_the_sites_choice_and_change_little(site, tmp_path):
    tensors, config = start(probe_of(site)), ordered(adapter={"dropout": 0.0})
    whole = update_of(site, train_order(tensors, config))
    raw = yaml.safe_load(site.file.read_text())
    site.file.write_text(yaml.safe_dump({**raw, "micro_batch": 2, "checkpointing": True}))  # counts from the next order
    parts = update_of(site, train_order(tensors, config))
    assert parts.how == {"dtype": "float32", "micro_batch": 2, "checkpointing": True}
    assert parts.loss == pytest.approx(whole.loss, abs=1e-5)
    assert parts.steps == whole.steps
    # AdamW divides by the size of tiny gradients; a step is as long as the learning rate, 3e-3
    for name, tensor in whole.tensors.items():
        assert np.abs(parts.tensors[name] - tensor).mean() < 3e-5, name


def test_a_site_computes_in_bfloat16_where_the_run_allows_it(tmp_path):
    site = Site(make(tmp_path, dtype="bfloat16", micro_batch=4, checkpointing=True))
    config = ordered(sites={"dtypes": ["float32", "bfloat16"]})
    tensors = start(probe_of(site, config))
    update = update_of(site, train_order(tensors, config))
    assert update.how["dtype"] == "bfloat16"
    assert np.isfinite(update.loss)
    lora = [n for n in tensors if ".lora_B." in n]
    assert all(update.tensors[n].dtype == np.float32 and np.isfinite(update.tensors[n]).all() for n in tensors)
    # trained in float32: bfloat16 keeps 8 bits of a number, the lower 16 of a float32 would all be zero
    assert any((update.tensors[n].view(np.int32) & 0xFFFF).any() for n in lora)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_site_trains_with_a_trainer_of_its_own_where_the_run_allows_it(tmp_path, dtype):
    (tmp_path / "mine.py").write_text(
        "from fcit.integrations import hf\n\n\ndef make(task):\n    return hf.plain(task)\n"
    )
    site = Site(make(tmp_path, trainer="./mine.py:make"))
    backbone = {"threads": 1, "dtype": dtype}
    config = ordered(sites={"trainer": True, "dtypes": [dtype]}, backbone=backbone, adapter={"dropout": 0.0})
    tensors = start(probe_of(site, config))
    update = update_of(site, train_order(tensors, config))
    assert (update.how["trainer"], update.examples) == ("make", RECORDS)
    assert any(np.abs(update.tensors[n] - tensors[n]).max() > 1e-4 for n in update.tensors)
    again = update_of(site, train_order(tensors, config))  # the model is as it was before the first
    assert all((again.tensors[n] == update.tensors[n]).all() for n in update.tensors)
    assert (
        site.refused("train", train_order(tensors, ordered(backbone=backbone, sites={"dtypes": [dtype]}))) == "refused"
    )


def test_what_goes_wrong_leaves_as_a_code_and_a_reference(tmp_path):
    site = Site(make(tmp_path, max_bad_share=0))
    (site.file.parent / "data" / "datasets" / "secret" / "secret-3.png").write_bytes(b"no image")
    reply = site.send("query.describe", describe_order(tasks=[0]))
    code, reference = reply.error.reason.split()
    assert reply.error.code == gate.CLIENT_RAISED
    assert (code, reference) == ("data", "1")
    # the log has the rest, under the number that the order has in the audit trail
    assert "[1] query.describe" in site.log
    assert "secret-3.png" in site.log
    assert "Traceback" in site.log
    lines = [json.loads(line) for line in (site.home / "audit.jsonl").read_text().splitlines()]
    assert [(e["number"], e["direction"], e.get("answers")) for e in lines] == [(1, "in", None), (2, "out", 1)]
    assert lines[1]["holds"] == {"error": "data 1"}
    assert lines[1]["run"] == "run-1"


@pytest.mark.parametrize(
    ("error", "word"),
    [(MemoryError("gpu"), "memory"), (torch.OutOfMemoryError("gpu"), "memory"), (KeyError("secret"), "internal")],
)
def test_other_errors_have_words_too(site, monkeypatch, error, word):
    def fail(*arguments):
        raise error

    monkeypatch.setattr("clients.app.worker", fail)
    assert site.refused("query.probe", probe_order()) == word
    assert type(error).__name__ in site.log


def test_a_message_that_is_none_is_answered_with_a_code(site):
    junk = RecordDict({"head": ConfigRecord({"json": '{"type": "TrainOrder", "fields": 5}'})})
    assert site.refused("train", junk) == site.refused("train", RecordDict()) == "message"


def test_a_site_file_that_cannot_be_read_is_said_in_one_word(site):
    site.file.write_text("name: [\n")
    assert site.send("query.probe", probe_order()).error.reason == "config 0"


def test_without_a_trail_nothing_but_a_word_leaves(site):
    (site.home / "audit.jsonl").mkdir(parents=True)  # cannot be written
    assert site.send("query.probe", probe_order()).error.reason == "audit 0"


def test_an_answer_that_cannot_be_written_down_stays(site, monkeypatch):
    from clients.site.audit import Trail
    from fcit.errors import AuditError

    def full(self, message, order):
        raise AuditError("disk full")

    monkeypatch.setattr(Trail, "outgoing", full)
    assert site.send("query.whoami", RecordDict()).error.reason == "audit 1"


def test_tokens_of_few_records_are_not_sent(tmp_path):
    site = Site(make(tmp_path, min_records=RECORDS + 1))
    assert site.refused("query.describe", describe_order()) == "too-few"
    # nor hidden in a larger sum, from which the rest could be taken away
    assert site.refused("query.describe", describe_order(tasks=[0, 0])) == "too-few"


def test_what_is_measured_on_few_records_is_not_sent(tmp_path):
    site = Site(make(tmp_path, min_records=RECORDS))
    config = ordered(method={"name": "keeplora", "samples": 0.5})
    assert site.refused("train", train_order({}, config, measure=True)) == "too-few"
    assert site.refused("train", train_order({}, config)) == "too-few"  # its last round would send the same
    assert f"a statistic of {-(-RECORDS // 2)} records is not sent" in site.log


@pytest.mark.parametrize("method", [{"name": "ewc", "samples": 3}, {"name": "clmoe", "samples": 3}])
def test_statistics_of_few_records_are_not_sent_after_training(tmp_path, method):
    site = Site(make(tmp_path, min_records=4))
    assert site.refused("train", train_order({}, ordered(method=method))) == "too-few"
    assert "a statistic of 3 records is not sent" in site.log


@pytest.mark.parametrize("method", ["l2p", "prism"])
def test_statistics_of_all_records_are_sent_of_enough(tmp_path, method):
    site = Site(make(tmp_path, min_records=RECORDS + 1))
    assert site.refused("train", train_order({}, ordered(method=method))) == "too-few"


def test_each_run_has_its_own_memory_at_a_site(site):
    config = ordered(method={"name": "replay"})
    tensors = start(probe_of(site, config))
    update_of(site, train_order(tensors, config))
    assert (site.home / "memory" / "run-1" / "0" / "0-0.json").is_file()
    later = {"config": config, "round": 1, "memory": "0-0"}
    assert site.refused("train", train_order(tensors, **later, run="run-2")) == "memory-lost"
    assert update_of(site, train_order(tensors, **later)).kept > 0
    shutil.rmtree(site.home / "memory")
    assert site.refused("train", train_order(tensors, **later)) == "memory-lost"


def test_an_order_for_another_client_or_a_strange_run_is_refused(site):
    assert site.refused("query.describe", describe_order(client=1)) == "refused"
    assert site.refused("query.describe", describe_order(client=-1)) == "refused"
    for run in ("", "../up", "a/b", "x" * 300):
        assert site.refused("query.probe", probe_order(run=run)) == "refused"
    assert not (site.home / "memory").exists()
    assert "this site is 0" in site.log


def test_a_site_trains_by_dp_sgd_until_its_own_limit(site):
    pytest.importorskip("dp_accounting")
    spent = [epsilon([Steps(4.0, 5 / RECORDS, 3)] * trainings, 1e-5).pld for trainings in (2, 3)]
    raw = yaml.safe_load(site.file.read_text())
    site.file.write_text(yaml.safe_dump({**raw, "max_record_epsilon": sum(spent) / 2}))
    config = ordered(privacy={"record_dp": "on", "record_noise_multiplier": 4.0})
    tensors = start(probe_of(site, config))
    first, again = (update_of(site, train_order(tensors, config)) for _ in range(2))
    assert (first.examples, first.steps) == (RECORDS, 3)
    assert any((first.tensors[n] != tensors[n]).any() for n in tensors)
    assert all(np.array_equal(again.tensors[n], first.tensors[n]) for n in tensors)  # the same order, the same noise
    assert site.refused("train", train_order(tensors, config)) == "refused"
    assert "above SITE.yaml max_record_epsilon" in site.log
    assert site.refused("train", train_order(tensors)) == "refused"
    assert "privacy.record_dp: 'off' in this run" in site.log
    assert len(json.loads((site.home / "record-privacy.json").read_text())["spent"]) == 1


def test_a_site_sends_its_update_masked_and_once(site):
    """The four exchanges with a site and two further members; what it trained is what it trains without masks."""
    own = site.file.parent / "own.yaml"
    own.write_text(own.read_text().replace(f"reserve: {RECORDS}", "reserve: 3"))
    three = {"federation": {"clients": 3, "clients_per_round": 3, "rounds": 2}}
    plain, config = ordered(**three), ordered(**three, privacy={"secure_aggregation": "on"})
    tensors = start(probe_of(site, plain))
    update = update_of(site, train_order(tensors, plain))
    privacy = configuration.parse_text(config, "order").privacy
    coding = Coding(privacy.quantise_bits, privacy.quantise_range, 100, 3, {n: t.shape for n, t in tensors.items()})
    group = Group("0-0-a", Rules.of(privacy), coding.kind, coding.size)
    others = [Participant(Keys(fresh(), "0-0-a", client)) for client in (1, 2)]
    known = {"config": config, "run": "run-1", "client": 0, "session": "0-0-a"}

    def answered(kind, order, expected):
        reply = site.send(kind, order)
        assert not reply.has_error(), site.log
        return codec.decode(reply.content, expected, reply=True)

    keys = answered("query.keys", KeysOrder(**known, stage=0, round=0), PublicKeys).tensors
    for member in (Member(0, bytes(keys["sealing"]), bytes(keys["masking"])), *(other.member() for other in others)):
        group.keys(member)
    roster = group.close_keys()
    named = [member.client for member in roster.members]
    all_keys = {n: np.stack([np.frombuffer(getattr(m, n), np.uint8) for m in roster.members]) for n in keys}
    sealed = answered("query.shares", ShareOrder(**known, members=named, tensors=all_keys), SealedShares)
    group.shares(
        0,
        {to: bytes(row) for to, row in zip(sealed.receivers, sealed.tensors["sealed"], strict=True)},
        bytes(sealed.tensors["commitment"]),
    )
    for other in others:
        shared = other.share(roster)
        group.shares(other.client, shared.sealed, shared.commitment)
    members = group.close_shares()
    training = vars(train_order(tensors, config)) | known
    order = MaskOrder(**training, members=members, most=100, room=3)
    masked = answered("train.masked", order, MaskedUpdate)
    group.vector(0, masked.tensors["masked"])
    for other in others:
        group.vector(other.client, other.masked(roster, members, np.zeros(coding.size, coding.kind)))
    alive = group.close_vectors()
    mine = group.sealed_for(0)
    rows = np.stack([np.frombuffer(row, np.uint8) for row in mine.values()])
    unmasking = UnmaskOrder(**known, alive=alive, senders=list(mine), tensors={"sealed": rows})
    opened = answered("query.unmask", unmasking, OpenedShares)
    group.revealed(0, {to: bytes(row) for to, row in zip(opened.owners, opened.tensors["shares"], strict=True)})
    for other in others:
        group.revealed(other.client, other.reveal(roster, members, alive, group.sealed_for(other.client)).shares)

    moved = {n: np.subtract(update.tensors[n], tensors[n], dtype=np.float64) for n in tensors}
    expected = coding.encoded(Contribution(update.examples, update.loss, moved))
    assert np.array_equal(group.total(), expected)
    for kind, again in (("train", train_order(tensors, config)), ("train.masked", order), ("query.unmask", unmasking)):
        assert site.refused(kind, again) == "refused", kind
    assert "an update unmasked" in site.log
    lines = [json.loads(line) for line in (site.home / "audit.jsonl").read_text().splitlines()]
    (line,) = [e for e in lines if e["direction"] == "out" and e["holds"].get("type") == "MaskedUpdate"]
    assert not {"examples", "steps", "loss"} & set(line["holds"])
