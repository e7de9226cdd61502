"""The contract of methods, checked on a toy federation by ``fcit check`` and by the tests.

Some checks apply to every method. Others belong to invariants that a method declares
(:attr:`fcit.methods.base.Method.invariants`); a method without an invariant leaves it out.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args, get_origin

import numpy as np
from pydantic import ValidationError

from fcit import registry
from fcit.config import Adapter
from fcit.config.record_checks import declared
from fcit.contracts.toy import PAIRS, A, B, MethodCase, first_failure, method_of, require
from fcit.fedopt.aggregator import Aggregator
from fcit.fedopt.fedavg import FedAvg
from fcit.io import trees
from fcit.methods.base import FAMILIES, INVARIANTS, Method, Pair, ServerState
from fcit.models.ranks import rank_of

# --------------------------------------------------------------------------- checks of every method


def is_described(case: MethodCase) -> None:
    """It has a name, a summary for `fcit list`, a sentence for the model card, and declares known invariants."""
    method = case.method
    require(method.name, "set `name`")
    require(method.summary, "set `summary`, one line for `fcit list`")
    require(method.answers, "set `answers`, one sentence for the model card: how the subspaces answer together")
    require(method.pooled in ("", "task", "all"), f"pooled is {method.pooled!r}; allowed: '', 'task', 'all'")
    families = ", ".join(FAMILIES)
    require(method.family in ("", *FAMILIES), f"family is {method.family!r}; allowed: {families}, or none")
    kinds = ("text", "suffix", "image", "both")
    require(method.identity in kinds, f"identity is {method.identity!r}; allowed: {', '.join(kinds)}")
    strange = set(method.invariants) - set(INVARIANTS)
    require(not strange, f"unknown invariants {sorted(strange)}; there are {sorted(INVARIANTS)}")
    require(method.invariants, "declare at least one of the optional invariants")
    known = [n for n in vars(Method) if not n.startswith("_")]
    for kind in type(method).__mro__[: type(method).__mro__.index(Method)]:
        for attribute, value in vars(kind).items():
            if attribute not in known and callable(value) and not attribute.startswith("_"):
                close = registry.nearest(attribute, known)
                require(not close, f"{attribute!r} is no hook{close}; name helpers with a leading underscore")


def options_have_defaults(case: MethodCase) -> None:
    """Options have defaults; unknown ones are refused."""
    type(case.method).Options.model_validate({})
    try:
        type(case.method).Options.model_validate({"no_such_option": 1})
    except ValidationError:
        return
    raise AssertionError("Options accepts an unknown key; derive it from fcit.config.Section")


def assign_gives_every_pair_a_subspace(case: MethodCase) -> None:
    """assign gives every pair of a round a subspace with the tensors of `make(name)`."""
    require(set(case.state.assigned) == set(PAIRS), "assign left a pair without a subspace")
    for pair in PAIRS:
        tensors = case.state.subspaces[case.state.assigned[pair]]
        shapes = {n: tensors[n].shape for n in case.shapes}
        require(shapes == case.shapes, f"a subspace lacks tensors or has other shapes: {shapes}")
        require(all(t.dtype == np.float32 for t in tensors.values()), "a subspace is not float32")


def assign_is_stable(case: MethodCase) -> None:
    """assign is stable: a second call changes nothing."""
    assigned, before = dict(case.state.assigned), dict(case.state.subspaces)
    case.method.assign(case.state, list(PAIRS), case.stats, case.make)
    require(case.state.assigned == assigned, "a second assign moved a pair")
    same = len(case.state.subspaces) == len(before) and all(case.state.subspaces[n] is t for n, t in before.items())
    require(same, "a second assign made or replaced a subspace")


def assign_ignores_the_order_of_slots(case: MethodCase) -> None:
    """assign does not depend on the order of the clients in a round."""
    reversed_state = ServerState(shared=dict(case.make.projector))
    case.method.assign(reversed_state, PAIRS[::-1], dict(reversed(case.stats.items())), case.make)
    require(reversed_state.assigned == case.state.assigned, "assign depends on the order of the pairs")


def common_is_what_assign_gives(case: MethodCase) -> None:
    """common names the subspace that assign gives every pair of a stage, if it names one."""
    common = case.method.common(case.state.stage)
    given = {case.state.assigned[pair] for pair in PAIRS}
    require(common is None or given == {common}, f"common says {common!r}, and assign gives {sorted(given)}")


def settled_pairs_stay(case: MethodCase) -> None:
    """settled holds for pairs that assign has given their subspace, and for none of before that it would move."""
    for stage in range(2):
        case.state.stage = stage
        before = {pair: case.state.assigned[pair] for pair in PAIRS if case.method.settled(case.state, pair)}
        case.method.assign(case.state, list(PAIRS), case.stats, case.make)
        moved = sorted(shard for (client, shard), name in before.items() if case.state.assigned[client, shard] != name)
        require(not moved, f"assign moves {moved}, which were settled already")
        lacking = [pair for pair in PAIRS if not case.method.settled(case.state, pair)]
        require(not lacking, f"assign has given {lacking} a subspace, and settled says that they have none")


def every_tensor_has_one_home(case: MethodCase) -> None:
    """Every trained tensor belongs either to the subspace or to the shared tensors."""
    for pair in PAIRS:
        whole = set(case.shapes) | set(case.make.projector)
        require(set(case.held(pair)) == whole, "a client lacks or doubles tensors")
        both = set(case.state.shared) & set(case.state.subspaces[case.state.assigned[pair]])
        require(not both, f"{sorted(both)} are both shared and in a subspace")


def aggregate_reads_once_and_repeats(case: MethodCase) -> None:
    """aggregate reads the updates once, as an iterator; equal updates give equal bits."""
    again = case.fresh()
    updates = [case.update(pair, pair[0] + 1, 0.1 * pair[0]) for pair in PAIRS]
    case.method.aggregate(case.state, iter(updates), case.aggregator)
    case.method.aggregate(again, iter(updates), Aggregator(FedAvg(case.method.config)))
    for pair in PAIRS:
        first, second = case.held(pair), case.held(pair, again)
        require(all(np.array_equal(first[n], second[n]) for n in first), "aggregating twice gives different bits")


def everything_trained_moves(case: MethodCase) -> None:
    """aggregate takes in all that was trained: what every client has moved moves."""
    if not case.method.trains:
        return
    before, frozen = case.held(PAIRS[0]), set(case.method.frozen(case.held(PAIRS[0]), case.state.stage))
    case.method.aggregate(case.state, iter([case.update(pair, 2, 1.0) for pair in PAIRS]), case.aggregator)
    after = case.held(PAIRS[0])
    still = sorted(n for n, tensor in before.items() if n not in frozen and np.array_equal(after[n], tensor))
    require(not still, f"every client has moved {still}, and the server's stayed where they were")


def state_can_be_saved(case: MethodCase) -> None:
    """The server's state holds JSON values and arrays, and is restored unchanged from a checkpoint."""
    case.method.aggregate(case.state, iter([case.update(pair, 2, 0.1) for pair in PAIRS]), case.aggregator)
    case.method.end_stage(case.state, 0)
    plain, tensors = trees.flatten(case.state.memory)
    again, _ = trees.flatten(trees.restore(plain, tensors))
    require(again == plain, "the server's memory changes when it is saved and read")


def mix_has_one_weight_per_subspace(case: MethodCase) -> None:
    """route returns finite, non-negative float32 weights (questions, subspaces)."""
    mix = case.routed(np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32))
    require(mix.shape == (5, len(case.state.subspaces)), f"route returned {mix.shape}")
    require(mix.dtype == np.float32 and np.isfinite(mix).all(), "route must return finite float32 weights")
    require((mix >= 0).all(), "route returned a negative weight")


def route_is_per_sample(case: MethodCase) -> None:
    """route treats every question independently of the others in its batch."""
    features = np.random.default_rng(1).normal(size=(4, 2)).astype(np.float32)
    singles = np.stack([case.routed(row[None])[0] for row in features])
    require(np.allclose(case.routed(features), singles, atol=1e-6), "route depends on the batch")


def route_is_not_told_the_task(case: MethodCase) -> None:
    """Only references use the task of a question; knowledge does not contain it."""
    parameters = list(inspect.signature(case.method.route).parameters)
    require(parameters == ["names", "knowledge", "features"], f"route takes {parameters}")
    values, tensors = case.method.knowledge(case.state)
    require("task" not in values, "knowledge names a task")
    require(all(isinstance(t, np.ndarray) for t in tensors.values()), "knowledge's second part holds arrays")


def by_record_sends_no_more(case: MethodCase) -> None:
    """A method that declares `by_record` has clients send nothing but trained tensors."""
    if declared(type(case.method)):
        require(not case.method.extra_shapes(case.state), "with by_record, finish must send nothing")


def describe_adds_up(case: MethodCase) -> None:
    """describe is additive: the statistics of two halves add up to those of the whole."""
    features = np.random.default_rng(2).normal(size=(5, 3)).astype(np.float32)
    whole = case.method.describe(features)
    parts = [case.method.describe(features[:2]), case.method.describe(features[2:])]
    require(whole.count == 5 == sum(p.count for p in parts), "describe miscounts")
    require(np.allclose(whole.total, parts[0].total + parts[1].total), "describe does not add up")


def a_client_can_train(case: MethodCase) -> None:
    """Client hooks: a scalar loss with gradients, float32 extras as announced, a memory that can be saved."""
    if not case.method.trains:
        return
    if case.method.measuring(0):
        case.measure()
    memory: dict[str, Any] = {}
    for _ in range(2):  # the second time it remembers the first
        session, _ = case.train(PAIRS[0], memory)
        plain, tensors = trees.flatten(session.memory)
        memory = trees.restore(plain, tensors) if case.method.remembers else {}


def a_client_of_a_smaller_rank_can_train(case: MethodCase) -> None:
    """With mixes_ranks, clients of two stages train factors of a smaller rank, and subspaces keep their shapes."""
    if not declared(type(case.method), "mixes_ranks") or not case.method.trains:
        return
    case.rank = 1
    for stage in range(2):
        case.state.stage, case.state.round = stage, case.method.config.federation.rounds - 1
        case.method.assign(case.state, list(PAIRS), case.stats, case.make)
        updates = [case.train(pair, {}, last_round=True)[1] for pair in PAIRS]
        require({rank_of(update.tensors) for update in updates} == {1}, "training has changed the rank of factors")
        case.method.aggregate(case.state, iter(updates), case.aggregator)
        case.method.end_stage(case.state, stage)
        for pair in PAIRS:
            after = {n: case.held(pair)[n].shape for n in case.shapes}
            require(after == case.shapes, f"aggregate gave a subspace the shapes {after}")


def a_second_stage_follows(case: MethodCase) -> None:
    """A second stage: constants of the first reach its clients, and its state can be saved."""
    if not case.method.trains:
        return
    memories: dict[Pair, dict[str, Any]] = {pair: {} for pair in PAIRS}
    for stage in range(2):
        case.state.stage, case.state.round = stage, case.method.config.federation.rounds - 1
        case.method.assign(case.state, list(PAIRS), case.stats, case.make)
        if case.method.measuring(stage):
            case.measure()
        rounds = case.method.rounds(stage)
        for round_ in range(case.state.round, rounds):  # the last one, and extra ones
            case.state.round = round_
            case.method.assign(case.state, list(PAIRS), case.stats, case.make)
            trained = {pair: case.train(pair, memories[pair], round_ == rounds - 1) for pair in PAIRS}
            case.method.aggregate(case.state, iter([update for _, update in trained.values()]), case.aggregator)
            case.save()
            if case.method.remembers:
                memories = {pair: session.memory for pair, (session, _) in trained.items()}
        before = {n: dict(tensors) for n, tensors in case.method.constants(case.state).items()}
        case.method.end_stage(case.state, stage)
        case.save()
        after = case.method.constants(case.state)
        same = all(np.array_equal(t, after[n][k]) for n in before.keys() & after.keys() for k, t in before[n].items())
        require(same, "a group of constants changed under the same name")
    features = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    route, chosen = case.routed(features), case.chosen(features)
    require(route.shape == (3, len(case.state.subspaces)), "route forgets the subspaces of a later stage")
    good = chosen.shape == route.shape and np.isfinite(chosen).all() and (chosen >= 0).all()
    require(good, f"choose must return finite weights {route.shape}, got {chosen.shape}")
    singles = np.concatenate([case.chosen(row[None]) for row in features])
    require(np.allclose(chosen, singles, atol=1e-6), "choose depends on the batch")


def clients_can_come_in_any_order(case: MethodCase) -> None:
    """The order of the updates changes only the last bits."""
    again = case.fresh()
    updates = [case.update(pair, pair[0] + 1, 0.1 * pair[0]) for pair in PAIRS]
    repeated = [case.update(pair, pair[0] + 1, 0.1 * pair[0]) for pair in reversed(PAIRS)]
    case.method.aggregate(case.state, iter(updates), case.aggregator)
    case.method.aggregate(again, iter(repeated), case.aggregator)
    for pair in PAIRS:
        first, second = case.held(pair), case.held(pair, again)
        same = all(np.allclose(first[n], second[n], atol=1e-6) for n in first)
        require(same, "clients in another order give other tensors")


# --------------------------------------------------------------------------- declared invariants


def starts_at_base(case: MethodCase) -> None:
    """starts-at-base: a new subspace changes no output (B = 0) and can learn (A != 0)."""
    for tensors in case.state.subspaces.values():
        require(not tensors[B].any() and tensors[A].any(), "a new subspace must be A != 0, B = 0: use `make(name)`")


def unchanged_updates(case: MethodCase) -> None:
    """unchanged-updates: updates without a change leave the server's tensors unchanged."""
    before = {pair: case.held(pair) for pair in PAIRS}
    case.method.aggregate(case.state, iter([case.update(pair, 3, 0.0) for pair in PAIRS]), case.aggregator)
    for pair in PAIRS:
        after = case.held(pair)
        same = all(np.array_equal(after[n], t) and after[n].dtype == np.float32 for n, t in before[pair].items())
        require(same, "unchanged updates changed the server's tensors")


def weighted_mean(case: MethodCase) -> None:
    """weighted-mean: clients with 1 and 3 records moved by 1 and 2 move the server by (1 x 1 + 3 x 2) / 4."""
    before = case.held(PAIRS[0])
    updates = [case.update(PAIRS[0], 1, 1.0), case.update(PAIRS[2], 3, 2.0)]
    require(updates[0].subspace == updates[1].subspace, "two clients of one task got different subspaces")
    case.method.aggregate(case.state, iter(updates), case.aggregator)
    after = case.held(PAIRS[0])
    require(all(np.allclose(after[n], t + 1.75, atol=1e-6) for n, t in before.items()), "not the sample-weighted mean")


def others_untouched(case: MethodCase) -> None:
    """others-untouched: an update of one subspace leaves the others unchanged."""
    updated = case.state.assigned[PAIRS[1]]
    others = {n: dict(t) for n, t in case.state.subspaces.items() if n != updated}
    case.method.aggregate(case.state, iter([case.update(PAIRS[1], 2, 1.0)]), case.aggregator)
    for name, tensors in others.items():
        same = all(np.array_equal(case.state.subspaces[name][k], v) for k, v in tensors.items())
        require(same, f"an update of subspace {updated} changed subspace {name}")


def mix_sums_to_one(case: MethodCase) -> None:
    """mix-sums-to-one: the weights of a question sum to one, or are all zero."""
    sums = case.routed(np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)).sum(axis=1)
    require(np.all(np.isclose(sums, 1, atol=1e-6) | (sums == 0)), f"weights sum to {sums}")


def several_subspaces_are_described(case: MethodCase) -> None:
    """A method with several subspaces states in `answers` how they answer together."""
    state, pairs = case.fresh(), list(PAIRS)
    state.stage = 1
    case.method.assign(state, pairs, case.stats, case.make)
    default = len(state.subspaces) > 1 and case.method.answers == Method.answers
    require(not default, f"{len(state.subspaces)} subspaces, and `answers` is the default {Method.answers!r}")


ALWAYS: list[Callable[[MethodCase], None]] = [
    is_described,
    several_subspaces_are_described,
    options_have_defaults,
    assign_gives_every_pair_a_subspace,
    assign_is_stable,
    assign_ignores_the_order_of_slots,
    common_is_what_assign_gives,
    settled_pairs_stay,
    every_tensor_has_one_home,
    aggregate_reads_once_and_repeats,
    everything_trained_moves,
    state_can_be_saved,
    mix_has_one_weight_per_subspace,
    route_is_per_sample,
    route_is_not_told_the_task,
    by_record_sends_no_more,
    describe_adds_up,
    a_client_can_train,
    a_second_stage_follows,
    clients_can_come_in_any_order,
    a_client_of_a_smaller_rank_can_train,
]
DECLARED: dict[str, Callable[[MethodCase], None]] = {
    "starts-at-base": starts_at_base,
    "unchanged-updates": unchanged_updates,
    "weighted-mean": weighted_mean,
    "others-untouched": others_untouched,
    "mix-sums-to-one": mix_sums_to_one,
}


def variants(name: str) -> list[dict[str, Any]]:
    """Options under which a method is tested: the defaults, and every value of every choice and switch."""
    variants: list[dict[str, Any]] = [{}]
    for key, option in registry.resolve("method", name).Options.model_fields.items():
        values = get_args(option.annotation) if get_origin(option.annotation) is Literal else ()
        values = (False, True) if option.annotation is bool else values
        variants += [{key: value} for value in values if value != option.default]
    return variants


def checks(name: str, options: dict[str, Any] | None = None) -> list[Callable[[MethodCase], None]]:
    """The checks that apply to a method with these options: general ones and those of declared invariants."""
    declared = method_of(name, options).invariants
    return [*ALWAYS, *(check for key, check in DECLARED.items() if key in declared)]


def conditions(name: str) -> tuple[str, list[str]]:
    """The setting that a method is checked under, and its values: every projector policy."""
    return "projector", list(get_args(Adapter.model_fields["projector"].annotation))


def check(name: str, options: dict[str, Any] | None = None) -> Iterator[tuple[str, str | None]]:
    """Run every check of a method under all its conditions: what was checked, what is wrong (None: nothing)."""
    key, values = conditions(name)
    cases = [{key: value, "options": options or {}} for value in values]
    for test in checks(name, options):
        yield first_failure(test, lambda case: MethodCase(name, **case), cases)
