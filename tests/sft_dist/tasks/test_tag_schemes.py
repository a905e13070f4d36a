"""Tag schemes: which are recognized, what their tags mean, what is refused."""

from __future__ import annotations

import pytest

from sft_dist.tasks.tag_schemes import PLAIN, MixedTags, tag_scheme


@pytest.mark.parametrize(
    ("tags", "name", "iobes"),
    [
        ("B-PER I-PER O", "BIO", "B-PER I-PER O"),
        ("I-PER I-LOC O", "BIO", "I-PER I-LOC O"),
        ("B-PER I-PER o", "BIO", "B-PER I-PER O"),
        ("b-per i-per o", "BIO", "B-per I-per O"),
        ("B-PER I-PER E-PER S-LOC O", "BIOES", "B-PER I-PER E-PER S-LOC O"),
        ("B-PER I-PER L-PER U-LOC O", "BILOU", "B-PER I-PER E-PER S-LOC O"),
        ("B-PER M-PER E-PER S-LOC O", "BMES", "B-PER I-PER E-PER S-LOC O"),
        ("PER-B PER-I O", "BIO, suffix", "B-PER I-PER O"),
        ("B_PER I_PER O", "BIO, underscore", "B-PER I-PER O"),
        ("PER_B PER_I O", "BIO, underscore suffix", "B-PER I-PER O"),
        ("B I O", "BIO, bare", "B-entity I-entity O"),
        ("B I L U O", "BILOU, bare", "B-entity I-entity E-entity S-entity O"),
        ("NOUN VERB DET", PLAIN, "B-NOUN B-VERB B-DET"),
        ("PER LOC O", PLAIN, "B-PER B-LOC O"),
        ("N V I", PLAIN, "B-N B-V B-I"),
    ],
)
def test_recognized_schemes(tags, name, iobes):
    scheme = tag_scheme(tags.split())
    assert (scheme.name, scheme.normalize(tags.split())) == (name, iobes.split())


@pytest.mark.parametrize(
    ("tags", "odd"),
    [
        ("B-PER I-PER O PER", ["PER"]),
        ("B-PER I-PER B-LOC O B_LOC", ["B_LOC"]),
        ("B-PER I-PER O o", ["o"]),
        ("B-PER E-PER S-PER U-PER O", ["U-PER"]),
        ("B-PER I-PER O 0", ["0"]),
    ],
)
def test_mixed_schemes_name_the_odd_tags(tags, odd):
    with pytest.raises(MixedTags) as error:
        tag_scheme(tags.split())
    assert error.value.odd == odd
