"""Participants drawn in secret, and the orders that follow."""

from fcit import config as configuration
from fcit.methods.finetune import Finetune
from server.participants import shard_id, slots_of_round


class Stream:
    def slots(self, stage):
        return [(stage,)] * 2


def test_any_number_of_clients_trains_the_task_of_the_stage():
    config = configuration.parse({"method": "finetune", "federation": {"clients": 9, "clients_per_round": 2}})
    slots = slots_of_round(config, Stream(), Finetune, 1, 0, [3, 5, 8])
    assert [(slot.client, slot.tasks) for slot in slots] == [(3, (1,)), (5, (1,)), (8, (1,))]
    assert [slot.shard for slot in slots] == [shard_id(0, client, 1) for client in (3, 5, 8)]
    assert slots_of_round(config, Stream(), Finetune, 1, 0, []) == []


def test_in_extra_rounds_a_clients_records_are_a_shard_of_their_own():
    config = configuration.parse({"method": "finetune", "federation": {"clients": 9, "clients_per_round": 2}})
    slots = slots_of_round(config, Stream(), Finetune, 1, 10, extra=True)
    assert [(slot.shard, slot.tasks) for slot in slots] == [("extra-1", (1,))] * 2
    assert slots_of_round(config, Stream(), Finetune, 1, 10)[0].client == slots[0].client
