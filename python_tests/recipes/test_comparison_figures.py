from stratcore.recipes.comparison_figures import curves, differences


def test_captions_say_what_is_shown_in_which_unit_and_how_to_read_it() -> None:
    found = differences(
        [("a - b", {"value": 0.1, "low": 0.0, "high": 0.2})],
        title="Differences",
        what="a less b",
        unit="points",
        seeds=6,
        reading="Right of 0 a is better.",
        margin=0.5,
    )
    assert found.text.startswith(
        "One line a pair: a less b, in points, mean over 6 seeds that both share (dot), with"
    )
    assert "Right of 0 a is better." in found.text
    assert found.figure.axes[0].get_xlabel() == "difference, points"


def test_a_curve_of_one_point_is_seen() -> None:
    found = curves(
        {"a": [[(5, 1.0)], [(5, 3.0)]]},
        title="Loss",
        y_label="loss in nats",
        seeds=2,
        better="fall",
        note="Tuned.",
    )
    assert found.text.startswith(
        "Loss in nats against optimizer steps: each of 2 seeds faint, their mean bold"
    )
    assert "Tuned. Curves that still fall at the right end" in found.text
    mean = found.figure.axes[0].get_lines()[-1]
    assert mean.get_marker() == "o" and mean.get_ydata().tolist() == [2.0]
