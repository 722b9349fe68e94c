import pytest

from ops.schedules import RiseAndFall, WarmupThenDecay, WarmupThenSteps


def test_paper_schedule_at_its_turning_points():
    schedule = WarmupThenSteps()
    table = {0: 0, 2_500: 0.5, 5_000: 1, 299_999: 1, 300_001: 0.1, 399_999: 0.1, 400_001: 0.01, 499_999: 0.01}
    for step, factor in table.items():
        assert schedule(step / 500_000) == pytest.approx(factor), step


def test_a_run_a_hundred_times_shorter_has_the_same_schedule():
    schedule = WarmupThenSteps()
    for step in range(0, 500_000, 12_500):
        assert schedule(step / 500_000) == schedule((step // 100) / 5_000)


def test_decay_reaches_its_final_value_at_the_end():
    schedule = WarmupThenDecay(warmup=0.1, final=0.01)
    assert schedule(0.05) == pytest.approx(0.5)
    assert schedule(0.1) == pytest.approx(1)
    assert schedule(0.55) == pytest.approx(0.1)
    assert schedule(1.0) == pytest.approx(0.01)


def test_rise_and_fall_is_linear_between_its_corners():
    schedule = RiseAndFall(start=0.1, full=0.3, fall=0.5, end=0.9, final=0.2)
    table = {0: 0, 0.1: 0, 0.2: 0.5, 0.3: 1, 0.4: 1, 0.5: 1, 0.7: 0.6, 0.9: 0.2, 1: 0.2}
    for progress, factor in table.items():
        assert schedule(progress) == pytest.approx(factor), progress


def test_rise_and_fall_is_one_throughout_unless_told_otherwise():
    assert [RiseAndFall()(progress) for progress in (0, 0.5, 1)] == [1, 1, 1]
    steps = RiseAndFall(start=0.2, full=0.2, fall=0.6, end=0.6)
    assert [steps(progress) for progress in (0.19, 0.2, 0.6, 0.61)] == [0, 1, 1, 0]


@pytest.mark.parametrize(
    "corners", [{"start": 0.5, "full": 0.4}, {"fall": 0.8, "end": 0.7}, {"start": -0.1}, {"end": 2}]
)
def test_corners_out_of_order_are_refused(corners):
    with pytest.raises(ValueError, match=r"RiseAndFall: start, full, fall and end are .* in this order"):
        RiseAndFall(**corners)
