"""What differs between ranks is named with the ranks and their hosts; what does not is not."""

from __future__ import annotations

import torch
from datasets import Dataset

from sft_dist.data.rows import Examples, Rows, table_digest
from sft_dist.training.rank_consistency import differences, versions, weights_digest

SAME = {"code": "aa", "torch": "2.13.0"}


def test_ranks_that_agree_have_no_differences():
    assert differences([("a", SAME), ("a", SAME), ("b", dict(SAME))]) == []


def test_a_difference_names_values_ranks_and_hosts():
    other = {**SAME, "torch": "2.12.1"}
    assert differences([("a", SAME), ("a", SAME), ("b", other), ("b", other)]) == [
        "torch: 2.13.0 on ranks 0, 1 (a); 2.12.1 on ranks 2, 3 (b)"
    ]


def test_what_one_rank_does_not_have_is_a_difference():
    assert differences([("a", SAME), ("b", {"code": "aa"})]) == ["torch: 2.13.0 on rank 0 (a); missing on rank 1 (b)"]


def test_a_thousand_ranks_take_one_short_line():
    ranks = [(f"n{rank // 8:03d}", {"code": "b" if rank == 500 else "a"}) for rank in range(1000)]
    (line,) = differences(ranks)
    assert line.endswith("; b on rank 500 (n062)")
    assert len(line) < 150


def test_versions_are_those_of_what_is_loaded():
    assert versions()["torch"] == torch.__version__


def rows(**changed) -> Rows:
    columns = {"row": [3, 5], "text": ["one", "two"], "text_pair": ["a", "b"], "label": ["neg", "pos"], **changed}
    return Rows(Dataset.from_dict(columns))


def test_the_rows_digest_sees_ids_texts_and_targets():
    every = [
        rows(),
        rows(row=[3, 6]),
        rows(label=["pos", "neg"]),
        rows(text_pair=["a", "c"]),
        rows(text=["one", "twoa"], text_pair=["", "b"]),
    ]
    assert len({table_digest(one) for one in every}) == len(every)
    assert table_digest(rows()) == table_digest(rows())


def test_the_digest_of_examples_sees_another_tokenizer_of_the_same_lengths():
    def examples(first: int) -> Examples:
        return Examples(Dataset.from_dict({"row": [0, 1], "input_ids": [[first, 2], [3]], "length": [2, 1]}), "train")

    assert table_digest(examples(1)) == table_digest(examples(1))
    assert table_digest(examples(1)) != table_digest(examples(9))


def test_the_weights_digest_sees_the_last_bit_of_any_kind_of_tensor():
    weights = {
        "a": torch.ones(3, 2),
        "b": torch.ones(2, dtype=torch.bfloat16),
        "n": torch.tensor(7),
        "e": torch.empty(0),
    }
    before = weights_digest(weights)
    assert before == weights_digest({name: value.clone() for name, value in weights.items()})
    weights["a"][2, 1] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    changed = weights_digest(weights)
    weights["n"] += 1
    assert len({before, changed, weights_digest(weights)}) == 3
    assert weights_digest({"x": torch.ones(2)}) != weights_digest({"y": torch.ones(2)})


def test_a_view_is_read_as_the_numbers_it_shows():
    matrix = torch.arange(6.0).view(2, 3)
    assert weights_digest({"w": matrix.T}) == weights_digest({"w": matrix.T.contiguous()})
