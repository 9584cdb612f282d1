from node.faces.quorum import VoterSeen, why_undecided


def seen(**voters: bool) -> list[VoterSeen]:
    return [VoterSeen(name=name, alive=alive) for name, alive in voters.items()]


def test_who_is_missing_and_what_to_do() -> None:
    what, todo = why_undecided(seen(anna=False))
    assert "the only voter, anna, cannot be reached" in what
    assert todo.startswith("start anna again")
    assert "`mesh-cli ledger recover --force`" in todo
    what, todo = why_undecided(seen(carl=False, bert=False, anna=True))
    assert "1 of 3 voters can be reached, 2 are needed: bert, carl missing" in what
    assert todo.startswith("start bert, carl again")


def test_an_election_is_no_loss() -> None:
    what, todo = why_undecided(seen(anna=True, bert=True, carl=False))
    assert "an election runs" in what
    assert "recover" not in todo
    assert "an election runs" in why_undecided(seen(anna=True))[0]
