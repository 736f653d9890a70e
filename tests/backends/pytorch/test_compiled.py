"""What Inductor makes of a model is what was judged, whatever the size of a batch."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch._dynamo.utils import counters  # noqa: E402

from tests.backends.torch_models import backend, batches, calibrated, images, residual  # noqa: E402


class Gray(nn.Module):
    """A convolution over one channel whose output is read in floating point."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc(torch.sigmoid(self.conv(image)).mean(dim=(2, 3)))
        return out


def test_an_integer_convolution_of_one_channel_runs_in_batches_of_any_size() -> None:
    torch.manual_seed(0)
    image = np.random.default_rng(0).random((8, 1, 12, 12)).astype(np.float32)
    made = backend(Gray(), image)
    try:
        config = calibrated(made, [(0, {"image": image})])
        judged, deployed = made.load(config), made.load_deployed(config)
        for size in (8, 5, 3):
            expected, given = (each.predict({"image": image[:size]})[0] for each in (judged, deployed))
            np.testing.assert_allclose(given, expected, atol=1e-2)
        assert deployed.ops_executed_int8 == 2
    finally:
        made.close()


def test_batches_of_several_sizes_are_one_compilation() -> None:
    made = backend(residual(), images(8))
    try:
        config = calibrated(made, batches())
        deployed = made.load_deployed(config)
        deployed.predict({"image": images(8)})
        compiled = counters["stats"]["unique_graphs"]
        for size in (5, 8, 3):
            assert deployed.predict({"image": images(size)})[0].shape == (size, 5)
        assert counters["stats"]["unique_graphs"] == compiled
    finally:
        made.close()
