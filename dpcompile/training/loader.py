"""A data loader whose batches are drawn as the accountant assumes, in the loop that the user has.

for x, y in loader:            # one epoch: len(loader) logical steps, each in one or more physical batches
    criterion(module(x), y).backward()
    optimizer.step()           # waits for the last physical batch of a step
    optimizer.zero_grad()
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from dpcompile import torch_private
from dpcompile.ir.errors import InvalidInput
from dpcompile.training.release import whole
from dpcompile.training.sampling import Draws, PhysicalBatches
from dpcompile.training.session import Physical, Session

KEPT = ("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context", "prefetch_factor",
        "persistent_workers", "pin_memory_device")  # fmt: skip
"""What the user's loader says about how rows become batches, which stays as it is."""


class PrivateLoader(DataLoader[Any]):
    """Physical batches of Poisson-sampled (or shuffled) steps. `len()` is the number of logical steps of an epoch.

    expected_batch_size: the public divisor. physical_batch_size: the most rows of one batch. pad: rows fill every physical
    batch up to exactly that size (they contribute nothing), for graphs of fixed shape.
    """

    def __init__(self, like: DataLoader[Any], session: Session, draws: Draws,
                 physical_batch_size: int | None, pad: bool) -> None:  # fmt: skip
        self.session, self.draws, self.expected_batch_size = session, draws, draws.expected
        self.physical = PhysicalBatches(draws, physical_batch_size, pad)
        self.resumed, self.epoch_begin = 0, session.completed
        self.guard: Callable[[], None] | None = None
        """Called before every batch; raises where a batch would not be trained on privately."""
        kept = {name: getattr(like, name) for name in KEPT if hasattr(like, name)}
        own = torch.Generator().manual_seed(int(draws.generator(2, 0).integers(2**63)))
        super().__init__(like.dataset, batch_sampler=self.physical, generator=own, **kept)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a generator, not torch's own iterator class
        """One epoch; what is left of it where training was resumed in its middle."""
        self.check_guarded()
        place, self.resumed = self.resumed, 0
        begin = self.session.completed
        self.epoch_begin = begin - place
        self.physical.start, self.physical.stop = begin, self.epoch_begin + len(self.draws)
        self.session.clear()
        self.session.is_skipped = False
        queue = self.physical.queue = deque()
        for batch in super().__iter__():
            if queue is not self.physical.queue:
                raise InvalidInput("another iteration over the private loader has begun; go on with that one only")
            self.check_guarded()
            physical = queue.popleft()
            self.session.begin(physical)
            yield filled_up(batch, physical)

    def check_guarded(self) -> None:
        """Refuse to hand out a batch where the guard says so."""
        if self.guard is not None:
            self.guard()

    @property
    def counted(self) -> int:
        """Examples of the present physical batch that were drawn; the rows behind them only fill it up."""
        return self.session.current.counted if self.session.current is not None else 0

    @property
    def place(self) -> int:
        """Steps of the present epoch that were taken; 0 behind its last one."""
        return (self.session.completed - self.epoch_begin) % len(self.draws)

    def __len__(self) -> int:
        return len(self.draws)


def filled_up(batch: Any, physical: Physical) -> Any:
    """The collated batch with copies of its first row behind the drawn ones, up to the physical size."""
    rows = max(1, physical.counted)
    missing = physical.size - rows

    def fill(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.dim() == 0 or len(leaf) != rows:
            return leaf
        return torch.cat([leaf, leaf[:1].expand(missing, *leaf.shape[1:])])

    if not missing:
        return batch
    leaves, structure = torch_private.flatten(batch)
    return torch_private.unflatten([fill(leaf) for leaf in leaves], structure)


def check_loader(loader: Any, poisson_sampling: bool) -> None:
    """Refuse what cannot be drawn from by index, or whose order has a meaning that sampling would change."""
    if not isinstance(loader, DataLoader):
        raise InvalidInput(f"data_loader must be a torch.utils.data.DataLoader, got {type(loader).__name__}")
    if isinstance(loader, PrivateLoader):
        raise InvalidInput("data_loader is private already; give the loader that you made yourself")
    if isinstance(loader.dataset, IterableDataset) or not hasattr(loader.dataset, "__len__"):
        raise InvalidInput(
            "data_loader has an iterable dataset, whose examples cannot be drawn independently; use a map-style dataset with"
            " __len__ and __getitem__"
        )
    sampler = loader.sampler
    known = (torch.utils.data.SequentialSampler, torch.utils.data.RandomSampler)
    if not isinstance(sampler, known) or getattr(sampler, "replacement", False):
        raise InvalidInput(
            f"data_loader draws with {type(sampler).__name__}, which private sampling would replace: weights and repetitions "
            "change what is accounted. Leave sampler= and batch_sampler= out, and make the dataset what you want to draw "
            "from"
        )
    if not poisson_sampling and len(loader.dataset) == 0:
        raise InvalidInput("data_loader's dataset is empty")


@contextlib.contextmanager
def BatchMemoryManager(  # Opacus' name
    *, data_loader: PrivateLoader, max_physical_batch_size: int, optimizer: Any = None
) -> Iterator[PrivateLoader]:
    """Opacus' way to say physical_batch_size: at most that many examples at a time until the block ends."""
    before = data_loader.physical.limit
    data_loader.physical.limit = whole(max_physical_batch_size, "max_physical_batch_size")
    try:
        yield data_loader
    finally:
        data_loader.physical.limit = before
