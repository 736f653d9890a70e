"""The ONNX Runtime backend: static and dynamic post-training quantization of ONNX models on the CPU."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, InvalidGraph, NotImplemented

from distune.backends.base import Backend, ExportedModel, Feed, InputInfo, ModelFacts, Outputs, RunnableModel
from distune.backends.cpu import has_amx, needs_reduce_range
from distune.backends.onnxruntime.calibration import calibrated_tensors, collect, measured_at
from distune.backends.onnxruntime.capability import inspect
from distune.backends.onnxruntime.diagnosis import diagnose
from distune.backends.onnxruntime.dynamic import write_dynamic
from distune.backends.onnxruntime.execution import Execution, executed_on_integers
from distune.backends.onnxruntime.half import offer_fp16, write_fp16
from distune.backends.onnxruntime.kernels import use_fast_kernels
from distune.backends.onnxruntime.model import open_model
from distune.backends.onnxruntime.prefix import SharedPrefix, Suffix
from distune.backends.onnxruntime.preprocess import prepare
from distune.backends.onnxruntime.probes import op_mse, op_sensitivity
from distune.backends.onnxruntime.qdq import Quantized, Range, plan, write_qdq
from distune.backends.onnxruntime.qoperator import to_qoperator
from distune.backends.onnxruntime.recipes.catalogue import graph_recipes
from distune.backends.onnxruntime.recipes.correction import CORRECTIONS, correct, restore
from distune.backends.onnxruntime.recipes.layers import layers
from distune.backends.onnxruntime.recipes.preparation import Preparation, preparation_recipes
from distune.backends.onnxruntime.recipes.propagation import add_qdq_pairs_to_weights
from distune.backends.onnxruntime.recipes.variants import TENSORS_AT_ONCE, GraphVariant, restored_variant, rewritten
from distune.backends.onnxruntime.session import SESSION_OPTIONS, create_session, optimized_graph, return_freed_memory
from distune.backends.onnxruntime.shared import LightModel, complete
from distune.backends.onnxruntime.storage import digest, external_files, stored_files, stored_size
from distune.backends.onnxruntime.weight_only import (
    WEIGHT_ONLY_RECIPES,
    WeightOnlyWriter,
    calibrated_inputs,
    collect_moments,
    weight_only_capability,
)
from distune.backends.recipes.precision import effective
from distune.backends.recipes.variants import LayerCollector, rewrites, variant_of
from distune.backends.statistics import CalibrationStatistics
from distune.backends.weight_only.grouped import GroupedWeight
from distune.backends.weight_only.kept import restored, saved
from distune.config.job import TuningJob
from distune.errors import TrialError, UsageError
from distune.space.op_config import TuningConfig

Variant = tuple[tuple[str, Any], ...]

_IR_WITH_DEFAULTS = 4
"""ONNX's IR version since which an input with a value in the model may be fed another one; before, all constants were
inputs."""


class OnnxRuntimeModel(RunnableModel):
    """A model in an ONNX Runtime session.

    Args:
        proto: The model.
        threads: Intra-op threads.
        quantized: Names of the weighted ops that the config quantizes.
        warnings: For the user.
        suffix: Runs batches that other models have seen from where the models differ.
    """

    def __init__(
        self,
        proto: onnx.ModelProto,
        threads: int,
        quantized: Sequence[str] = (),
        warnings: Sequence[str] = (),
        suffix: Suffix | None = None,
    ) -> None:
        self._suffix = suffix
        self._light = LightModel(proto)
        self._quantized = tuple(quantized)
        self._warnings = tuple(warnings)
        try:
            self._session = create_session(self._light.proto, threads)
        except (Fail, InvalidArgument, InvalidGraph, NotImplemented) as error:
            raise TrialError(f"ONNX Runtime cannot load the quantized model: {error}") from error
        self._is_settled = not self._light.folder

    def __del__(self) -> None:
        if getattr(self, "_session", None) is not None and self._light.folder and not sys.is_finalizing():
            del self._session  # with the weights that it has repacked
            return_freed_memory()

    def predict(self, feed: Feed) -> Outputs:
        self._settle()
        outputs: Outputs = self._session.run(None, dict(feed))
        return outputs

    def predict_batch(self, key: Hashable, feed: Feed) -> Outputs:
        return self.predict(feed) if self._suffix is None else self._suffix.predict(key, feed, self.predict)

    def prepare(self, batches: Iterable[tuple[Hashable, Feed]]) -> None:
        if self._suffix is not None:
            self._suffix.fill(batches)

    def timed(self, feed: Feed) -> Callable[[], object]:
        self._settle()
        binding = self._session.io_binding()
        arrays = {name: np.ascontiguousarray(value) for name, value in feed.items()}
        for name, value in arrays.items():
            binding.bind_cpu_input(name, value)
        for output in self._session.get_outputs():
            binding.bind_output(output.name)
        run = self._session.run_with_iobinding

        def run_once(_alive: object = arrays) -> None:  # the binding points into the arrays
            run(binding)

        return run_once

    def _settle(self) -> None:
        """Before the first run: the graphs that a large model was made of are gone by now."""
        if not self._is_settled:
            self._is_settled = True
            return_freed_memory()

    @property
    def native(self) -> onnx.ModelProto:
        return complete(self._light.proto)

    @cached_property
    def size_bytes(self) -> int:
        return stored_size(self._light.proto)

    @property
    def ops_executed_int8(self) -> int:
        return len(self._execution.integer)

    @property
    def reasons(self) -> Mapping[str, str]:
        return self._execution.reasons

    @property
    def warnings(self) -> tuple[str, ...]:
        return self._warnings if self._suffix is None else (*self._warnings, *self._suffix.warnings)

    @cached_property
    def _execution(self) -> Execution:
        if not self._quantized:
            return Execution((), {})
        return executed_on_integers(optimized_graph(self._light.proto), self._quantized)


class OnnxRuntimeBackend(Backend):
    """Quantizes ONNX models, each op by its own mode. See ``backends.base.Backend`` for the contract."""

    standalone = "distune.backends.onnxruntime.standalone:run"

    def __init__(self, job: TuningJob) -> None:
        if job.device != "cpu":
            raise UsageError(f"device: {job.device}: ONNX models are quantized for and run on the CPU; set device: cpu")
        self._user = open_model(job.model)
        self._user_model = self._user.proto
        self._path = Path(job.model.path)
        self._external = external_files(self._path) if job.model.live is None else ()
        self._preparation = Preparation.of(job.recipes)
        self._model = prepare(self._user_model, self._preparation)
        self._capability = inspect(self._model)
        self._moment_inputs: tuple[str, ...] = ()
        if job.approach == "weight_only":
            has_data = job.calibration.dataloader is not None
            self._capability = weight_only_capability(self._model, self._capability, job.recipes, has_data)
            self._moment_inputs = calibrated_inputs(self._model, self._capability)
        recipes = (
            *self._capability.recipes,
            *preparation_recipes(self._user_model),
            *graph_recipes(self._model, self._capability),
        )
        self._capability = replace(self._capability, recipes=recipes)
        if any("fp16" in role.get("dtype", ()) for rule in job.constraints for role in (rule.weight, rule.activation)):
            self._capability = offer_fp16(self._model, self._capability)
        self._weight_only = WeightOnlyWriter(self._model)
        self._recipe_ops = {recipe.name: recipe for recipe in self._capability.recipes}
        self._statistics: dict[tuple[Variant, int], CalibrationStatistics] = {}
        self._graphs: dict[tuple[Variant, int], GraphVariant] = {((), 0): GraphVariant(self._model)}
        self._calibrated_with = 0
        self._histograms = True
        self._reduce_range = needs_reduce_range()
        self._amx = has_amx()
        self._base: tuple[TuningConfig, int, int] | None = None
        self._shared: SharedPrefix | None = None
        self._as_qoperator = job.model.quant_format == "QOperator"
        return_freed_memory()

    def facts(self) -> ModelFacts:
        inputs = {value.name: value for value in self._model.proto.graph.input}
        return ModelFacts(
            capability=self._capability,
            inputs=tuple(_input_info(inputs[name]) for name in self._model.index.inputs),
            outputs=self._model.index.outputs,
            size_bytes=stored_size(self._user_model),
            session_options=SESSION_OPTIONS,
            versions={name: version(name) for name in ("onnx", "onnxruntime", "numpy")},
            warnings=_remarks_on_inputs(self._user_model),
            digest=self._digest,
        )

    @cached_property
    def _digest(self) -> str:
        return digest((self._path, *self._external)) if self._external else ""

    def load(self, config: TuningConfig | None, threads: int = 1) -> OnnxRuntimeModel:
        if config is None:
            return OnnxRuntimeModel(self._user_model, threads)
        config = self._effective(config)
        graph = self._graph(config)
        ranges = self._ranges(graph, config)
        quantized = self._write(graph, config, ranges)
        self._finish(quantized.proto, graph, self._amx)
        chosen = set(config.quantized_ops)
        weighted = [op.name for op in self._capability.ops if op.has_weight and op.name in chosen]
        warnings = (*quantized.warnings, *self._remarks(graph, ranges, config))
        return OnnxRuntimeModel(
            quantized.proto, threads, weighted, warnings, self._suffix(config, quantized.proto, threads)
        )

    def share(self, base: TuningConfig | None, samples: int = 0, memory_limit: int = 0) -> None:
        if self._shared is not None:
            self._shared.clear()  # a model of the stage may live on
        self._shared = None
        self._base = None if base is None else (self._effective(base), samples, memory_limit)

    def _suffix(self, config: TuningConfig, proto: onnx.ModelProto, threads: int) -> Suffix | None:
        """Of a config that differs from the base that was told of in nothing but ops."""
        if self._base is None or self._as_qoperator:
            return None
        base, samples, memory_limit = self._base
        alike = (base.recipes, base.sampling_size) == (config.recipes, config.sampling_size)
        if not alike or base.hash == config.hash or (self._shared is not None and self._shared.threads != threads):
            return None
        if self._shared is None:
            shared = self._proto(base)
            self._finish(shared, self._graph(base), self._amx)
            self._shared = SharedPrefix(shared, threads, samples, memory_limit)
        return Suffix(self._shared, proto) if self._shared.cuts or self._shared.problem else None

    def prepare_calibration(self, sampling_size: int, histograms: bool = True) -> None:
        self._calibrated_with = sampling_size
        self._histograms = histograms

    def calibrate(self, variant: Variant, batches: Iterable[tuple[int, Feed]]) -> bytes:
        if self._moment_inputs:
            return collect_moments(self._model, self._moment_inputs, batches).to_bytes()
        recipes = dict(variant)
        model = self._graph_of(variant, self._calibrated_with).model
        collector = LayerCollector(layers(model), moments=bool(recipes.get("adaround")))
        at_once = TENSORS_AT_ONCE if recipes.get("layer_wise_quant") else None
        statistics = CalibrationStatistics(self._histograms)
        collect(model, calibrated_tensors(model, self._capability), batches, statistics, collector, at_once)
        return statistics.to_bytes()

    def variant(self, config: TuningConfig) -> Variant:
        return variant_of(config)

    def set_statistics(self, variant: Variant, sampling_size: int, blob: bytes) -> None:
        self._statistics[variant, sampling_size] = CalibrationStatistics.from_bytes(blob)

    def export(self, config: TuningConfig) -> ExportedModel:
        config = self._effective(config)
        graph = self._graph(config)
        return self._exported(graph, config, self._ranges(graph, config), self._reduce_range, self._amx)

    def apply(self, deploy: Mapping[str, Any], config: TuningConfig) -> ExportedModel:
        if Preparation.of(config.recipes) != self._preparation:
            raise TrialError("the config was made with other recipes of preparation than this backend")
        ranges = {name: (float(low), float(high)) for name, (low, high) in deploy.get("ranges", {}).items()}
        weights = restored(deploy.get("weights", {}), config.by_name)
        reduce_range = bool(deploy.get("reduce_range", self._reduce_range))
        config = self._effective(config)
        graph = restored_variant(self._model, rewrites(self.variant(config)), deploy.get("graph", {}))
        amx = bool(deploy.get("amx", False))  # records of before there was a difference are of models without
        return self._exported(graph, config, ranges, reduce_range, amx, weights, deploy.get("corrected", {}))

    def probe(
        self, kind: str, config: TuningConfig, ops: Sequence[str], feeds: Sequence[Feed], args: Mapping[str, Any]
    ) -> Mapping[str, float]:
        groups = {op.group for op in self._capability.ops}
        unknown = sorted(set(ops) - groups)
        if unknown:
            raise TrialError(f"probe {kind!r}: no group is named {unknown[0]!r}")
        chosen = list(dict.fromkeys(op.group for op in self._capability.ops if not ops or op.group in set(ops)))
        config = self._effective(config)
        model = self._graph(config).model
        if kind == "op_mse":
            return op_mse(model, self._capability, self._proto(config), chosen, feeds)
        if kind == "op_sensitivity":
            return op_sensitivity(self._capability, self._proto, config, model.proto, chosen, feeds, args)
        return super().probe(kind, config, ops, feeds, args)

    def diagnose(
        self, config: TuningConfig, ops: Sequence[str], feeds: Sequence[Feed], tensors: str
    ) -> Mapping[str, Mapping[str, Any]]:
        config = self._effective(config)
        known = {op.name: op for op in self._capability.ops}
        unknown = [name for name in ops if name not in known]
        if unknown:
            raise TrialError(f"no op is named {unknown[0]!r}")
        last = {op.group: op.name for op in self._capability.ops}
        chosen = {name: last[known[name].group] for name in ops}
        return diagnose(self._graph(config).model, self._proto(config), chosen, feeds, tensors)

    def close(self) -> None:
        self.share(None)
        self._statistics.clear()
        self._graphs.clear()
        self._weight_only.clear()

    def _effective(self, config: TuningConfig) -> TuningConfig:
        """The config with what its recipes turn to fp32 in fp32."""
        return effective(config, self._recipe_ops, WEIGHT_ONLY_RECIPES, "ONNX Runtime")

    def _proto(self, config: TuningConfig) -> onnx.ModelProto:
        graph = self._graph(config)
        return self._write(graph, config, self._ranges(graph, config)).proto

    def _graph(self, config: TuningConfig) -> GraphVariant:
        """The fp32 graph that ``config`` quantizes."""
        return self._graph_of(self.variant(config), config.sampling_size)

    def _graph_of(self, variant: Variant, sampling_size: int) -> GraphVariant:
        changes = rewrites(variant)
        if not changes:
            return self._graphs[(), 0]
        if (changes, sampling_size) not in self._graphs:
            statistics = self._statistics_under((), sampling_size)
            self._graphs[changes, sampling_size] = rewritten(self._model, changes, statistics)
        return self._graphs[changes, sampling_size]

    def _write(
        self,
        graph: GraphVariant,
        config: TuningConfig,
        ranges: Mapping[str, Range],
        reduce_range: bool | None = None,
        weights: Mapping[str, GroupedWeight] | None = None,
        corrected: Mapping[str, str] | None = None,
    ) -> Quantized:
        """The quantized model: static ops first, then the others in what that left of the fp32 graph.

        Args:
            weights: Of weight-only ops, where they are not to be made from calibration data again.
            corrected: Constants as corrections left them (``Quantized.corrected``), likewise.
        """
        reduce_range = self._reduce_range if reduce_range is None else reduce_range
        recipes = dict(config.recipes)
        planned = plan(graph.model, config)
        quantized = write_qdq(graph.model, planned, ranges, graph.cache, reduce_range)
        if corrected is not None:
            restore(quantized.proto, corrected)
        elif set(recipes) & set(CORRECTIONS) and planned.nodes:
            statistics = self._statistics_of(config)
            done = correct(quantized.proto, graph.model, recipes, statistics, graph.rounding, reduce_range)
            quantized = replace(quantized, warnings=(*quantized.warnings, *done.remarks), corrected=done.to_plain)
        if recipes.get("add_qdq_pair_to_weight"):
            add_qdq_pairs_to_weights(quantized.proto, graph.model, planned.weights)
        dynamic = {name: op for name, op in config.ops if op.mode == "dynamic"}
        write_dynamic(quantized.proto, dynamic, reduce_range)
        write_fp16(quantized.proto, {name for name, op in config.ops if op.mode == "fp16"})
        remarks = self._weight_only.write(quantized.proto, self._weights(config, weights or {}), dict(config.recipes))
        if config.quantized_ops:
            # What is known of shapes only makes ONNX Runtime fuse Add and LayerNormalization to SkipLayerNormalization,
            # which takes twice their time on the CPU (MiniLM as a whole: 8%). It infers shapes that it needs itself.
            del quantized.proto.graph.value_info[:]
        return replace(quantized, warnings=(*quantized.warnings, *remarks))

    def _finish(self, proto: onnx.ModelProto, graph: GraphVariant, amx: bool) -> None:
        """Give a quantized model the form in which it runs and is stored, in place; it computes the same.

        Args:
            graph: What it was made of.
            amx: The processor that it is for has AMX.
        """
        use_fast_kernels(proto, graph.model.proto, amx)
        if self._as_qoperator:
            to_qoperator(proto)

    def _weights(self, config: TuningConfig, known: Mapping[str, GroupedWeight]) -> dict[str, GroupedWeight]:
        """The weights of weight-only ops: ``known`` ones, and the others quantized."""
        ops = {name: op for name, op in config.ops if op.mode == "weight_only"}
        made = self._weight_only.quantized(
            {name: op for name, op in ops.items() if name not in known},
            dict(config.recipes),
            lambda tensor: self._statistics_of(config).moments.get(tensor),
            config.sampling_size,
        )
        return {name: known.get(name) or made[name] for name in ops}

    def _ranges(self, graph: GraphVariant, config: TuningConfig) -> dict[str, Range]:
        planned = plan(graph.model, config)
        if not planned.activations:
            return {}
        statistics = self._statistics_of(config)
        found = {}
        for name in planned.activations:
            source = planned.shared.get(name, name)
            measured = measured_at(graph.model.index, source)
            found[name] = statistics.range(measured, planned.activations[source].algorithm)
        return found

    def _statistics_of(self, config: TuningConfig) -> CalibrationStatistics:
        return self._statistics_under(self.variant(config), config.sampling_size)

    def _statistics_under(self, variant: Variant, sampling_size: int) -> CalibrationStatistics:
        key = (variant, sampling_size)
        if key not in self._statistics:
            recipes = ", ".join(f"{name}={value}" for name, value in variant)
            raise TrialError(
                f"no calibration statistics for sampling size {sampling_size}"
                f"{f' and {recipes}' if recipes else ''}; there are some for: "
                f"{', '.join(str(size) for _, size in self._statistics) or 'none'}"
            )
        return self._statistics[key]

    def _remarks(self, graph: GraphVariant, ranges: Mapping[str, Range], config: TuningConfig) -> list[str]:
        if not ranges:
            return []
        remarks = self._statistics_of(config).remarks()
        measured = {name: measured_at(graph.model.index, name) for name in ranges}
        return [f"tensor {name}: {remarks[source]}" for name, source in measured.items() if source in remarks]

    def _exported(
        self,
        graph: GraphVariant,
        config: TuningConfig,
        ranges: Mapping[str, Range],
        reduce_range: bool,
        amx: bool,
        weights: Mapping[str, GroupedWeight] | None = None,
        corrected: Mapping[str, str] | None = None,
    ) -> ExportedModel:
        weights = self._weights(config, weights or {})
        quantized = self._write(graph, config, ranges, reduce_range, weights, corrected)
        proto = quantized.proto
        self._finish(proto, graph, amx)
        deploy: dict[str, Any] = {}
        if any(op.is_quantized for _, op in config.ops):
            kept = plan(graph.model, config).activations
            deploy = {
                "ranges": {name: list(ranges[name]) for name in kept},
                "reduce_range": reduce_range,
                "amx": amx,
            }
        if graph.saved:
            deploy["graph"] = dict(graph.saved)
        if constants := dict(corrected or quantized.corrected()):
            deploy["corrected"] = constants
        if texts := saved(weights, config.by_name):
            deploy["weights"] = texts
        return ExportedModel(stored_files(proto, external=bool(self._external)), deploy)


def _remarks_on_inputs(user: onnx.ModelProto) -> tuple[str, ...]:
    constants = {tensor.name for tensor in user.graph.initializer}
    names = [value.name for value in user.graph.input if value.name in constants]
    if not names or user.ir_version < _IR_WITH_DEFAULTS:
        return ()
    return (
        f"input {names[0]} ({len(names)} in all) has a value in the model: quantized models have that as a constant "
        "and do not take another one",
    )


def _input_info(value: onnx.ValueInfoProto) -> InputInfo:
    tensor = value.type.tensor_type
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or None) for dim in tensor.shape.dim)
    return InputInfo(value.name, str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)), shape)
