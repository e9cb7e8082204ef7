from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from training.encoding import fit_categories, fit_encoding


def test_codes_rise_with_the_rate_of_positives():
    texts = np.array(["low"] * 100 + ["high"] * 100 + ["mid"] * 100, object)
    labels = np.r_[np.zeros(90), np.ones(10), np.zeros(10), np.ones(90), np.zeros(50), np.ones(50)]
    encoding = fit_encoding(texts, labels)
    assert sorted(encoding.codes, key=encoding.codes.__getitem__) == ["low", "mid", "high"]
    assert encoding.codes["low"] < encoding.unseen < encoding.codes["high"]


def test_rare_texts_are_as_if_never_seen():
    encoding = fit_encoding(np.array(["often"] * 20 + ["once"], object), np.arange(21) % 2)
    assert set(encoding.codes) == {"often"}
    assert encoding.apply(np.array(["once", "never", "often"], object)).tolist() == [
        encoding.unseen,
        encoding.unseen,
        0.0,
    ]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 1)), min_size=1, max_size=80), st.randoms())
def test_the_order_of_rows_does_not_matter(rows, random):
    shuffled = list(rows)
    random.shuffle(shuffled)
    one, other = (
        fit_encoding(np.array([t for t, _ in each], object), np.array([y for _, y in each]))
        for each in (rows, shuffled)
    )
    assert one == other


def test_categories_are_numbered_without_an_order_and_the_rest_is_minus_one():
    texts = np.array(["late"] * 12 + ["early"] * 10 + ["rare"] * 9 + [""] * 30, object)
    encoding = fit_categories(texts)
    assert encoding.codes == {"": 0.0, "early": 1.0, "late": 2.0}
    assert encoding.apply(np.array(["late", "rare", "never", ""], object)).tolist() == [2, -1, -1, 0]


@given(st.lists(st.text(max_size=3), max_size=60), st.lists(st.text(max_size=3), max_size=60))
def test_every_text_is_looked_up_as_the_obvious_loop_does(seen, asked):
    encoding = fit_categories(np.array(seen * 10, object))
    assert list(encoding.codes) == sorted(set(seen))
    expected = [encoding.codes.get(text, encoding.unseen) for text in asked]
    assert encoding.apply(np.array(asked, object)).tolist() == expected
