import pytest

from ops.schedules import WarmupThenDecay, WarmupThenSteps


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
