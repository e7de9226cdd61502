"""A site's own limits on what may be spent of its records."""

import pytest

from clients.site.check import records
from clients.site.policy import terms
from clients.worker.record_terms import RecordTerms
from fcit.config.site import Site
from fcit.errors import Refused, RunError
from fcit.privacy import accountant
from fcit.privacy.record_accountant import Steps, epsilon


def test_no_limits_keep_no_account(tmp_path):
    terms = RecordTerms(account=tmp_path / "account.json")
    assert not terms.demanded
    terms.spend(["a"], Steps(0.1, 1.0, 1))
    assert not terms.account.exists()


def test_too_little_noise_is_refused():
    terms = RecordTerms(min_noise=1.0)
    assert terms.demanded
    terms.spend(["a"], Steps(1.0, 1.0, 1))
    with pytest.raises(Refused, match=r"multiplier of this training is 0\.5, below SITE\.yaml min_record_noise: 1"):
        terms.spend(["a"], Steps(0.5, 1.0, 1))


def test_trainings_are_noted_until_the_limit(tmp_path):
    pytest.importorskip("dp_accounting")
    steps = Steps(1.0, 0.5, 3)
    terms = RecordTerms(epsilon([steps] * 2, 1e-5).pld + 0.01, account=tmp_path / "account.json")
    terms.spend(["a"], steps)
    terms.spend(["a"], steps)
    with pytest.raises(Refused, match=r"epsilon of the records of a would be .*, above SITE\.yaml max_record_epsilon"):
        terms.spend(["a"], steps)
    with pytest.raises(Refused):  # what was refused was not noted, what was noted stays
        terms.spend(["b", "a"], Steps(1.0, 0.5, 1))
    terms.spend(["b"], steps)
    assert terms.spent() == {"a": epsilon([steps] * 2, 1e-5).pld, "b": epsilon([steps], 1e-5).pld}


def test_a_damaged_account_is_not_begun_anew(tmp_path):
    file = tmp_path / "account.json"
    file.write_text('{"spent": 3}')
    with pytest.raises(RunError, match=r"account\.json: not an account of records"):
        RecordTerms(8.0, account=file).spend(["a"], Steps(1.0, 1.0, 1))


def test_the_check_of_a_site_says_what_was_spent(tmp_path, monkeypatch):
    pytest.importorskip("dp_accounting")
    site = Site(home=str(tmp_path), max_record_epsilon=8)
    assert records(site) == ("record privacy", True, "spent of epsilon 8, over all runs: nothing")
    terms(site).records.spend(["shapes.json"], Steps(4.0, 1.0, 1))
    epsilon_so_far = epsilon([Steps(4.0, 1.0, 1)], 1e-5).pld
    assert records(site)[2].endswith(f"over all runs: {epsilon_so_far:.3g} of shapes.json")
    terms(site).records.account.write_text("{}[")
    assert records(site)[1] is False
    monkeypatch.setattr(accountant, "find_spec", lambda name: None)
    assert records(site)[2].startswith("max_record_epsilon needs the package dp-accounting")
