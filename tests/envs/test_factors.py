"""The nominal distribution, and shifts that leave it along one factor only."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from worldmodel.envs.factors import FACTORS, Domain, nominal, shifted

FIELDS = {
    "nominal": set(),
    "background": {"table_rgb", "table_rgb2", "table_pattern", "wall_rgb", "wall_pattern"},
    "lighting": {"light_pos", "light_rgb", "ambient"},
    "clutter": {"num_distractors", "distractor_pool"},
    "object": {"object_shape", "object_rgb"},
    "end_effector": {"arm_rgb", "finger_rgb", "tool", "sleeves"},
    "camera": {
        "camera_azimuth_deg",
        "camera_elevation_deg",
        "camera_distance",
        "camera_roll_deg",
    },
}


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def changed(before: Domain, after: Domain) -> set[str]:
    return {name for name, value in asdict(before).items() if asdict(after)[name] != value}


def test_nominal_domains_vary_mildly() -> None:
    domains = [nominal(rng(seed)) for seed in range(200)]
    azimuths = [domain.camera_azimuth_deg for domain in domains]
    assert max(map(abs, azimuths)) <= 2
    assert max(azimuths) - min(azimuths) > 3
    assert {domain.num_distractors for domain in domains} == {0, 1, 2}
    tones = np.array([domain.table_rgb for domain in domains]) / Domain().table_rgb
    assert 0.89 < tones.min() < 0.95 < 1.05 < tones.max() < 1.12
    assert len({domain.light_pos for domain in domains}) == 200


@pytest.mark.parametrize("severity", [1, 2, 3])
@pytest.mark.parametrize("factor", FACTORS)
def test_a_shift_changes_its_own_factor_only(factor: str, severity: int) -> None:
    pairs = [(nominal(rng(i)), shifted(factor, severity, rng(i))) for i in range(30)]
    assert all(changed(*pair) <= FIELDS[factor] for pair in pairs)
    assert all(bool(changed(*pair)) == (factor != "nominal") for pair in pairs)


@pytest.mark.parametrize("severity", [1, 2, 3])
def test_every_severity_lies_outside_the_nominal_range(severity: int) -> None:
    def draws(factor: str) -> list[Domain]:
        return [shifted(factor, severity, rng(seed)) for seed in range(100)]

    assert min(abs(domain.camera_azimuth_deg) for domain in draws("camera")) > 2
    assert min(domain.num_distractors for domain in draws("clutter")) > 2
    tone = np.array([np.mean(domain.table_rgb) for domain in draws("background")])
    nominal_tone = np.mean(Domain().table_rgb)
    patterns = np.array([domain.table_pattern for domain in draws("background")])
    assert ((abs(tone / nominal_tone - 1) > 0.11) | (patterns != "stripe") | (severity > 1)).all()
    light = np.array([np.mean(domain.light_rgb) for domain in draws("lighting")])
    assert (abs(light / np.mean(Domain().light_rgb) - 1) > 0.1).all()


def test_camera_shifts_grow_with_severity() -> None:
    largest = [
        max(abs(shifted("camera", severity, rng(seed)).camera_azimuth_deg) for seed in range(50))
        for severity in (1, 2, 3)
    ]
    assert largest[0] < 11 < largest[1] < 23 < largest[2]


def test_severity_zero_is_nominal() -> None:
    assert shifted("camera", 0, rng(3)) == nominal(rng(3))


def test_unknown_names_say_what_exists() -> None:
    with pytest.raises(ValueError, match=r"Unknown factor 'camara'; known: nominal, .*'camera'\?"):
        shifted("camara", 1, rng(0))
    with pytest.raises(ValueError, match=r"`severity` must be 0, 1, 2 or 3, got 4\."):
        shifted("camera", 4, rng(0))
    with pytest.raises(ValueError, match=r"Unknown pattern 'plaid'; known: flat, stripe"):
        replace(Domain(), table_pattern="plaid")
