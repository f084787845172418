"""Two scripts as Opacus' users write them run with another import, and without the module fixer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset
from training_case import data

from dpcompile import InvalidInput
from dpcompile.training import BatchMemoryManager, PrivacyEngine


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(5, 16)
        self.norm = nn.LayerNorm(16)
        self.fc2 = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.norm(self.fc1(x)).relu())


def test_a_loop_with_a_noise_multiplier() -> None:
    torch.manual_seed(0)
    train_loader = DataLoader(TensorDataset(*data(torch.float32)), batch_size=20, shuffle=True)
    model = Net()
    optimizer: Any = optim.SGD(model.parameters(), lr=2.0)
    criterion = nn.CrossEntropyLoss()
    privacy_engine = PrivacyEngine(secure_mode=False)
    model, optimizer, train_loader = privacy_engine.make_private(
        module=model, optimizer=optimizer, data_loader=train_loader, noise_multiplier=0.6, max_grad_norm=1.0
    )
    for _ in range(10):
        model.train()
        losses = []
        for _batch_idx, (inputs, target) in enumerate(train_loader):
            optimizer.zero_grad()
            output = model(inputs)
            loss = criterion(output, target)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    model.eval()
    inputs, targets = data(torch.float32)
    with torch.no_grad():
        accuracy = (model(inputs).argmax(1) == targets).float().mean()
    assert accuracy > 0.6
    assert 0 < privacy_engine.get_epsilon(delta=1e-2) < 50


def test_a_loop_with_a_target_epsilon_small_batches_a_scheduler_and_a_checkpoint(tmp_path: Path) -> None:
    train_loader = DataLoader(TensorDataset(*data(torch.float32)), batch_size=30)
    model = Net()
    optimizer: Any = optim.Adam(model.parameters(), lr=0.05)
    scheduler = optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.9)
    criterion = nn.CrossEntropyLoss()
    privacy_engine = PrivacyEngine(accountant="rdp")
    model, optimizer, train_loader = privacy_engine.make_private_with_epsilon(
        module=model,
        optimizer=optimizer,
        data_loader=train_loader,
        target_epsilon=5.0,
        target_delta=1e-2,
        epochs=3,
        max_grad_norm=1.2,
    )
    for epoch in range(3):
        with BatchMemoryManager(
            data_loader=train_loader, max_physical_batch_size=8, optimizer=optimizer
        ) as memory_safe_data_loader:
            for inputs, target in memory_safe_data_loader:
                optimizer.zero_grad()
                assert len(inputs) <= 8
                loss = criterion(model(inputs), target)
                loss.backward()
                optimizer.step()
        scheduler.step()
        privacy_engine.save_checkpoint(path=tmp_path / "run", module=model, optimizer=optimizer, checkpoint_dict={"epoch": epoch})
    assert 4.5 < privacy_engine.get_epsilon(delta=1e-2) <= 5.0
    assert privacy_engine.load_checkpoint(path=tmp_path / "run", module=model, optimizer=optimizer) == {"epoch": 2}


def test_checkpoints_are_of_what_make_private_returned(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="make_private comes first"):
        PrivacyEngine().save_checkpoint(path=tmp_path / "run")
