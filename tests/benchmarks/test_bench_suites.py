"""Suites hold together: names that exist, and no two comparisons whose lines would mix."""

import pytest

from hybridgen.benchmarks import command
from hybridgen.benchmarks.pairs import NAMES
from hybridgen.benchmarks.peers.table import PEERS
from hybridgen.benchmarks.suites import SUITES, Experiment


def test_the_command_offers_every_suite() -> None:
    assert command.HELP.keys() == SUITES.keys() | {"kernels"}


@pytest.mark.parametrize("suite", SUITES)
def test_pairs_and_peers_are_known(suite: str) -> None:
    known = {name.partition("@")[0] for name in NAMES}
    for one in SUITES[suite]():
        assert one.pair.partition("@")[0] in known
        assert set(one.peers) <= PEERS.keys()


def settings(experiments: list[Experiment]) -> list[tuple[object, ...]]:
    return [
        (
            *(each.title, each.pair, tuple(each.sampling.items())),
            *(each.batch, each.prompts, each.new_tokens),
        )
        for each in experiments
    ]


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("given", [[], ["--dry-run"], ["--pair", "smollm2"]], ids=str)
def test_no_two_comparisons_mix(suite: str, given: list[str]) -> None:
    arguments = command.build_parser().parse_args([suite, *given])
    found = settings(command.changed(SUITES[suite](), arguments))
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("suite", SUITES)
def test_contenders_have_names_of_their_own_and_the_llm_is_among_them(suite: str) -> None:
    for one in SUITES[suite]():
        names = [way.name for way in one.ways]
        assert len(set(names)) == len(names) and "llm" in names
        assert one.prompts >= one.batch
