import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel

from optsd.estimate.trace import TargetKernels, Tracer

KIB = 1024


class Network(nn.Module):
    """Weights of 4 kiB; 64 kiB alive at the second of three activations of 32 kiB, for an input of 32 kiB more."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(32, 32, bias=False)

    def forward(self, x):
        x = self.layer(x)
        return x.relu().view(-1)


def traced(fake=False, granularity=1, device="cpu", module=Network, shape=(256, 32), kernels=False):
    tracer = Tracer(device, granularity, fake)
    with FakeTensorMode() if fake else torch.no_grad(), torch.no_grad(), torch.device(device), tracer:
        network = module()
        tracer.start({"unet": network})
        x = torch.zeros(*shape)
        with tracer.following_modules(), TargetKernels(tracer):
            network(x)
    return tracer


@pytest.mark.parametrize("fake", [False, True])
def test_peak_is_what_is_live_at_one_time(fake):
    tracer = traced(fake)
    peak = tracer.peaks["unet"]
    assert peak.weights == {"unet": 4 * KIB}
    assert [one.size for one in peak.activations] == [32 * KIB] * 3  # the input, the layer's output, and ReLU's
    assert peak.total == 100 * KIB
    assert peak.cause.operation == "aten::relu"
    assert peak.by_kind() == {"weights": 4 * KIB, "scores": 0, "activations": 96 * KIB}
    assert peak.by_module() == {"unet": 32 * KIB, "unet.layer": 32 * KIB, "pipeline": 32 * KIB}


def test_memory_is_given_back():
    tracer = traced()
    assert tracer.live_bytes == 0
    assert tracer.weight_bytes == {"unet": 0}


def test_operations_are_named_by_module_and_views_cost_nothing():
    names = [(one.module, one.name, one.kind, one.step) for one in traced().operations if one.module]
    assert names == [("unet.layer", "aten::mm", "linear", 1), ("unet", "aten::relu", "other", 1)]
    product = next(one for one in traced().operations if one.kind == "linear")
    assert (product.flops, product.weight_bytes) == (2 * 256 * 32 * 32, 4 * KIB)
    assert product.moved_bytes == 68 * KIB


def test_a_gpu_that_is_not_there_rounds_to_its_allocators_blocks():
    tracer = traced(fake=True, granularity=512, device="cuda", shape=(1, 32))
    assert [one.size for one in tracer.peaks["unet"].activations] == [512] * 3


class Attention(nn.Module):
    def forward(self, x):
        return F.scaled_dot_product_attention(x, x, x).transpose(1, 2).reshape(x.shape[0], -1)


def test_fused_attention_has_no_score_matrix_and_its_heads_merge_without_a_copy():
    class Split(Attention):
        def forward(self, x):  # B×N×H×d, seen as B×H×N×d
            return super().forward(x.transpose(1, 2))

    tracer = traced(fake=True, device="cuda", module=Split, shape=(1, 128, 2, 8))
    assert [one.name for one in tracer.operations if one.module] == ["fused_attention"]
    assert tracer.operations[-1].flops == 2 * 2 * 2 * 128 * 128 * 8
    assert max(one.size for one in tracer.peaks["unet"].activations) == 128 * 2 * 8 * 4


def test_the_score_matrix_is_there_when_it_is_asked_for():
    with sdpa_kernel(SDPBackend.MATH):
        tracer = traced(fake=True, device="cuda", module=Attention, shape=(1, 2, 128, 8))
    kinds = tracer.peaks["unet"].by_kind()
    assert kinds["scores"] >= 2 * 128 * 128 * 4


def test_scores_are_told_from_other_activations():
    class Eager(nn.Module):
        def forward(self, x):
            return torch.bmm(torch.bmm(x, x.transpose(1, 2)).softmax(-1), x)

    peak = traced(fake=True, module=Eager, shape=(2, 64, 8)).peaks["unet"]
    assert peak.by_kind()["scores"] == 2 * (2 * 64 * 64 * 4)
    assert peak.cause.operation == "aten::_softmax"


def test_what_is_paused_is_not_followed():
    tracer = Tracer("cpu")
    with tracer:
        tracer.start({})
        with tracer.paused():
            kept = torch.zeros(1000)
        assert tracer.live_bytes == 0
        assert kept.sum() == 0


@pytest.mark.parametrize(
    ("dtype", "order", "copied"),
    [
        (torch.float16, torch.contiguous_format, True),
        (torch.bfloat16, torch.contiguous_format, True),
        (torch.float16, torch.channels_last, False),
        (torch.float32, torch.contiguous_format, False),
    ],
)
def test_cudnn_turns_a_picture_of_half_precision_around(dtype, order, copied):
    tracer = Tracer("cuda", fake=True)
    with FakeTensorMode(), torch.device("cuda"), tracer:
        layer = nn.Conv2d(8, 16, 3, padding=1, bias=False, dtype=dtype)
        x = torch.empty(2, 8, 32, 32, dtype=dtype).to(memory_format=order)
        tracer.start({"unet": layer})
        before = tracer.live_bytes
        out = layer(x)
    peak = tracer.peaks["pipeline"].total - before
    assert peak == out.nbytes + (x.nbytes + out.nbytes) * copied
    assert tracer.live_bytes == before + out.nbytes
