from loop.summary import frame_rows


def test_a_frame_is_its_parts_and_what_the_embargo_kept_out():
    training = {
        "rows": {"train": 100, "validation": 20, "holdout": 30, "unlabelled": 7},
        "embargoed": {"train": 3, "validation": 2},
    }
    assert frame_rows(training) == 155
