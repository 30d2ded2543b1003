import pytest
import torch

from worldmodel.networks.success import ActionSuccessClassifier, SuccessClassifier


def draw(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_success_classifier_scores_each_frame_alone() -> None:
    torch.manual_seed(0)
    classifier = SuccessClassifier(channels=2, views=2, width=4).eval()
    latents = draw((2, 5, 2, 2, 4, 4))
    logits = classifier(latents)
    edited = latents.clone()
    edited[0, 3, 1] += 1  # the second view of one frame
    changed = classifier(edited) != logits
    assert changed.nonzero().tolist() == [[0, 3]]
    torch.testing.assert_close(classifier(latents[1:, 2:3]), logits[1:, 2:3])


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (24, 40)])
@torch.no_grad()
def test_success_classifier_takes_latents_of_any_size(size: tuple[int, int]) -> None:
    """Up to the last corner, in the middle one of three frames."""
    torch.manual_seed(0)
    classifier = SuccessClassifier(channels=2, views=1, width=4).eval()
    latents = draw((1, 3, 1, 2, *size))
    edited = latents.clone()
    edited[0, 1, 0, :, -1, -1] += 10
    assert (classifier(edited) - classifier(latents)).abs().gt(1e-5).tolist() == [
        [False, True, False]
    ]


@torch.no_grad()
def test_action_classifier_reads_the_actions_and_their_cumulative_sum() -> None:
    torch.manual_seed(0)
    classifier = ActionSuccessClassifier(action_dim=7, width=4).eval()
    actions = draw((3, 20, 7))
    logits = classifier(actions)
    torch.testing.assert_close(classifier(actions[1:2]), logits[1:2])
    place = torch.stack([actions[:, : t + 1].sum(1) for t in range(20)], 1)
    read = torch.cat((actions, place), -1).transpose(1, 2)
    torch.testing.assert_close(classifier.net(read)[:, 0], logits)


@pytest.mark.parametrize("kind", ["latent", "action"])
def test_a_success_classifier_learns_from_labels(kind: str) -> None:
    """200 episodes, seed 0; successful ones are shifted by one standard deviation."""
    torch.manual_seed(0)
    success = torch.arange(200) % 2
    shift = success.float()[:, None, None]
    if kind == "latent":
        classifier: torch.nn.Module = SuccessClassifier(channels=1, views=1, width=8)
        inputs = draw((200, 1, 1, 1, 4, 4)) + shift[..., None, None, None]
    else:
        classifier = ActionSuccessClassifier(action_dim=2, width=8)
        inputs = draw((200, 10, 2)) + shift
    optimizer = torch.optim.Adam(classifier.parameters(), lr=0.01)
    for _ in range(30):
        optimizer.zero_grad()
        logits = classifier(inputs).flatten()
        torch.nn.functional.binary_cross_entropy_with_logits(logits, success.float()).backward()
        optimizer.step()
    with torch.no_grad():
        right = (classifier.eval()(inputs).flatten() > 0) == success.bool()
    assert right.float().mean() > 0.95


def test_every_task_has_its_own_classifier() -> None:
    torch.manual_seed(0)
    judge = SuccessClassifier(2, 1, tasks=2).eval()
    latents = torch.randn(2, 1, 1, 2, 4, 4)
    logits = torch.stack([judge(latents, torch.full((2,), task)) for task in (0, 1)])
    assert not torch.allclose(logits[0], logits[1])
    mixed = judge(latents, torch.tensor([1, 0]))
    assert torch.equal(mixed[:, 0], torch.stack((logits[1, 0, 0], logits[0, 1, 0])))
