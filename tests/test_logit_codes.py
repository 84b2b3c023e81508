import numpy as np
import pytest
import torch

from compress.training.logit_codes import as_bytes, as_halves, from_bytes, from_halves

CODES = {"halves": (as_halves, from_halves), "bytes": (as_bytes, from_bytes)}


@pytest.fixture(scope="module")
def logits() -> torch.Tensor:
    """20,000 images of 100 classes as a teacher far from sure of itself gives them: many runners-up are close."""
    random = torch.Generator().manual_seed(0)
    return 4 * torch.randn(20_000, 100, generator=random)


def back(logits: torch.Tensor, how: str) -> np.ndarray:
    there, home = CODES[how]
    return home(there(logits)).numpy()


def test_halves_are_numpys_but_for_ties_and_always_within_a_step(logits):
    ours, exact = back(logits, "halves"), logits.numpy()
    plain = exact.astype(np.float16).astype(np.float32)
    assert (ours != plain).mean() < 1e-4
    assert (np.abs(ours.astype(float) - exact) <= 2.0**-10 * np.abs(exact) + 2.0**-24).all()
    assert np.abs(ours - exact)[np.abs(exact) < 16].max() <= 1e-2


def test_bytes_are_the_nearest_of_256_steps_but_for_ties(logits):
    ours, exact = back(logits, "bytes"), logits.numpy().astype(float)
    step = (exact.max(1) - exact.min(1))[:, None] / 255
    off = np.abs(ours - exact) / step
    assert off.max() <= 1.001
    assert (off > 0.501).mean() < 1e-3
    assert as_bytes(logits).shape == (20_000, 108)


@pytest.mark.parametrize("how", CODES)
def test_the_largest_stays_the_largest(how, logits):
    ours = back(logits, how)
    np.testing.assert_array_equal(ours.argmax(1), logits.numpy().argmax(1))
    assert (np.sort(ours, 1)[:, -1] > np.sort(ours, 1)[:, -2]).all()


def test_plain_rounding_would_not_keep_it(logits):
    exact = logits.numpy()
    assert (exact.astype(np.float16).argmax(1) != exact.argmax(1)).any()


@pytest.mark.parametrize("how", CODES)
@pytest.mark.parametrize(
    "row",
    [
        [8.001, 8.002, 0.0],  # both are 8.0 as float16: the other gives way
        [8.0039, 8.0035, -1.0],
        [-8.002, -8.001, -20.0],
        [1e-9, 2e-9, -3e-9],  # both are zero
        [-2e-9, -1e-9, -5.0],  # both are minus zero
        [-0.0, 0.0, -1.0],
        [59_990.0, 59_991.0, -59_991.0],
        [2047.9, 2047.95, 2000.0],  # across a power of two, where steps change
    ],
)
def test_what_lies_close_keeps_its_order_at_the_top(row, how):
    exact = torch.tensor([row])
    ours = back(exact, how)[0]
    assert ours.argmax() == exact.argmax()
    spread = (max(row) - min(row)) / 255 if how == "bytes" else 2.0**-10 * np.abs(row) + 2.0**-24
    assert (np.abs(ours.astype(float) - exact.numpy()[0]) <= spread * 1.001).all()


@pytest.mark.parametrize("how", CODES)
@pytest.mark.parametrize("value", [0.0, 3.25, -7.5])
def test_equal_logits_stay_finite_and_almost_equal(value, how):
    ours = back(torch.full((2, 10), value), how)
    assert np.isfinite(ours).all()
    assert np.abs(ours - value).max() <= 2.0**-9 * abs(value) + 2.0**-24


@pytest.mark.parametrize("how", CODES)
def test_a_device_is_never_asked_for_what_is_on_it(how):
    """Tensors without values have none to wait for: any look at one would raise."""
    there, home = CODES[how]
    assert home(there(torch.empty(5, 10, device="meta"))).shape == (5, 10)
