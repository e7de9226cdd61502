"""Every registered method keeps its contract; the contract notices when one does not."""

import numpy as np
import pytest

from fcit import registry
from fcit.config import RunConfig
from fcit.contracts import methods as contract
from fcit.contracts import toy
from fcit.methods.base import Factory


@pytest.mark.parametrize("name", sorted(registry.METHODS))
def test_contract(name):
    """Every check under every choice of the method's options and every policy of the projector."""
    problems = [
        f"{options}: {what}: {problem}"
        for options in contract.variants(name)
        for what, problem in contract.check(name, options)
        if problem
    ]
    assert not problems, "\n".join(problems)


def test_every_choice_is_checked():
    mixes = [options["mix"] for options in contract.variants("disco") if "mix" in options]
    assert mixes == ["concat", "cosine", "argmax", "oracle"]
    assert {"token": "both"} in contract.variants("disco")
    assert {} in contract.variants("disco")
    assert contract.mix_sums_to_one not in contract.checks("disco", {"mix": "concat"})
    assert contract.mix_sums_to_one in contract.checks("disco", {"mix": "argmax"})


BROKEN = {
    "aggregate_reads_once_and_repeats": "def aggregate(self, state, updates, fedopt):\n"
    "        state.subspaces['0'] = {k: v + np.random.rand() for k, v in next(iter(updates)).tensors.items()\n"
    "                                if 'lora' in k}",
    "assign_ignores_the_order_of_slots": "def assign(self, state, pairs, stats, make):\n"
    "        for i, pair in enumerate(pairs):\n"
    "            state.subspaces.setdefault(str(i), make(str(i)))\n"
    "            state.assigned.setdefault(pair, str(i))",
    "common_is_what_assign_gives": "def common(self, stage):\n        return 'other'",
    "settled_pairs_stay": "def common(self, stage):\n        return None\n"
    "    def assign(self, state, pairs, stats, make):\n"
    "        name = str(state.stage)\n"
    "        if name not in state.subspaces:\n"
    "            state.subspaces[name] = make(name)\n"
    "        state.assigned.update(dict.fromkeys(pairs, name))",
    "everything_trained_moves": "def aggregate(self, state, updates, fedopt):\n"
    "        moved = next(iter(updates)).tensors\n"
    "        state.subspaces['0'] = {k: moved[k] if 'lora_A' in k else v for k, v in state.subspaces['0'].items()}",
    "state_can_be_saved": "def end_stage(self, state, stage):\n        state.memory['what'] = object()",
    "route_is_not_told_the_task": "def route(self, names, knowledge, features, task=None):\n"
    "        return np.ones((len(features), len(names)), np.float32)",
    "mix_sums_to_one": "def route(self, names, knowledge, features):\n"
    "        return np.full((len(features), len(names)), 2, np.float32)",
    "unchanged_updates": "def aggregate(self, state, updates, fedopt):\n"
    "        state.subspaces['0'] = {k: v + 1 for k, v in state.subspaces['0'].items()}",
    "weighted_mean": "def aggregate(self, state, updates, fedopt):\n"
    "        for update in updates:\n"
    "            state.subspaces['0'] = {k: v for k, v in update.tensors.items() if 'lora' in k}",
    "a_client_can_train": "def loss(self, session, examples, features):\n        return 1.0",
    "by_record_sends_no_more": "by_record = True\n"
    "    def extra_shapes(self, state):\n        return {'x': (1,)}\n"
    "    def finish(self, session):\n        return {'x': np.ones(1, np.float32)}",
    "is_described": "def finnish(self, session):\n        return {}",
    "is_described ": "invariants = frozenset({'no-such-promise'})",
    "is_described  ": "answers = ''",
    "is_described   ": "family = 'no-such-family'",
    "a_client_of_a_smaller_rank_can_train": "mixes_ranks = True\n"
    "    def prepare(self, session):\n"
    "        assert all(len(t) == 2 for n, t in session.adapters.trainable.items() if 'lora_A' in n)",
    "several_subspaces_are_described": "def assign(self, state, pairs, stats, make):\n"
    "        for client, shard in pairs:\n"
    "            state.subspaces.setdefault(str(client), make(str(client)))\n"
    "            state.assigned.setdefault((client, shard), str(client))",
}


@pytest.mark.parametrize("check", BROKEN)
def test_the_contract_can_fail(check, tmp_path):
    file = tmp_path / "broken.py"
    file.write_text(
        "import numpy as np\nfrom fcit.methods.finetune import Finetune\n\n"
        f"class Broken(Finetune):\n    name = 'broken'\n    summary = 'broken'\n    {BROKEN[check]}\n"
    )
    with pytest.raises((AssertionError, TypeError)):
        getattr(contract, check.strip())(contract.MethodCase(f"{file}:Broken", "frozen"))


@pytest.mark.parametrize(
    ("hooks", "said"),
    [
        ("def finish(self, session):\n        return {'x': np.ones(2, np.float32)}", "extra_shapes announces {}"),
        ("def finish(self, session):\n        session.memory['t'] = object()\n        return {}", "cannot be saved"),
        ("def broadcast(self, state, pair):\n        return {'x': [1.0]}", "broadcast must give float32 arrays"),
        (
            "def end_stage(self, state, stage):\n"
            "        state.subspaces['0'] = {n: t * np.ones(t.shape) for n, t in state.subspaces['0'].items()}",
            "aggregate or end_stage, of '0', must give float32 arrays",
        ),
        (
            "def constants(self, state):\n        return {'c': {'x': np.float32(1)}}",
            "constants['c'] must give float32 arrays",
        ),
        ("def brief(self, state):\n        return {0: 1}", "brief must give JSON values"),
        ("def knowledge(self, state):\n        return {'n': np.int64(1)}, {}", "knowledge must give JSON values"),
    ],
)
def test_a_hook_that_is_wrong_is_named(hooks, said, tmp_path):
    file = tmp_path / "wrong.py"
    file.write_text(
        "import numpy as np\nfrom fcit.methods.finetune import Finetune\n\n"
        f"class Wrong(Finetune):\n    remembers = True\n    {hooks}\n"
    )
    problems = [problem for _, problem in contract.check(f"{file}:Wrong") if problem]
    assert 1 <= len(problems) <= 4
    assert said in problems[0]


@pytest.mark.parametrize("name", [n for n in registry.METHODS if registry.resolve("method", n).needs_task_at_inference])
def test_a_task_that_was_never_trained_gets_no_weight(name):
    told = registry.resolve("method", name)(RunConfig(method={"name": name}))
    assert not told.route(["task-0", "task-1"], ({"task": "task-9"}, {}), np.ones((2, 2), np.float32)).any()


def test_factory_depends_on_seed_and_name_only():
    shapes, a = toy.SHAPES, toy.A
    first, other = Factory(0, shapes)("3"), Factory(1, shapes)("3")
    again = Factory(0, dict(reversed(shapes.items())))("3")
    assert np.array_equal(first[a], again[a])
    assert not np.array_equal(first[a], other[a])
    assert not np.array_equal(first[a], Factory(0, shapes)("4")[a])
    wide = Factory(0, {a: (100, 100)})("0")[a]
    assert wide.std() == pytest.approx(0.01, rel=0.05)
    assert abs(wide.mean()) < 1e-3
