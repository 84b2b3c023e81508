import numpy as np
import pytest
import torch

from compress.edits.rounding import in_memory_order, rounded, rounded_by_channel

GRIDS = [(0.037, 0, 0, 255), (0.037, 101, 0, 255), (0.0125, 255, 0, 255), (0.02, 0, -128, 127), (1e-12, 0, 0, 255)]


def images(seed: int = 0) -> torch.Tensor:
    drawn = torch.randn(4, 8, 6, 6, generator=torch.Generator().manual_seed(seed)) * 3
    return drawn.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("scale", "zero_point", "smallest", "largest"), GRIDS)
def test_values_and_gradients_are_those_of_pytorchs_kernel_to_the_bit(scale, zero_point, smallest, largest):
    grid = torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32), smallest, largest
    ours, theirs, gradient = images().requires_grad_(), images().requires_grad_(), images(1)
    found, expected = rounded(ours, *grid), torch.fake_quantize_per_tensor_affine(theirs, *grid)
    assert torch.equal(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last)
    found.backward(gradient)
    expected.backward(gradient)
    steps = ours.detach().numpy().astype(np.float64) / np.float32(scale)
    off_the_edge = np.abs(np.abs(steps - np.floor(steps)) - 0.5) > 1e-4
    np.testing.assert_array_equal(ours.grad.numpy()[off_the_edge], theirs.grad.numpy()[off_the_edge])


@pytest.mark.parametrize("largest", [127, 63, 7])
@pytest.mark.parametrize("clip", [1.0, 0.6])
def test_weights_are_rounded_as_by_pytorchs_kernel_to_the_bit(largest, clip):
    ours, theirs, gradient = images().requires_grad_(), images().requires_grad_(), images(1)
    scale = clip * ours.detach().abs().amax((1, 2, 3)) / largest
    zero = torch.zeros(4, dtype=torch.int32)
    found = rounded_by_channel(ours, scale, largest)
    expected = torch.fake_quantize_per_channel_affine(theirs, scale, zero, 0, -largest, largest)
    assert torch.equal(found, expected)
    found.backward(gradient)
    expected.backward(gradient)
    assert torch.equal(ours.grad, theirs.grad)
    assert (ours.grad == 0).any() == (clip < 1)


def test_the_scale_may_change_in_place_before_the_gradient_comes():
    x, scale = images().requires_grad_(), torch.tensor(0.02)
    result = rounded(x, scale, torch.tensor(0, dtype=torch.int32), -128, 127)
    scale.fill_(7.0)
    result.sum().backward()
    values = x.detach()
    assert torch.equal(x.grad == 1, (values > -128.5 * 0.02) & (values < 127.5 * 0.02))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_memory_order_is_a_view_of_all_numbers(layout):
    x = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5).contiguous(memory_format=layout)
    row = in_memory_order(x)
    assert row.data_ptr() == x.data_ptr()
    assert row.sort().values.tolist() == list(range(120))
    assert in_memory_order(x[:, :, ::2]).sort().values.tolist() == sorted(x[:, :, ::2].flatten().tolist())
