"""What is trained on is no public batch: where that can be seen it is refused, and nothing stays pruned by it."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from dpcompile import GradientDropping, InvalidInput, PrePruning, StrategyError, dpcompile
from dpcompile.training import PrivacyEngine

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(300, 5, generator=GENERATOR)
Y = X[:, :3].argmax(1)
OTHER = torch.randn(6, 5, generator=GENERATOR)


def losses(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross entropy per example."""
    return nn.functional.cross_entropy(model(x), y, reduction="none")


def network() -> nn.Module:
    """Two layers."""
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def snip(*public: Tensor, model: nn.Module | None = None, **options: Any) -> Any:
    """Compiled and pruned by a batch."""
    return dpcompile(model or network(), loss=losses, passes=[PrePruning(0.5, "snip", public_batch=public)], **options)


def trained(private: Any, dataset: Dataset[Any]) -> None:
    """Begin a training."""
    optimizer = torch.optim.SGD(private.model.parameters(), lr=0.1)
    PrivacyEngine().make_private(
        module=private, optimizer=optimizer, data_loader=DataLoader(dataset, batch_size=12), noise_multiplier=1.0
    )


class Items(Dataset[Any]):
    """Examples by a function."""

    def __init__(self, count: int, item: Callable[[int], Any]) -> None:
        self.count, self.item = count, item

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.item(index)


@dataclass
class Item:
    """One example."""

    x: Tensor
    y: int


DATASETS: dict[str, Callable[[], Dataset[Any]]] = {
    "tensors": lambda: TensorDataset(X, Y),
    "a part of a part of tensors": lambda: Subset(Subset(TensorDataset(X, Y), range(200)), range(100)),
    "a part of items": lambda: Subset(Items(300, lambda i: (X[i], Y[i])), list(range(50))),
    "lists of numbers": lambda: Items(100, lambda i: {"x": X[i].tolist(), "y": int(Y[i])}),
    "arrays": lambda: Items(100, lambda i: (X[i].numpy(), int(Y[i]))),
    "tuples of numbers": lambda: Items(100, lambda i: (tuple(X[i].tolist()), int(Y[i]))),
    "objects with fields": lambda: Items(100, lambda i: Item(X[i], int(Y[i]))),
    "another shape": lambda: TensorDataset(X.view(-1, 1, 5), Y),
    "another type": lambda: TensorDataset(X.double(), Y),
}


@pytest.mark.parametrize("name", DATASETS)
def test_examples_of_the_dataset_are_not_public(name: str) -> None:
    with pytest.raises(InvalidInput, match="it is not public"):
        trained(snip(X[3:7].clone(), Y[3:7].clone()), DATASETS[name]())
    trained(snip(OTHER, OTHER[:, :3].argmax(1)), DATASETS[name]())


def test_the_example_axis_of_the_public_batch_is_that_of_the_module() -> None:
    private = dpcompile(network(), loss=lambda m, x, y: losses(m, x.T, y), batch_dim=(1, 0),
                        passes=[PrePruning(0.5, "snip", public_batch=(X[:4].T.contiguous(), Y[:4].clone()))])  # fmt: skip
    with pytest.raises(InvalidInput, match="it is not public"):
        trained(private, TensorDataset(X, Y))


def test_labels_and_masks_that_coincide_are_no_examples() -> None:
    def one_hot(x: Tensor) -> Tensor:
        return nn.functional.one_hot(x[:, :3].argmax(1), 3).float()

    def by_shares(model: nn.Module, x: Tensor, t: Tensor) -> Tensor:
        return -(model(x).log_softmax(1) * t).sum(1)

    private = dpcompile(network(), loss=by_shares, passes=[PrePruning(0.5, "snip", public_batch=(OTHER, one_hot(OTHER)))])
    trained(private, TensorDataset(X, one_hot(X)))
    assert bool(private(X, one_hot(X)).norms.isfinite().all())


def test_what_cannot_be_looked_into_is_no_public_batch() -> None:
    for hidden in (UserDict({"x": X[:4]}), X[:4].numpy()):
        with pytest.raises(InvalidInput, match="cannot look into"):
            dpcompile(network(), loss=losses, passes=[PrePruning(0.5, "snip", public_batch=(hidden, Y[:4]))])


def given_to_both_passes() -> None:
    """One batch, twice."""
    public = (X[:8].clone(), Y[:8].clone())
    passes = [PrePruning(0.3, "snip", public_batch=public), GradientDropping(0.5, "public gradient", public_batch=public)]
    trained(dpcompile(network(), loss=losses, passes=passes), TensorDataset(X, Y))


def every_example_twice() -> None:
    """As oversampling leaves them."""
    trained(snip(torch.cat([X, X]), torch.cat([Y, Y])), TensorDataset(X, Y))


def one_example_twice_among_others() -> None:
    """One that is trained on."""
    trained(snip(torch.cat([OTHER, X[:1], X[:1]]), torch.zeros(8, dtype=torch.int64)), TensorDataset(X, Y))


def its_own_target() -> None:
    """Two arguments with the same numbers, as an autoencoder has."""
    wide = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 5))
    passes = [PrePruning(0.5, "snip", public_batch=(X[:8].clone(), X[:8].clone()))]
    private = dpcompile(wide, loss=nn.MSELoss(), passes=passes)
    private(X.clone(), X.clone())


@pytest.mark.parametrize("run", [given_to_both_passes, every_example_twice, one_example_twice_among_others, its_own_target])
def test_an_example_that_comes_twice_is_found(run: Callable[[], None]) -> None:
    with pytest.raises(InvalidInput, match="it is not public"):
        run()


def steps_of_a_plain_loop() -> None:
    """Batches that a loader of the user's own has copied."""
    private = snip(X[100:103], Y[100:103])
    for x, y in DataLoader(TensorDataset(X, Y), batch_size=50):
        private(x, y)


def views_of_one_array() -> None:
    """Two tensors that begin at different addresses of an array."""
    array = X[:20].numpy().copy()
    snip(torch.from_numpy(array[4:8]), Y[4:8].clone())(torch.from_numpy(array), Y[:20].clone())


def a_drop_in() -> None:
    """The loss outside of the module."""
    module = snip(X[:8], Y[:8]).as_module()
    nn.functional.cross_entropy(module(X[:8]), Y[:8]).backward()


@pytest.mark.parametrize("run", [steps_of_a_plain_loop, views_of_one_array, a_drop_in])
def test_steps_on_public_examples_are_refused(run: Callable[[], None]) -> None:
    with pytest.raises(InvalidInput, match="it is not public"):
        run()


def by_the_dataset(model: nn.Module) -> None:
    """Refused by make_private."""
    trained(snip(X[:20].clone(), Y[:20].clone(), model=model), TensorDataset(X, Y))


def by_a_step(model: nn.Module) -> None:
    """Refused by the first step."""
    snip(X[:20], Y[:20], model=model)(X, Y)


def by_another_argument(model: nn.Module) -> None:
    """Refused for something else."""
    snip(OTHER, OTHER[:, :3].argmax(1), model=model, backend="typo")


@pytest.mark.parametrize("run", [by_the_dataset, by_a_step, by_another_argument])
def test_what_is_refused_leaves_the_weights_alone(run: Callable[[nn.Module], None]) -> None:
    model = network()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises((InvalidInput, StrategyError)):
        run(model)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_a_module_that_was_refused_stays_refused() -> None:
    private = snip(X[:20], Y[:20])
    with pytest.raises(InvalidInput, match="shares memory"):
        private(X, Y)
    with pytest.raises(InvalidInput, match="refused before"):
        private(OTHER, OTHER[:, :3].argmax(1))


def test_tracing_and_verifying_on_public_data_train_nothing() -> None:
    public = (OTHER, OTHER[:, :3].argmax(1))
    private = dpcompile(network(), loss=losses, passes=[PrePruning(0.5, "snip", public_batch=public)], example_batch=public)
    assert private.verify(*public).ok
    private(X, Y)


def test_what_every_example_has_is_no_example() -> None:
    alike = torch.rand(5).expand(6, 5)
    positions = (torch.arange(5) - torch.arange(6)[:, None]).clamp(min=0)  # behind padding of another length in every example

    def both(model: nn.Module, x: Tensor, p: Tensor, y: Tensor) -> Tensor:
        return losses(model, x + p, y)

    for shared in (alike, positions):
        public = (OTHER, shared, OTHER[:, :3].argmax(1))
        private = dpcompile(network(), loss=both, passes=[PrePruning(0.5, "snip", public_batch=public)])
        private(X[:6], shared.clone(), Y[:6])


def test_pruning_is_undone_in_another_type_and_for_loaded_weights() -> None:
    private = snip(X[:20], Y[:20])
    state = {name: torch.randn_like(tensor) for name, tensor in private.model.state_dict().items()}
    private.load_state_dict(state)
    private.double()
    with pytest.raises(InvalidInput, match="it is not public"):
        private(X.double(), Y)
    with pytest.raises(InvalidInput, match="it is not public"):
        snip(X[:20], Y[:20])(X, Y)


def test_weights_that_were_loaded_into_the_model_stay_loaded() -> None:
    private = snip(X[:20], Y[:20])
    sevens = {name: torch.full_like(tensor, 7.0) for name, tensor in private.model.state_dict().items()}
    private.model.load_state_dict(sevens)
    with pytest.raises(InvalidInput, match="it is not public"):
        private(X, Y)
    assert all(torch.equal(p, sevens[name]) for name, p in private.model.named_parameters())


def test_the_first_step_makes_pruning_final() -> None:
    private = snip(OTHER, OTHER[:, :3].argmax(1))
    private(X, Y)
    before = {name: p.detach().clone() for name, p in private.model.named_parameters()}
    with pytest.raises(InvalidInput, match="it is not public"):
        private(OTHER.clone(), OTHER[:, :3].argmax(1))
    assert all(torch.equal(p, before[name]) for name, p in private.model.named_parameters())
