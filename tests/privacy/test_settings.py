"""What ``privacy:`` can be combined with, and the sentence where it cannot."""

import pytest

from fcit import config
from fcit.config import record_checks
from fcit.errors import ConfigError
from fcit.methods.finetune import Finetune

ON = {"client_dp": "on", "noise_multiplier": 1.0}
SECRET = {**ON, "sampling": "secret"}
MASKED = {"secure_aggregation": "on"}


def problems(raw) -> list[str]:
    with pytest.raises(ConfigError) as error:
        config.parse(raw)
    return error.value.problems


def test_off_by_default():
    assert not config.parse({}).privacy.on


@pytest.mark.parametrize("value", ["on", True])
def test_on_as_yaml_reads_it(value):
    assert config.parse({"privacy": {**ON, "client_dp": value}}).privacy.on


@pytest.mark.parametrize("method", ["disco", "finetune", "lwf", "olora", "replay", "moelora", "mlora"])
def test_methods_whose_updates_go_through_the_aggregator(method):
    assert config.parse({"method": method, "privacy": ON}).privacy.on


@pytest.mark.parametrize("method", ["finetune", "lwf", "olora", "replay", "moelora", "mlora", "sefe", "opcm", "dop"])
def test_methods_of_one_subspace_at_a_time_go_with_secret_sampling(method):
    assert config.parse({"method": method, "privacy": SECRET}).privacy.secret


@pytest.mark.parametrize("fedopt", ["fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_optimisers_that_step_from_the_mean_alone(fedopt):
    assert config.parse({"fedopt": fedopt, "privacy": ON}).privacy.on


@pytest.mark.parametrize(
    ("raw", "start", "way_out"),
    [
        ({"privacy": {"epsilon": 8}}, "privacy.epsilon: 8.0 has no effect", "choose client_dp: on"),
        ({"privacy": {"clip_quantile": 0.5}}, "privacy.clip_quantile: 0.5 has no effect", "choose client_dp: on"),
        ({"privacy": {"client_dp": "on"}}, "privacy.client_dp: 'on' needs either", "got neither"),
        ({"privacy": {**ON, "epsilon": 8}}, "privacy.client_dp: 'on' needs either", "noise_multiplier and epsilon"),
        ({"privacy": {**ON, "quantile_noise": 2}}, "privacy.quantile_noise: 2.0 has no effect", "give both or neither"),
        (
            {"privacy": {**ON, "clip_quantile": 0.5, "quantile_noise": 0.5}},
            "privacy.quantile_noise: 0.5 must be more than half of noise_multiplier (1.0)",
            "",
        ),
        ({"privacy": {"sampling": "secret"}}, "privacy.sampling: secret has no effect", "choose client_dp: on"),
        (
            {"privacy": SECRET, "method": "finetune", "federation": {"sampling": "official"}},
            "privacy.sampling: 'secret' cannot keep the published table",
            "choose federation.sampling: seeded",
        ),
        (
            {"privacy": SECRET, "method": "finetune", "setting": "heterogeneous"},
            "privacy.sampling: 'secret' needs tasks that do not depend on who else takes part",
            "choose privacy.sampling: public",
        ),
        (
            {"privacy": {**SECRET, "secure_aggregation": "on"}, "method": "finetune"},
            "privacy.sampling: 'secret' is none to the clients of a group",
            "choose privacy.sampling: public",
        ),
        (
            {"privacy": {**SECRET, "record_dp": "on", "record_epsilon": 4}, "method": "finetune"},
            "privacy.sampling: 'secret' leaves open how often a client takes part",
            "choose privacy.sampling: public",
        ),
        (
            {"privacy": SECRET, "method": "disco"},
            "privacy.sampling: 'secret' needs a method that trains one subspace at a time",
            "choose privacy.sampling: public",
        ),
        (
            {"privacy": {**SECRET, "token_epsilon": 4}, "method": "hide"},
            "privacy.sampling: 'secret' cannot keep secret whom method: 'hide' describes",
            "choose privacy.sampling: public",
        ),
        (
            {"privacy": {"token_epsilon": 4, "token_noise_multiplier": 1}},
            "privacy.token_epsilon: 4.0 gives the noise, and so does token_noise_multiplier: 1.0",
            "leave one out",
        ),
        (
            {"privacy": {"token_epsilon": 4}, "method": "finetune"},
            "privacy.token_epsilon: 4.0 has no effect with method: 'finetune'",
            "leave it out",
        ),
        ({"privacy": ON, "robust": "median"}, "privacy.client_dp: 'on' bounds", "choose robust: none"),
        ({"privacy": ON, "factors": "svd"}, "privacy.client_dp: 'on' adds noise", "choose factors: frozen_a"),
        (
            {"privacy": ON, "federation": {"wire": "bfloat16"}},
            "privacy.client_dp: 'on' accounts for what a client sends of one round",
            "choose federation.wire: float32",
        ),
        (
            {"privacy": ON, "federation": {"top_k": 0.1}},
            "privacy.client_dp: 'on' accounts for what a client sends of one round, and with federation.top_k: 0.1",
            "leave federation.top_k out",
        ),
        ({"privacy": ON, "fedopt": "scaffold"}, "privacy.client_dp: 'on' does not cover", "choose another fedopt"),
        ({"privacy": ON, "method": "ewc"}, "privacy.client_dp: 'on' does not cover", "choose another method"),
        ({"privacy": ON, "method": "l2p"}, "privacy.client_dp: 'on' does not cover", "choose another method"),
        ({"privacy": ON, "method": "joint"}, "privacy.client_dp: 'on' needs clients", "choose another method"),
        ({"privacy": ON, "method": "zero_shot"}, "privacy.client_dp: 'on' has nothing to protect", ""),
    ],
)
def test_what_makes_no_sense_is_said(raw, start, way_out):
    (text,) = problems(raw)
    assert text.startswith(start)
    assert way_out in text


# ------------------------------------------------------------------ records

RECORDS = {"record_dp": "on", "record_noise_multiplier": 1.0}


METHODS = ["disco", "finetune", "lwf", "olora", "moelora", "mlora", "sefe", "hide", "opcm", "dop"]


@pytest.mark.parametrize("method", METHODS)
def test_methods_whose_losses_are_means_over_records(method):
    assert config.parse({"method": method, "privacy": RECORDS}).privacy.records


@pytest.mark.parametrize("fedopt", ["fedprox", "scaffold", "fedadam"])
def test_optimisers_that_are_given_private_gradients(fedopt):
    assert config.parse({"fedopt": fedopt, "privacy": RECORDS}).privacy.records


def test_records_and_clients_are_protected_together():
    privacy = config.parse({"privacy": {**RECORDS, **ON}}).privacy
    assert privacy.records
    assert privacy.on


@pytest.mark.parametrize(
    ("raw", "start", "way_out"),
    [
        ({"privacy": {"record_epsilon": 8}}, "privacy.record_epsilon: 8.0 has no effect", "choose record_dp: on"),
        ({"privacy": {"record_dp": "on"}}, "privacy.record_dp: 'on' needs either", "got neither"),
        ({"privacy": {**RECORDS, "record_epsilon": 8}}, "privacy.record_dp: 'on' needs either", "and record_epsilon"),
        (
            {"privacy": RECORDS, "training": {"compile": "on"}},
            "privacy.record_dp: 'on' needs the gradient of every record",
            "choose training.compile: auto or off",
        ),
        (
            {"privacy": RECORDS, "data": {"styles": 0.2}},
            "privacy.record_dp: 'on' protects records that are learnt as they are, and with data.styles: 0.2",
            "choose data.styles: 0",
        ),
        *(
            ({"privacy": RECORDS, "method": method}, "privacy.record_dp: 'on' covers the gradients", "another method")
            for method in ("ewc", "l2p", "replay", "keeplora", "clmoe")
        ),
        ({"privacy": RECORDS, "method": "joint"}, "privacy.record_dp: 'on' needs clients", "choose another method"),
        ({"privacy": RECORDS, "method": "zero_shot"}, "privacy.record_dp: 'on' has nothing to protect", ""),
    ],
)
def test_what_makes_no_sense_of_records_is_said(raw, start, way_out):
    (text,) = problems(raw)
    assert text.startswith(start)
    assert way_out in text


class _Declares(Finetune):
    by_record = True

    def finish(self, session):
        return {}


class _Inherits(Finetune):
    def on_step(self, session):
        session.notes["seen"] = session.examples


class _Decides(Finetune):
    def assign(self, state, pairs, stats, make):
        super().assign(state, pairs, stats, make)


@pytest.mark.parametrize(("method", "is_declared"), [(_Declares, True), (_Inherits, False), (_Decides, True)])
def test_a_hook_of_ones_own_needs_a_declaration_of_ones_own(method, is_declared):
    assert record_checks.declared(method) is is_declared


# --------------------------------------------------------------------------- secure aggregation


@pytest.mark.parametrize("method", ["disco", "finetune", "lwf", "olora", "replay", "moelora", "mlora"])
def test_methods_whose_updates_can_be_summed(method):
    assert config.parse({"method": method, "privacy": MASKED}).privacy.secure


@pytest.mark.parametrize("fedopt", ["fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_optimisers_that_need_the_mean_alone(fedopt):
    assert config.parse({"fedopt": fedopt, "privacy": {**MASKED, **ON}}).privacy.secure


@pytest.mark.parametrize(
    ("raw", "start", "way_out"),
    [
        ({"privacy": {"neighbours": 4}}, "privacy.neighbours: 4 has no effect", "choose secure_aggregation: on"),
        ({"privacy": {"neighbours": 3}}, "privacy.neighbours: input should be a multiple of 2", ""),
        ({"privacy": {**MASKED, "dropout": 0.34}}, "privacy.dropout: input should be less than or equal to 0.33", ""),
        (
            {"privacy": {**MASKED, "min_group": 6}},
            "privacy.min_group: 6 clients for a sum can never be reached",
            "raise that to 6",
        ),
        (
            {"privacy": {**MASKED, "min_group": 4, "neighbours": 2}},
            "privacy.neighbours: 2 is less than the others of a group",
            "raise it",
        ),
        (
            {"privacy": MASKED, "federation": {"clients": 4, "clients_per_round": 4, "min_updates": 4}},
            "federation.min_updates: 4 leaves no room for privacy.dropout: 0.3",
            "lower it to 3",
        ),
        (
            {"privacy": MASKED, "federation": {"wire": "int8"}},
            "privacy.secure_aggregation: 'on' sums integers",
            "choose federation.wire: float32",
        ),
        (
            {"privacy": MASKED, "federation": {"top_k": 0.5}},
            "privacy.secure_aggregation: 'on' sums integers",
            "leave federation.top_k out",
        ),
        ({"privacy": MASKED, "robust": "median"}, "privacy.secure_aggregation: 'on' lets", "choose robust: none"),
        ({"privacy": MASKED, "factors": "svd"}, "privacy.secure_aggregation: 'on' sums A and B", "frozen_a"),
        ({"privacy": MASKED, "fedopt": "scaffold"}, "privacy.secure_aggregation: 'on' does not mask", "another fedopt"),
        ({"privacy": MASKED, "method": "ewc"}, "privacy.secure_aggregation: 'on' does not mask", "another method"),
        ({"privacy": MASKED, "method": "l2p"}, "privacy.secure_aggregation: 'on' does not mask", "another method"),
        ({"privacy": MASKED, "method": "joint"}, "privacy.secure_aggregation: 'on' needs clients", "another method"),
        ({"privacy": MASKED, "method": "zero_shot"}, "privacy.secure_aggregation: 'on' has nothing to mask", ""),
    ],
)
def test_what_cannot_be_masked_is_said(raw, start, way_out):
    (text,) = problems(raw)
    assert text.startswith(start)
    assert way_out in text


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({"privacy": ON}, "does not cover what clients return to method"),
        ({"privacy": MASKED}, "does not mask what clients return to method"),
        ({"privacy": RECORDS}, "covers the gradients of a step's records"),
        ({"robust": "median"}, "does not see what clients return to method"),
    ],
)
def test_what_a_method_of_ones_own_measures_is_not_covered(raw, says, tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        "from fcit.methods.finetune import Finetune\n\nclass Own(Finetune):\n    name = 'own'\n    measures = True\n"
    )
    assert any(says in text for text in problems({**raw, "method": f"{file}:Own"}))
