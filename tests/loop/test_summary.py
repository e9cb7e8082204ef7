import pytest

from loop.summary import frame_rows
from loop.terminal import Steps, print_table


def test_a_frame_is_its_parts_and_what_the_embargo_kept_out():
    training = {
        "rows": {"train": 100, "validation": 20, "holdout": 30, "unlabelled": 7},
        "embargoed": {"train": 3, "validation": 2},
    }
    assert frame_rows(training) == 155


@pytest.mark.parametrize("text", ["delays[mean]", "see [/wiki]", "[red]", "\\[bold]"])
def test_square_brackets_are_text(capsys, text):
    """Features of arrays are named so, and people write notes as they like."""
    print_table(f"of {text}", (text, "n"), [(text, 1)])
    with Steps().step(text):
        pass
    out, err = capsys.readouterr()
    assert out.count(text) == 3
    assert err.count(text) == 1


def test_a_title_is_not_broken_at_the_width_of_its_table(capsys):
    print_table("late_return (binary) can be trained", ("a", "b"), [(1, 2)])
    assert "late_return (binary) can be trained" in capsys.readouterr().out
