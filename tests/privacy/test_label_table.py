"""Values of GPT-FL's specification, sections 2.2 to 2.4 and check 6 of section 10, and what holds for any labels."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flgen.errors import UsageError
from flgen.privacy.label_table import MODULUS, LabelTable, TableLayout, canonical, table_width

EXAMPLE = TableLayout(hashes=3, width=4, key_cells=2, seed=7)
ROOMY = TableLayout(hashes=4, width=40, key_cells=4, seed=1)

few_labels = st.lists(st.text("abcdefgh ", min_size=1, max_size=13), max_size=12, unique=True)
multiplicities = st.integers(1, MODULUS - 1)
quick = settings(max_examples=60, deadline=None)


def table(layout: TableLayout, labels: Iterable[str]) -> LabelTable:
    """Each label once per occurrence."""
    made = LabelTable(layout)
    for label in labels:
        made.insert(label, 1)
    return made


def blind_table(layout: TableLayout, labels: Iterable[str], draws: random.Random) -> LabelTable:
    """Each label with a random multiplicity per occurrence."""
    made = LabelTable(layout)
    for label in labels:
        made.insert(label, draws.randrange(1, MODULUS))
    return made


class CountOneLayout(TableLayout):
    """Takes a cell for pure only if its count is 1, as tables without division do."""

    def pure(self, cell: Sequence[int], i: int, j: int) -> tuple[str, int] | None:
        return super().pure(cell, i, j) if cell[0] == 1 else None


class TestExample:
    """Check 6: two clients, three labels, 3 x 4 cells."""

    @pytest.mark.parametrize(
        ("label", "key", "positions", "check"),
        [
            ("cat", 953695139266560, [1, 1, 0], 883864374395602399),
            ("dog", 954854562332672, [0, 2, 2], 457109072726537485),
            ("ship", 1252792189583360, [2, 2, 3], 1432478197303009710),
        ],
    )
    def test_words_positions_and_checks(self, label: str, key: int, positions: list[int], check: int) -> None:
        assert EXAMPLE.encode(label) == (key, 0)
        assert [EXAMPLE.position(label, i) for i in range(3)] == positions
        assert list(EXAMPLE.cells_of(label)) == list(enumerate(positions))
        assert EXAMPLE.check(label) == check

    def test_the_cells_of_two_clients_add_up(self) -> None:
        cells = table(EXAMPLE, ["cat", "dog"]).merge(table(EXAMPLE, ["cat", "ship"])).cells.tolist()
        assert cells[0][1] == [2, 1907390278533120, 0, 1767728748791204798]
        assert cells[1][2] == [2, 2207646751916032, 0, 1889587270029547195]
        assert cells[0][3] == [0, 0, 0, 0]

    def test_peeling_counts_the_clients_of_each_label(self) -> None:
        peeled = table(EXAMPLE, ["cat", "dog"]).merge(table(EXAMPLE, ["cat", "ship"])).peel()
        assert peeled.multiplicities == {"cat": 2, "dog": 1, "ship": 1}
        assert peeled.labels == ("cat", "dog", "ship")
        assert (peeled.residual_cells, peeled.complete) == (0, True)

    def test_a_rule_that_wants_a_count_of_one_leaves_the_label_of_two_clients(self) -> None:
        layout = CountOneLayout(hashes=3, width=4, key_cells=2, seed=7)
        peeled = table(layout, ["cat", "dog"]).merge(table(layout, ["cat", "ship"])).peel()
        assert peeled.labels == ("dog", "ship")
        assert (peeled.residual_cells, peeled.complete) == (3, False)  # cat still lies in its three cells


class TestLabels:
    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ("pink-yellow dahlia?", "pink-yellow dahlia?"),
            ("cyclamen ", "cyclamen"),
            ("Great_White__Shark", "great white shark"),
            (" tab\tand\u00a0newline\n", "tab and newline"),
            ("ﬁre \uff21", "fire a"),  # a ligature, a full-width letter
            ("E\u0301clair", "éclair"),
            ("_", ""),
        ],
    )
    def test_spellings_become_one(self, given: str, expected: str) -> None:
        assert canonical(given) == expected

    @quick
    @given(st.text(max_size=20))
    @pytest.mark.parametrize("awkward", ["J\u030c", "İ"])
    def test_a_canonical_label_is_its_own(self, awkward: str, text: str) -> None:
        for label in (awkward, text, awkward + text):
            assert canonical(canonical(label)) == canonical(label)

    @quick
    @given(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=13).filter(
            lambda t: len(t.encode()) < 56
        )
    )
    def test_decoding_undoes_encoding(self, label: str) -> None:
        layout = TableLayout(hashes=3, width=4, key_cells=8, seed=0)
        words = layout.encode(label)
        assert len(words) == 8
        assert all(0 <= word < 2**56 for word in words)
        assert layout.decode(words) == label

    def test_the_longest_label_fills_the_words_and_one_byte_more_is_refused(self) -> None:
        layout = TableLayout(hashes=4, width=4, key_cells=8, seed=0)
        assert layout.decode(layout.encode("x" * 55)) == "x" * 55
        with pytest.raises(
            UsageError, match=r"has 56 bytes, more than the 55 that 8 key cells.*--union.key_cells to 9"
        ):
            layout.encode("x" * 56)
        with pytest.raises(UsageError, match="has 56 bytes"):
            layout.encode("é" * 28)  # bytes count, not letters

    @pytest.mark.parametrize(("label", "why"), [("", "is empty"), ("a\ud800", "cannot be written as UTF-8")])
    def test_what_is_no_text_is_refused(self, label: str, why: str) -> None:
        with pytest.raises(UsageError, match=why):
            EXAMPLE.encode(label)

    @pytest.mark.parametrize(
        "padded",
        [
            b"\x00".ljust(14, b"\0"),  # of length zero
            b"\x03cat!".ljust(14, b"\0"),  # goes on after its length
            b"\x0ecat".ljust(14, b"x"),  # longer than the words
            b"\x02\xff\xfe".ljust(14, b"\0"),  # no UTF-8
        ],
    )
    def test_words_that_encode_no_label_are_told(self, padded: bytes) -> None:
        words = [int.from_bytes(padded[:7], "big"), int.from_bytes(padded[7:], "big")]
        assert EXAMPLE.decode(words) is None

    def test_a_word_of_more_than_56_bits_encodes_no_label(self) -> None:
        key, rest = EXAMPLE.encode("cat")
        assert EXAMPLE.decode([key + 2**56, rest]) is None


class TestPurity:
    def test_a_cell_is_pure_for_any_multiplicity(self) -> None:
        for c in (1, 2, 4, 1000, MODULUS - 1):
            assert EXAMPLE.pure(EXAMPLE.cell("cat", c), 2, 0) == ("cat", c)

    def test_another_place_a_wrong_check_or_a_zero_count_is_not_pure(self) -> None:
        cell = EXAMPLE.cell("cat", 3)
        assert EXAMPLE.pure(cell, 2, 1) is None
        assert EXAMPLE.pure([*cell[:-1], (cell[-1] + 1) % MODULUS], 2, 0) is None
        assert EXAMPLE.pure([0, *cell[1:]], 2, 0) is None

    def test_two_labels_in_one_cell_are_not_pure(self) -> None:
        both = table(EXAMPLE, ["dog", "ship"]).cells[1, 2].tolist()
        assert EXAMPLE.pure(both, 1, 2) is None

    def test_a_broken_cell_leaves_a_residue(self) -> None:
        whole = table(ROOMY, ["a", "b", "c"])
        whole.cells[0, 0, 3] += np.uint64(1)
        peeled = whole.peel()
        assert not peeled.complete
        assert peeled.residual_cells >= 1


class TestSums:
    @quick
    @given(few_labels, few_labels, st.data())
    def test_merging_is_inserting_the_multiset_in_any_order(self, ours: list[str], theirs: list[str], data) -> None:
        merged = table(ROOMY, ours).merge(table(ROOMY, theirs))
        assert np.array_equal(merged.cells, table(ROOMY, theirs).merge(table(ROOMY, ours)).cells)
        together = table(ROOMY, data.draw(st.permutations(ours + theirs)))
        assert np.array_equal(merged.cells, together.cells)
        peeled = merged.peel()
        if peeled.complete:
            assert peeled.multiplicities == Counter(ours + theirs)

    @quick
    @given(st.dictionaries(st.text("abc", min_size=1, max_size=13), multiplicities, max_size=12))
    def test_taking_out_what_was_put_in_leaves_zero(self, labels: dict[str, int]) -> None:
        made = LabelTable(ROOMY)
        for label, v in labels.items():
            made.insert(label, v)
        assert made.cells.max() < MODULUS
        for label, v in labels.items():
            made.insert(label, -v)
        assert not made.cells.any()

    @quick
    @given(st.lists(few_labels, min_size=1, max_size=4), st.randoms(use_true_random=False))
    def test_random_multiplicities_give_the_same_labels(self, clients: list[list[str]], draws: random.Random) -> None:
        # The cells in use are the same, so that both tables are read, or neither.
        counted = LabelTable(ROOMY)
        blind = LabelTable(ROOMY)
        for labels in clients:
            counted = counted.merge(table(ROOMY, labels))
            blind = blind.merge(blind_table(ROOMY, labels, draws))
        assert blind.peel().labels == counted.peel().labels
        assert blind.peel().complete == counted.peel().complete

    def test_a_random_multiplicity_hides_how_many_clients_hold_a_label(self) -> None:
        draws = random.Random(5)
        counts = [blind_table(ROOMY, ["cat"] * clients, draws).peel().multiplicities["cat"] for clients in (1, 2) * 200]
        # Uniform in both cases: as many below p/2 as above, within four standard deviations.
        for clients in (0, 1):
            below = sum(c < MODULUS // 2 for c in counts[clients::2])
            assert abs(below - 100) < 4 * (200 * 0.25) ** 0.5


class TestSize:
    @pytest.mark.parametrize(
        ("capacity", "widths"),
        [(10, [356, 82, 34, 19]), (35, [842, 157, 57, 30]), (50, [1070, 188, 66, 33]), (102, [1728, 268, 88, 42])],
    )
    def test_the_published_sizes(self, capacity: int, widths: list[int]) -> None:
        assert [table_width(capacity, hashes, 1e-6) for hashes in (3, 4, 5, 6)] == widths

    def test_a_thousand_labels(self) -> None:
        assert table_width(1024, 4, 1e-6) == 851

    def test_the_published_bytes(self) -> None:
        assert TableLayout(4, table_width(102, 4, 1e-6), 8, 0).nbytes == 85_760

    def test_peeling_gets_a_larger_margin_where_it_alone_decides(self) -> None:
        # 1.3 a_k n / k = 42.1 cells beat the 26.5 that the pairs ask for.
        assert table_width(100, 4, 1e-2) == 52  # 1.6 * 1.295 * 100 / 4 = 51.8

    def test_a_single_label_needs_a_single_cell_per_hash(self) -> None:
        assert table_width(1, 4, 1e-6) == 1
        assert table(TableLayout(4, 1, 2, 0), ["cat"]).peel().labels == ("cat",)

    def test_two_hundred_blind_tables_of_102_labels_are_all_read(self) -> None:
        draws = random.Random(0)
        width = table_width(102, 4, 1e-6)
        for trial in range(200):
            labels = [f"class {draws.randrange(10**9)} {number}" for number in range(102)]
            peeled = blind_table(TableLayout(4, width, 8, seed=trial), labels, draws).peel()
            assert peeled.complete
            assert set(peeled.labels) == set(labels)

    def test_an_overfull_table_gives_nothing_and_says_so(self) -> None:
        peeled = table(TableLayout(4, 20, 8, seed=0), (f"label {number}" for number in range(200))).peel()
        assert peeled.labels == ()
        assert (peeled.residual_cells, peeled.complete) == (80, False)

    def test_a_table_that_is_too_small_never_passes_for_complete(self) -> None:
        draws = random.Random(1)
        for trial in range(60):
            number = draws.randrange(20, 60)
            labels = [f"label {n}" for n in range(number)]
            peeled = blind_table(TableLayout(4, 6, 3, seed=trial), labels, draws).peel()  # 24 cells
            assert peeled.complete == (set(peeled.labels) == set(labels))
            assert set(peeled.labels) <= set(labels)
            if number > 24:  # fewer cells than labels
                assert not peeled.complete
