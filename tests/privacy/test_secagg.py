"""The protocol of secure aggregation on arrays: who sends what is done by hand here."""

from itertools import chain, combinations, combinations_with_replacement, product

import numpy as np
import pytest
from Crypto.Protocol.SecretSharing import Shamir

from fcit.privacy.secagg import masks, shares
from fcit.privacy.secagg.client import Participant
from fcit.privacy.secagg.keys import Keys, commitment, fresh, masking_key, pairwise, public
from fcit.privacy.secagg.roster import Aborted, Member, Roster, Rules
from fcit.privacy.secagg.server import Group

RULES = Rules(least=3, dropout=0.4)
SESSION = "0-0-a"


class Members:
    """Clients that take part in one session; who has dropped out answers no more."""

    def __init__(self, clients, rules=RULES, size=5, kind=np.uint32, session=SESSION):
        self.group = Group(session, rules, np.dtype(kind), size)
        self.people = {c: Participant(Keys(fresh(), session, c)) for c in clients}
        rng = np.random.default_rng(0)
        self.vectors = {c: rng.integers(0, 2 ** (8 * np.dtype(kind).itemsize), size, kind) for c in clients}

    def until_masked(self, without=((), (), ())):
        """Phases 1 to 3; each without some clients."""
        for c, person in self.people.items():
            if c not in without[0]:
                self.group.keys(person.member())
        roster = self.group.close_keys()
        here = [c for c in self.people if c not in without[0]]
        for c in here:
            if c not in without[1]:
                shared = self.people[c].share(roster)
                self.group.shares(c, shared.sealed, shared.commitment)
        members = self.group.close_shares()
        for c in members:
            if c not in without[2]:
                self.group.vector(c, self.people[c].masked(roster, members, self.vectors[c]))
        return self.group.close_vectors()

    def reveal(self, client):
        group = self.group
        return self.people[client].reveal(group.roster, group.members, group.alive, group.sealed_for(client))

    def total(self, without=()):
        for c in self.group.alive:
            if c not in without:
                self.group.revealed(c, self.reveal(c).shares)
        return self.group.total()

    def plain(self, clients):
        return sum(self.vectors[c] for c in clients)


def subsets(items):
    return chain.from_iterable(combinations(items, n) for n in range(len(items) + 1))


@pytest.mark.parametrize("kind", [np.uint32, np.uint64])
def test_the_sum_is_that_of_the_vectors_bit_for_bit(kind):
    members = Members([4, 7, 11], kind=kind)
    alive = members.until_masked()
    assert members.total().tolist() == members.plain(alive).tolist()


@pytest.mark.parametrize("gone", [(), *product(range(4)), *combinations_with_replacement(range(4), 2)])
def test_masks_cancel_under_every_pattern_of_dropping_out(gone):
    """Up to two of five clients, the stated share, drop out before any of the four phases; who does not matter."""
    without = [[c for c, phase in enumerate(gone) if phase == p] for p in range(4)]
    members = Members(range(5), size=2)
    alive = members.until_masked(without[:3])
    assert len(alive) == 5 - sum(phase < 3 for phase in gone)
    assert members.total(without=without[3]).tolist() == members.plain(alive).tolist()


@pytest.mark.parametrize(
    ("gone", "reason"),
    [
        ([(0, 1, 2), (), (), ()], "2 members, at least 3"),
        ([(), (0, 1, 2), (), ()], "2 members have shared their keys, 0 of them have enough neighbours, at least 3"),
        ([(), (), (0, 1, 2), ()], "2 masked updates, at least 3"),
        ([(), (), (), (0, 1, 2)], "2 neighbours of client 0 are left, 3 are needed"),
    ],
)
def test_one_more_ends_it_without_a_sum(gone, reason):
    members = Members(range(5))
    with pytest.raises(Aborted, match=reason):
        members.until_masked(gone[:3])
        members.total(without=gone[3])


def test_a_sparse_graph_gives_the_same_sum():
    members = Members(range(12), Rules(3, 0.4, neighbours=4))
    alive = members.until_masked([(), (), (5,)])
    roster = members.group.roster
    assert {len(roster.neighbours(c)) for c in range(12)} == {5}
    assert all(c in roster.neighbours(d) for c in range(12) for d in roster.neighbours(c))
    assert roster.threshold == 3
    assert members.total().tolist() == members.plain(alive).tolist()


def test_members_without_neighbours_enough_are_not_waited_for():
    keys = [Member(c, bytes([c]) * 32, bytes([c + 100]) * 32) for c in range(8)]
    roster = Roster(SESSION, tuple(keys), Rules(3, 0.2, neighbours=4))
    assert roster.threshold == 4
    assert roster.staying(range(8)) == list(range(8))
    assert roster.staying([0, 1, 2, 3, 4]) == []  # at the ends three are left, then fewer everywhere


# --------------------------------------------------------------------------- what a curious server sees


def multiplication(shares_of_others):
    """The secret as a function of the share at one more place: a constant and a matrix over GF(2), 128 x 128."""
    place = len(shares_of_others) + 1
    given = [(n + 1, share) for n, share in enumerate(shares_of_others)]

    def secret(last: int) -> int:
        return int.from_bytes(Shamir.combine([*given, (place, last.to_bytes(16, "big"))]), "big")

    constant = secret(0)
    return constant, [secret(1 << bit) ^ constant for bit in range(128)]


def rank(rows):
    basis: list[int] = []
    for row in rows:
        for known in basis:
            row = min(row, row ^ known)
        if row:
            basis.append(row)
    return len(basis)


def test_fewer_shares_than_the_threshold_fit_every_secret_equally():
    """Given t - 1 shares, the secret is an invertible affine function of the next: each secret has just one."""
    given = shares.split(fresh()[:16], 3, 5)[:2]
    constant, columns = multiplication(given)
    assert rank(columns) == 128
    # affine indeed: not only at the powers of two
    other = int.from_bytes(fresh()[:16], "big")
    expected = constant
    for bit in range(128):
        expected ^= columns[bit] if other >> bit & 1 else 0
    got = Shamir.combine([*((n + 1, share) for n, share in enumerate(given)), (3, other.to_bytes(16, "big"))])
    assert int.from_bytes(got, "big") == expected


def test_a_vector_is_open_only_to_who_can_take_off_every_mask():
    """Each mask is a stream of its own over the whole ring: while one of them is unknown, any vector is possible."""
    members = Members([0, 1, 2], kind=np.uint64)
    members.until_masked()
    roster, keys = members.group.roster, members.people[1].keys
    seeds = [(keys.own_seed, 1)]
    for other, sign in ((0, -1), (2, 1)):
        seeds.append((pairwise(keys.masking, roster.member(other).masking, SESSION, (1, other)), sign))
    opened = []
    for taken in subsets(seeds):
        left = members.people[1].masked(roster, [0, 1, 2], members.vectors[1])
        for seed, sign in taken:
            masks.add(left, seed, -sign)
        opened.append(left.tolist() == members.vectors[1].tolist())
    assert opened == [False] * 7 + [True]


def test_masks_are_added_and_taken_off_piece_by_piece(monkeypatch):
    vector = np.arange(7, dtype=np.uint64)
    whole, pieces = vector.copy(), vector.copy()
    masks.add(whole, b"seed" * 4)
    monkeypatch.setattr(masks, "PIECE", 4)
    masks.add(pieces, b"seed" * 4)
    assert pieces.tolist() == whole.tolist() != vector.tolist()
    masks.add(pieces, b"seed" * 4, -1)
    assert pieces.tolist() == vector.tolist()


def test_the_same_client_has_other_masks_in_another_session():
    secret = fresh()
    one, other = (Keys(secret, session, 0) for session in ("a", "b"))
    partner = public(Keys(fresh(), "a", 1).masking)
    seeds = {pairwise(keys.masking, partner, keys.session, (0, 1)) for keys in (one, other)}
    assert len(seeds) == 2
    assert commitment(one.own_seed, "a", 0) != commitment(one.own_seed, "b", 0)


def test_both_ends_of_a_pair_have_the_same_mask():
    one, other = (Keys(fresh(), SESSION, client) for client in (1, 2))
    seed = pairwise(one.masking, public(other.masking), SESSION, (1, 2))
    assert pairwise(other.masking, public(one.masking), SESSION, (2, 1)) == seed
    assert public(masking_key(one.masking_seed)) == public(one.masking)


# --------------------------------------------------------------------------- what clients refuse


def test_a_client_reveals_one_kind_of_share_of_each_neighbour():
    members = Members(range(5))
    members.until_masked([(), (), (3,)])
    group, person = members.group, members.people[0]
    revealed = person.reveal(group.roster, group.members, group.alive, group.sealed_for(0)).shares
    twice = person.reveal(group.roster, group.members, [0, 1, 2, 3], group.sealed_for(0)).shares
    assert sorted(revealed) == list(range(5))
    assert revealed[1] == twice[1]
    # what a second request would give away, which is why the client's ledger of sessions refuses it
    assert revealed[3] != twice[3]
    assert revealed[4] != twice[4]


@pytest.mark.parametrize(
    ("members", "alive", "reason"),
    [
        ([0, 1, 2, 3, 4], [0, 1], "a sum of 2 updates, at least 3"),
        ([0, 1, 2, 3, 4], [1, 2, 3], "client 0 is said to have dropped out"),
        ([0, 1, 2, 9], [0, 1, 2], "client 9 is not of its roster"),
    ],
)
def test_a_client_reveals_nothing_for_a_sum_that_must_not_be(members, alive, reason):
    session = Members(range(5))
    session.until_masked()
    with pytest.raises(Aborted, match=reason):
        session.people[0].reveal(session.group.roster, members, alive, session.group.sealed_for(0))


def test_a_client_masks_nothing_with_too_few_neighbours():
    session = Members(range(8), Rules(3, 0.2, neighbours=4))
    session.until_masked()
    roster = session.group.roster
    far = [c for c in range(8) if c not in roster.neighbours(0)]
    with pytest.raises(Aborted, match="1 of the neighbours are left, 4 are needed"):
        session.people[0].masked(roster, [0, *far], session.vectors[0])


def test_a_roster_that_hides_a_client_among_substitutes_is_seen_where_keys_repeat():
    people = [Participant(Keys(fresh(), SESSION, c)) for c in range(3)]
    own, _, other = (person.member() for person in people)
    for keys, reason in [
        ([own, other, Member(5, other.sealing, other.masking)], "named twice"),
        ([own, other], "2 members, at least 3"),
        ([other, Member(7, b"a" * 32, b"b" * 32), Member(8, b"c" * 32, b"d" * 32)], "is not in it with the keys"),
        ([own, other, Member(7, b"short", b"b" * 32)], "has not 32 bytes"),
        ([own, other, Member(7, bytes(32), b"b" * 32)], "a public key cannot be used"),
    ]:
        with pytest.raises(Aborted, match=reason):
            people[0].share(Roster(SESSION, tuple(keys), RULES))


def test_what_was_sealed_for_another_roster_is_not_opened():
    members = Members(range(4))
    members.until_masked()
    group = members.group
    other = Roster(SESSION, tuple(reversed(group.roster.members)), RULES)
    revealed = members.people[0].reveal(other, group.members, group.alive, group.sealed_for(0))
    assert revealed.shares == {}
    assert revealed.unreadable == [0, 1, 2, 3]


# --------------------------------------------------------------------------- tampering


def test_a_changed_ciphertext_is_named_and_the_others_suffice():
    members = Members(range(5))
    members.until_masked()
    sealed = members.group._sealed[1]
    sealed[0] = sealed[0][:-1] + bytes([sealed[0][-1] ^ 1])
    assert members.reveal(0).unreadable == [1]
    assert members.total().tolist() == members.plain(range(5)).tolist()


def test_false_shares_are_seen_and_survived_where_others_are_left():
    members = Members(range(5))
    alive = members.until_masked()
    for c in alive:
        revealed = members.reveal(c).shares
        members.group.revealed(c, {k: bytes(16) for k in revealed} if c == 2 else revealed)
    assert members.group.total().tolist() == members.plain(alive).tolist()


def test_too_many_false_shares_end_it():
    members = Members(range(5))
    alive = members.until_masked([(), (), (4,)])
    for c in alive:
        revealed = members.reveal(c).shares
        members.group.revealed(c, {k: bytes(16) for k in revealed} if c < 2 else revealed)
    with pytest.raises(Aborted, match="shares of client 0 are false"):
        members.group.total()


def test_the_server_takes_what_fits_the_session_only():
    members = Members(range(4))
    group = members.group
    group.keys(members.people[0].member())
    with pytest.raises(ValueError, match="named twice"):
        group.keys(members.people[0].member())
    for c in (1, 2, 3):
        group.keys(members.people[c].member())
    roster = group.close_keys()
    shared = {c: members.people[c].share(roster) for c in range(4)}
    with pytest.raises(ValueError, match="for others than its neighbours"):
        group.shares(0, {1: b""}, b"")
    for c in range(4):
        group.shares(c, shared[c].sealed, shared[c].commitment)
    group.close_shares()
    for vector, reason in [(np.zeros(4, np.uint32), "a masked vector"), (np.zeros(5, np.uint64), "a masked vector")]:
        with pytest.raises(ValueError, match=reason):
            group.vector(0, vector)
    group.vector(0, members.vectors[0])
    with pytest.raises(ValueError, match="has sent one"):
        group.vector(0, members.vectors[0])
    with pytest.raises(ValueError, match="no shares of its neighbours"):
        group.revealed(0, {17: bytes(16)})
    with pytest.raises(ValueError, match="no shares of its neighbours"):
        group.revealed(0, {1: b"short"})
