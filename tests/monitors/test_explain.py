"""Explanations: the order of causes, and evidence sentences."""

import numpy as np
import pytest

from worldmodel.monitors.alarm_rule import AlarmRule, MonitorConfig
from worldmodel.monitors.causes.classifier import CauseModel
from worldmodel.monitors.causes.explain import SURE, TOGETHER, Attribution
from worldmodel.monitors.channels.signals import EpisodeSignals
from worldmodel.monitors.verdict import Evidence

FRAME = np.zeros((6, 6, 3), np.uint8)
CONFIG = MonitorConfig(alpha_notice=0.2, alpha_degrade=0.1, alpha_stop=0.1, calm_steps=2)
CALM, ODD = -100.0, 1e4


def episode(rng: np.random.Generator) -> EpisodeSignals:
    """8 frames with everything that any channel looks at."""
    return EpisodeSignals(
        pooled=rng.normal(size=(8, 4)),
        positions=rng.normal(size=(8, 3, 3, 2)),
        frames=rng.integers(90, 110, (8, 6, 6, 3), dtype=np.uint8),
        confidence=rng.uniform(0.6, 0.9, (8, 3, 3)),
        horizon=np.arange(8) % 4,
        error_ratio=rng.uniform(0.5, 1.5, (8, 3, 3)),
        actions=rng.uniform(-1, 1, (8, 2, 7)),
    )


@pytest.fixture(scope="module")
def alarm_rule() -> AlarmRule:
    rng = np.random.default_rng(0)
    calibration = [episode(rng) for _ in range(12)]
    return AlarmRule(CONFIG).fit(calibration, reference=[episode(rng) for _ in range(10)])


def one_frame(*, action: float = 0.0, odd_place: bool = False) -> EpisodeSignals:
    positions = np.zeros((1, 3, 3, 2))
    positions[0, 2, 0] = 50.0 if odd_place else 0.0
    return EpisodeSignals(
        pooled=np.zeros((1, 4)),
        positions=positions,
        frames=FRAME[None],
        actions=np.full((1, 2, 7), action),
    )


def explain(
    attribution: Attribution, *odd: str, signals: EpisodeSignals | None = None
) -> tuple[tuple[str, ...], dict[str, Evidence]]:
    names = attribution.alarm_rule.scales_
    scores = {name: np.array([ODD if name in odd else CALM]) for name in names}
    return attribution.explain(FRAME, signals or one_frame(), scores)


@pytest.fixture
def attribution(alarm_rule: AlarmRule) -> Attribution:
    return Attribution(alarm_rule, None, ["wrist"])


@pytest.mark.parametrize(
    ("odd", "causes"),
    [
        ((), ()),
        (("region",), ("appearance",)),
        (("surprise",), ("action_ignored",)),
        (("confidence",), ("low_confidence",)),
        (("action", "surprise"), ("action_unfamiliar", "action_ignored")),
        (
            ("colour", "appearance", "surprise", "confidence"),
            ("appearance", "model_disagreement", "low_confidence"),
        ),
    ],
)
def test_explaining_cause_leads(
    attribution: Attribution, odd: tuple[str, ...], causes: tuple[str, ...]
) -> None:
    assert explain(attribution, *odd)[0] == causes


def test_a_late_symptom_does_not_take_the_lead(attribution: Attribution) -> None:
    for _ in range(TOGETHER + 1):
        assert explain(attribution, "surprise")[0] == ("action_ignored",)
    assert explain(attribution, "surprise", "region")[0] == ("action_ignored", "appearance")


class Says(CauseModel):
    """A cause model of one opinion."""

    def __init__(self, name: str, chance: float) -> None:
        super().__init__()
        self.opinion = name, chance

    def observe(self, frame: np.ndarray) -> None:
        """Nothing could change it."""

    def reset(self) -> None:
        """There is nothing to forget."""

    def name(self) -> tuple[str, float]:
        return self.opinion

    def where(self) -> None:
        """It does not say."""


@pytest.mark.parametrize(
    ("opinion", "chance", "causes"),
    [
        ("camera", SURE + 0.01, ("camera", "model_disagreement")),
        ("camera", SURE - 0.01, ("action_ignored",)),
        ("clutter", SURE + 0.01, ("action_ignored",)),
        ("unknown", SURE + 0.01, ("action_ignored",)),
    ],
)
def test_moved_camera_is_named_when_only_predictions_fail(
    attribution: Attribution, opinion: str, chance: float, causes: tuple[str, ...]
) -> None:
    attribution.causes = Says(opinion, chance)
    named, evidence = explain(attribution, "surprise")
    assert named == causes
    assert ("cause" in evidence) == ("camera" in causes)  # nothing is told of what is not named


def test_an_early_look_leads(attribution: Attribution) -> None:
    explain(attribution, "surprise")
    assert explain(attribution, "surprise", "region")[0] == ("appearance", "model_disagreement")


def test_alarm_ends_after_calm_steps(attribution: Attribution) -> None:
    for _ in range(TOGETHER + 1):
        explain(attribution, "surprise")
    for _ in range(CONFIG.calm_steps + 1):
        assert explain(attribution)[0] == ()
    assert explain(attribution, "surprise", "region")[0] == ("appearance", "model_disagreement")


def test_action_out_of_range_is_named_with_its_axes(attribution: Attribution) -> None:
    causes, evidence = explain(attribution, "action", signals=one_frame(action=1.5))
    assert causes == ("action_out_of_range",)
    assert "on x, y, z, roll, pitch, yaw, gripper" in evidence["action"].note


def test_evidence_states_region_score_and_threshold(attribution: Attribution) -> None:
    _, evidence = explain(attribution, "region", signals=one_frame(odd_place=True))
    note = evidence["region"].note
    assert note.startswith(
        "lower left third of wrist differs from the 10 reference episodes; score"
    )
    assert f"threshold {attribution.alarm_rule.threshold('region'):.3g}." in note
    assert set(evidence) == {"region"}


def test_every_signal_has_its_sentence(attribution: Attribution) -> None:
    _, evidence = explain(attribution, *attribution.alarm_rule.scales_)
    assert set(evidence) == set(attribution.alarm_rule.scales_)
    assert all("; score 1e+04, threshold" in found.note for found in evidence.values())
