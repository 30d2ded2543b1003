"""Where things start: apart from one another and out of the way."""

import numpy as np
import pytest

from worldmodel.envs.layout import Layout, draw_distractors, draw_layout


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_object_and_zone_are_apart_and_vary() -> None:
    layouts = [draw_layout(rng(seed)) for seed in range(200)]
    assert min(np.linalg.norm(layout.object - layout.zone) for layout in layouts) > 0.12
    assert np.std([layout.object for layout in layouts], axis=0) == pytest.approx(
        [0.14 / 12**0.5, 0.26 / 12**0.5],
        rel=0.3,  # nearly uniform; 200 draws, 6 standard errors
    )


@pytest.mark.parametrize(("count", "pool"), [(0, "train"), (2, "train"), (8, "novel")])
def test_distractors_stand_apart_and_off_the_way(count: int, pool: str) -> None:
    for seed in range(40):
        layout = draw_layout(rng(seed))
        places = [d.position for d in draw_distractors(count, pool, layout, rng(seed + 1))]
        assert len(places) == count
        for t in np.linspace(0, 1, 21):
            way = layout.object + t * (layout.zone - layout.object)
            assert all(np.linalg.norm(place - way) > 0.079 for place in places)
        for i, place in enumerate(places):
            assert all(np.linalg.norm(place - other) > 0.075 for other in places[:i])


def test_training_pool_is_blue_and_yellow() -> None:
    layout = Layout(np.array([0.3, 0.1]), 0.0, np.array([0.3, -0.1]), np.zeros(3))
    drawn = [d for seed in range(30) for d in draw_distractors(2, "train", layout, rng(seed))]
    assert {d.rgb for d in drawn} == {(0.2, 0.3, 0.8), (0.9, 0.8, 0.2)}
    assert {d.index for d in drawn} == {0, 1, 2}
