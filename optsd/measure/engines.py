"""Other programs' engines as subjects: this run's model, drawn by them, beside our variants.

    optsd bench --model sd15-random --size 256 --steps 4 --variant int8+flash \\
        --subject openvino=optsd.measure.engines:OpenVINO --subject openvino-int8=optsd.measure.engines:OpenVINOInt8

The pipeline stays diffusers' own, with its tokenizer, scheduler and guidance; its networks are the engine's. A class
gets the workload, whose `model` says where the model lies, and gives a `draw` (docs/anybody.md).
"""

import importlib
from collections.abc import Callable, Sequence
from importlib import metadata
from math import prod
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree

from optsd import anatomy, models
from optsd.errors import BadInput
from optsd.measure.run import timing_prompts
from optsd.measure.seeds import noise_seeds
from optsd.optimizations.peers import Int8Torchao
from optsd.records import Workload

CALIBRATION_STEPS = 4
Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments of a network, by position and by name."""


def _needed(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise BadInput(f"{name} is not there ({error})", f"pip install {name}") from error


class Engine:
    """A pipeline that draws; each engine changes its networks. Raises BadInput where its package is missing."""

    packages: tuple[str, ...] = ()

    def __init__(self, workload: Workload) -> None:
        for name in self.packages:
            _needed(name)
        self.pipe: Any = models.load(workload.model, workload.device, workload.dtype, text_to_image=True)
        self.change(workload)

    def change(self, workload: Workload) -> None:
        """Put the engine in the place of the pipeline's networks: each engine's own."""
        raise NotImplementedError

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int], workload: Workload) -> Any:
        return self.pipe(
            list(prompts),
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            num_inference_steps=workload.steps,
            guidance_scale=workload.guidance,
            height=workload.height,
            width=workload.width,
            output_type="np",
        ).images

    def proof(self) -> dict[str, Any]:
        return {name: metadata.version(name) for name in self.packages}


class OpenVINO(Engine):
    """Text encoders, denoiser and the VAE's decoder as OpenVINO graphs of this workload's shapes, on the CPU.

    In bfloat16 where the processor has it, else in float32; on as many threads as torch has.
    """

    packages: tuple[str, ...] = ("openvino",)
    is_quantized = False

    def change(self, workload: Workload) -> None:
        if workload.device != "cpu":
            raise BadInput("OpenVINO draws on the CPU here", "run with --device cpu")
        parts = {**anatomy.text_encoders(self.pipe), "denoiser": anatomy.denoiser(self.pipe)}
        if (vae := anatomy.decoder(self.pipe)) is not None:
            parts["decoder"] = vae.decoder
        calls = self._calls(parts, workload)
        self.weight_bytes, self.told = 0, dict[str, Any]()
        for name, network in parts.items():
            graph = Graph(network, calls[name], self.is_quantized and name == "denoiser")
            network.forward = graph
            for tensor in network.parameters():
                tensor.data = tensor.data.new_empty(0)  # the graph has the weights
            self.weight_bytes += graph.weight_bytes
            self.told[name] = graph.told

    def _calls(self, parts: dict[str, nn.Module], workload: Workload) -> dict[str, list[Call]]:
        """How the pipeline calls each of them while it draws one batch in a few steps."""
        calls: dict[str, list[Call]] = {name: [] for name in parts}
        hooks = [
            network.register_forward_pre_hook(
                lambda module, args, kwargs, name=name: calls[name].append(_pytree.tree_map(_copied, (args, kwargs))),
                with_kwargs=True,
            )
            for name, network in parts.items()
        ]
        steps = min(workload.steps, CALIBRATION_STEPS)
        few = Workload(**{**vars(workload), "steps": steps})
        count = workload.batch_size
        self(timing_prompts(workload.model, count), noise_seeds(workload.seed, 0, count), few)
        for hook in hooks:
            hook.remove()
        return calls

    def proof(self) -> dict[str, Any]:
        return {**super().proof(), **self.told}


class OpenVINOInt8(OpenVINO):
    """The same, the denoiser in INT8 by NNCF's post-training quantization, calibrated on the steps of one batch."""

    packages: tuple[str, ...] = ("openvino", "nncf")
    is_quantized = True


class Graph:
    """A network as a compiled graph, called as the network is: with tensors of these shapes, and else the same values.

    `calls` are examples; with `quantize` all of them set the scales. `weight_bytes` are those of its constants.
    """

    def __init__(self, network: nn.Module, calls: Sequence[Call], quantize: bool) -> None:
        import openvino

        leaves, self._inside = _pytree.tree_flatten(calls[0])
        self._constants = [None if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        self._tensors = [place for place, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
        self._outside: Any = None
        self._shapes = [tuple(leaves[place].shape) for place in self._tensors]
        example = self._arrays(calls[0])

        class Bare(nn.Module):
            """Tensors to tensors, which is what a graph can be."""

            def __init__(own) -> None:
                super().__init__()
                own.network = network

            def forward(own, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
                args, kwargs = self._call(tensors)
                found, self._outside = _pytree.tree_flatten(own.network(*args, **kwargs))
                return tuple(found)

        with torch.no_grad():
            graph = openvino.convert_model(Bare().eval(), example_input=tuple(map(torch.from_numpy, example)))
        if len(graph.inputs) != len(example):
            raise BadInput(f"OpenVINO left {len(example) - len(graph.inputs)} inputs of a network out", "see its notes")
        graph.reshape({port: list(array.shape) for port, array in zip(graph.inputs, example, strict=True)})
        if quantize:
            import nncf

            graph = nncf.quantize(
                graph,
                nncf.Dataset([self._arrays(call) for call in calls]),
                subset_size=len(calls),
                advanced_parameters=nncf.AdvancedQuantizationParameters(disable_bias_correction=True),
            )
        core = openvino.Core()
        has_bfloat16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        options = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": "bf16" if has_bfloat16 else "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._request = core.compile_model(graph, "CPU", options).create_infer_request()
        constants = [node.output(0) for node in graph.get_ops() if node.get_type_name() == "Constant"]
        kinds = [each.get_element_type() for each in constants]
        self.weight_bytes = sum(kind.size * prod(each.get_shape()) for kind, each in zip(kinds, constants, strict=True))
        eight_bits = sum(kind.get_type_name() in ("i8", "u8") for kind in kinds)
        self.told = f"{options['INFERENCE_PRECISION_HINT']}, {eight_bits} constants of 8 bits"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._request.infer(self._arrays((args, kwargs)))
        outputs = [torch.from_numpy(each.data.copy()) for each in self._request.output_tensors]
        return _pytree.tree_unflatten(outputs, self._outside)

    def _arrays(self, call: Call) -> list[Any]:
        leaves, inside = _pytree.tree_flatten(call)
        others = [None if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        arrays = [leaf.detach().numpy() for leaf in leaves if isinstance(leaf, torch.Tensor)]
        if inside != self._inside or others != self._constants or [each.shape for each in arrays] != self._shapes:
            raise BadInput("the pipeline calls a network in another way than when its graph was made", "draw as then")
        return arrays

    def _call(self, tensors: Sequence[torch.Tensor]) -> Call:
        leaves: list[Any] = [*self._constants]
        for place, tensor in zip(self._tensors, tensors, strict=True):
            leaves[place] = tensor
        return _pytree.tree_unflatten(leaves, self._inside)


class Compiled(Engine):
    """The denoiser and the VAE's decoder by torch.compile, weights channels last, with torch's own attention.

    As its authors advise: nothing of ours stands in the networks, where it would break the graph.
    """

    def change(self, workload: Workload) -> None:
        vae = anatomy.decoder(self.pipe)
        for network in (anatomy.denoiser(self.pipe), *([] if vae is None else [vae.decoder])):
            network.to(memory_format=torch.channels_last)
            network.compile()


class CompiledInt8(Compiled):
    """The same, the denoiser's Linear layers in INT8 by torchao."""

    packages: tuple[str, ...] = ("torchao",)

    def change(self, workload: Workload) -> None:
        torchao, technique = _needed("torchao.quantization"), Int8Torchao()
        denoiser = anatomy.denoiser(self.pipe)
        device = anatomy.device(denoiser)
        torchao.quantize_(
            denoiser,
            torchao.Int8DynamicActivationInt8WeightConfig(),
            lambda layer, name: type(layer) is nn.Linear and not technique.leaves(name, device),
        )
        super().change(workload)


class SDNQ(Engine):
    """The denoiser's Linear and Conv2d layers by SDNQ (GPL-3.0), in INT8, multiplied as integers where it can."""

    packages: tuple[str, ...] = ("sdnq",)

    def change(self, workload: Workload) -> None:
        quantize: Callable[..., nn.Module] = _needed("sdnq.quantizer").sdnq_post_load_quant
        network = anatomy.denoiser(self.pipe)
        quantize(
            network,
            weights_dtype="int8",
            quant_conv=True,
            use_quantized_matmul=True,
            use_quantized_matmul_conv=True,
            torch_dtype=network.dtype,
        )
        layers = [module for module in network.modules() if "SDNQ" in type(module).__name__]
        if not layers:
            raise BadInput("SDNQ has quantized no layer", "take a model with Linear or Conv2d layers of 32 and more")
        self.layers = len(layers)
        self.weight_bytes = sum(
            tensor.nbytes
            for part in anatomy.networks(self.pipe).values()
            for tensor in (*part.parameters(), *part.buffers())
        )

    def proof(self) -> dict[str, Any]:
        return {**super().proof(), "layers": self.layers}


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value
