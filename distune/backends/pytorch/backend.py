"""The PyTorch backend: static and dynamic post-training quantization of ``nn.Module`` on x86 CPUs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

from distune.backends.base import Backend, ExportedModel, Feed, LabelledBatch, ModelFacts
from distune.backends.cpu import needs_reduce_range
from distune.backends.pytorch.versions import require_torch, versions
from distune.backends.recipes.correction import CORRECTIONS, Corrections, RoundingCache
from distune.backends.recipes.precision import effective
from distune.backends.recipes.variants import LayerCollector, rewrites, variant_of
from distune.backends.sensitivity import op_sensitivity
from distune.backends.statistics import CalibrationStatistics
from distune.backends.weight_only.grouped import GroupedWeight
from distune.backends.weight_only.kept import restored
from distune.config.job import TuningJob
from distune.data.batch import Inputs
from distune.data.loader import open_dataloader
from distune.errors import TrialError, UsageError
from distune.space.op_config import TuningConfig

require_torch()  # before anything of torchao is imported by name

import torch  # noqa: E402
from torch.fx import GraphModule  # noqa: E402

from distune.backends.pytorch.blocks import find_blocks  # noqa: E402
from distune.backends.pytorch.calibration import calibrated_tensors, collect  # noqa: E402
from distune.backends.pytorch.capability import inspect  # noqa: E402
from distune.backends.pytorch.compiled import CompiledModels, require_compiler  # noqa: E402
from distune.backends.pytorch.convert import converted, with_float_weights  # noqa: E402
from distune.backends.pytorch.files import written  # noqa: E402
from distune.backends.pytorch.hessian import LOSS, hessian_scores, resolve_loss  # noqa: E402
from distune.backends.pytorch.identity import digest  # noqa: E402
from distune.backends.pytorch.lowering import execution  # noqa: E402
from distune.backends.pytorch.model import load_module, modes_kept  # noqa: E402
from distune.backends.pytorch.probes import last_nodes, op_mse  # noqa: E402
from distune.backends.pytorch.quantizer import Range, WeightScales, needed_ranges  # noqa: E402
from distune.backends.pytorch.recipes.correction import correct, restore  # noqa: E402
from distune.backends.pytorch.recipes.layers import layers  # noqa: E402
from distune.backends.pytorch.recipes.variants import (  # noqa: E402
    ModuleVariant,
    module_recipes,
    restored_variant,
    rewritten,
)
from distune.backends.pytorch.runnable import DeployedModel, GraphModel, state_bytes  # noqa: E402
from distune.backends.pytorch.submodules import exported  # noqa: E402
from distune.backends.pytorch.weight_only import (  # noqa: E402
    WEIGHT_ONLY_RECIPES,
    WeightOnlyWriter,
    calibrated_inputs,
    collect_moments,
    weight_only_capability,
    with_float_layers,
)

Variant = tuple[tuple[str, Any], ...]

_BATCHES_LOOKED_AT = 4
"""Batches of data whose shapes tell which axes are dynamic."""

_HALVES = frozenset({"bf16", "fp16"})
_BASELINE = "fp32"


class PyTorchBackend(Backend):
    """Quantizes PyTorch modules, each op by its own mode. See ``backends.base.Backend`` for the contract.

    Trials are judged on the reference graph in eager mode, which needs no compiler; what is accepted is judged again as
    Inductor compiles it.
    """

    judged_is_deployed = False
    labelled_probes = frozenset({"hessian_trace"})

    def __init__(self, job: TuningJob) -> None:
        self._job = job
        _check_device(job.device)
        require_compiler()
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.manual_seed(job.seed)
        with modes_kept(job.model.live):
            self._loaded = load_module(job.model, list(_examples(job)))
            self._exported = exported(self._loaded, job.model)
        self._model = self._exported.folded()
        asked = {
            dtype for rule in job.constraints for role in (rule.weight, rule.activation) for dtype in _dtypes(role)
        }
        self._capability = inspect(self._model, asked & _HALVES)
        self._moment_inputs: tuple[str, ...] = ()
        if job.approach == "weight_only":
            has_data = job.calibration.dataloader is not None
            self._capability = weight_only_capability(self._model, self._capability, job.recipes, has_data)
            self._moment_inputs = calibrated_inputs(self._model, self._capability)
        blocks = find_blocks(self._model, {op.name: op.group for op in self._capability.ops})
        # What is trained learns its weights and biases itself.
        self._has_recipes = job.approach != "qat"
        recipes = module_recipes(self._model, self._capability) if self._has_recipes else ()
        self._capability = replace(self._capability, blocks=blocks, recipes=(*self._capability.recipes, *recipes))
        self._weight_only = WeightOnlyWriter(self._model)
        self._recipe_ops = {recipe.name: recipe for recipe in self._capability.recipes}
        self._statistics: dict[tuple[Variant, int], CalibrationStatistics] = {}
        self._scales = WeightScales()
        self._rounding: RoundingCache = {}
        self._rewritten: dict[tuple[Variant, int], ModuleVariant] = {}
        self._calibrated_with = 0
        self._histograms = True
        self._reduce_range = needs_reduce_range()
        self._compiled = CompiledModels(self._exported.partition)

    def facts(self) -> ModelFacts:
        return ModelFacts(
            capability=self._capability,
            inputs=self._model.inputs,
            outputs=self._model.output_names,
            size_bytes=state_bytes(self._model.graph_module),
            session_options={"device": "cpu", "judged": "eager reference", "deployed": "inductor, frozen"},
            versions=versions(),
            digest=self._digest,
        )

    @cached_property
    def _digest(self) -> str:
        return digest(self._exported)

    def load(self, config: TuningConfig | None, threads: int = 1) -> GraphModel:
        return self._made(GraphModel, config, threads)

    def load_deployed(self, config: TuningConfig, threads: int = 1) -> GraphModel:
        return self._made(DeployedModel, config, threads)

    def prepare_calibration(self, sampling_size: int, histograms: bool = True) -> None:
        self._calibrated_with = sampling_size
        self._histograms = histograms

    def calibrate(self, variant: Variant, batches: Iterable[tuple[int, Feed]]) -> bytes:
        if self._moment_inputs:
            return collect_moments(self._model, self._moment_inputs, batches).to_bytes()
        model = self._rewritten_by(variant, self._calibrated_with).model
        found = layers(model) if self._has_recipes else ()
        collector = LayerCollector(found, moments=bool(dict(variant).get("adaround")))
        statistics = CalibrationStatistics(self._histograms)
        collect(model, calibrated_tensors(model, self._capability), batches, statistics, collector)
        return statistics.to_bytes()

    def variant(self, config: TuningConfig) -> Variant:
        return variant_of(config)

    def set_statistics(self, variant: Variant, sampling_size: int, blob: bytes) -> None:
        self._statistics[variant, sampling_size] = CalibrationStatistics.from_bytes(blob)

    def export(self, config: TuningConfig) -> ExportedModel:
        config = self._effective(config)
        variant = self._variant_under(config)
        return self._files(variant, config, self._ranges(config), self._weights(config), self._reduce_range)

    def apply(self, deploy: Mapping[str, Any], config: TuningConfig) -> ExportedModel:
        ranges = {name: (float(low), float(high)) for name, (low, high) in deploy.get("ranges", {}).items()}
        config = self._effective(config)
        weights = self._weights(config, restored(deploy.get("weights", {}), config.by_name))
        changes = rewrites(self.variant(config))
        variant = restored_variant(self._model, changes, deploy.get("graph", {})) if changes else self._plain
        reduce_range = bool(deploy.get("reduce_range", self._reduce_range))
        return self._files(variant, config, ranges, weights, reduce_range, deploy.get("corrected", {}))

    def probe(
        self, kind: str, config: TuningConfig, ops: Sequence[str], feeds: Sequence[Feed], args: Mapping[str, Any]
    ) -> Mapping[str, float]:
        groups = self._chosen_groups(kind, ops)
        if kind == "op_mse":
            members = {op.name: op.group for op in self._capability.ops if op.group in groups}
            config = self._effective(config)
            model = self._variant_under(config).model
            return op_mse(model, self._graph(config), last_nodes(model, members), feeds)
        if kind == "op_sensitivity":
            return op_sensitivity(self._capability, lambda each: self.load(each).predict, config, groups, feeds, args)
        return super().probe(kind, config, ops, feeds, args)

    def probe_labelled(
        self,
        kind: str,
        config: TuningConfig,
        ops: Sequence[str],
        batches: Sequence[LabelledBatch],
        args: Mapping[str, Any],
    ) -> Mapping[str, float]:
        groups = self._chosen_groups(kind, ops)
        if kind != "hessian_trace":
            return super().probe_labelled(kind, config, ops, batches, args)
        loss = resolve_loss(self._job.strategy.kwargs[LOSS])
        config = self._effective(config)
        model = self._variant_under(config).model
        return hessian_scores(model, self._capability, config, groups, batches, loss, self._job.seed)

    def close(self) -> None:
        self._statistics.clear()
        self._scales.kept.clear()
        self._rounding.clear()
        self._rewritten.clear()
        self._weight_only.clear()
        self._compiled.close()

    def _made(self, kind: type[GraphModel], config: TuningConfig | None, threads: int) -> GraphModel:
        if config is None:
            module = self._model.graph_module
            return kind(module, self._model, threads, self._compiled.handle(_BASELINE, threads, module))
        config = self._effective(config)
        variant = self._variant_under(config)
        ranges, weights = self._ranges(config), self._weights(config)
        module, remarks, _ = self._quantized(variant, config, ranges, weights, self._reduce_range)
        chosen = set(config.quantized_ops)
        weighted = [op.name for op in self._capability.ops if op.has_weight and op.name in chosen]
        return kind(
            module,
            self._model,
            threads,
            compiled=self._compiled.handle(config.hash, threads, module),
            eager=with_float_layers(with_float_weights(module)) if kind is GraphModel else None,
            executed=partial(execution, module, variant.model, weighted),
            warnings=(*remarks, *self._remarks(config)),
        )

    @property
    def _plain(self) -> ModuleVariant:
        """The graph that no recipe rewrites."""
        return ModuleVariant(self._model, self._scales, self._rounding)

    def _variant_under(self, config: TuningConfig) -> ModuleVariant:
        """The fp32 graph that ``config`` quantizes."""
        return self._rewritten_by(self.variant(config), config.sampling_size)

    def _rewritten_by(self, variant: Variant, sampling_size: int) -> ModuleVariant:
        changes = rewrites(variant)
        if not changes:
            return self._plain
        if (changes, sampling_size) not in self._rewritten:
            statistics = self._statistics_under((), sampling_size)
            self._rewritten[changes, sampling_size] = rewritten(self._model, changes, statistics)
        return self._rewritten[changes, sampling_size]

    def _graph(self, config: TuningConfig) -> GraphModule:
        variant = self._variant_under(config)
        return self._quantized(variant, config, self._ranges(config), self._weights(config), self._reduce_range)[0]

    def _quantized(
        self,
        variant: ModuleVariant,
        config: TuningConfig,
        ranges: Mapping[str, Range],
        weights: Mapping[str, GroupedWeight],
        reduce_range: bool,
        corrected: Mapping[str, str] | None = None,
    ) -> tuple[GraphModule, tuple[str, ...], Corrections]:
        """The reference graph, what the user should know of it, and how it was corrected.

        Args:
            corrected: Tensors as corrections left them (``Corrections.to_plain``), where they are not to be computed.
        """
        module = converted(variant.model, config, ranges, variant.scales, reduce_range)
        done = Corrections({}, {})
        if corrected is not None:
            restore(module, corrected)
        elif {name for name, _ in config.recipes} & set(CORRECTIONS) and ranges:
            statistics = self._statistics_of(config)
            done = correct(module, variant.model, config, statistics, variant.rounding, reduce_range)
        remarks = self._weight_only.write(module, weights, dict(config.recipes))
        return module, (*done.remarks, *remarks), done

    def _weights(
        self, config: TuningConfig, known: Mapping[str, GroupedWeight] | None = None
    ) -> dict[str, GroupedWeight]:
        """The weights of weight-only ops: ``known`` ones, and the others quantized."""
        known = known or {}
        ops = {name: op for name, op in config.ops if op.mode == "weight_only"}
        made = self._weight_only.quantized(
            {name: op for name, op in ops.items() if name not in known},
            dict(config.recipes),
            lambda node: self._statistics_of(config).moments.get(node),
            config.sampling_size,
        )
        return {name: known.get(name) or made[name] for name in ops}

    def _chosen_groups(self, kind: str, ops: Sequence[str]) -> list[str]:
        groups = dict.fromkeys(op.group for op in self._capability.ops)
        unknown = [name for name in ops if name not in groups]
        if unknown:
            raise TrialError(f"probe {kind!r}: no group is named {unknown[0]!r}")
        return [group for group in groups if not ops or group in ops]

    def _effective(self, config: TuningConfig) -> TuningConfig:
        """The config with what its recipes turn to fp32 in fp32."""
        return effective(config, self._recipe_ops, WEIGHT_ONLY_RECIPES, "PyTorch")

    def _ranges(self, config: TuningConfig) -> dict[str, Range]:
        needed = needed_ranges(self._variant_under(config).model, config)
        if not needed:
            return {}
        statistics = self._statistics_of(config)
        return {name: statistics.range(name, algorithm) for name, algorithm in needed.items()}

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

    def _remarks(self, config: TuningConfig) -> list[str]:
        needed = needed_ranges(self._variant_under(config).model, config)
        if not needed:
            return []
        remarks = self._statistics_of(config).remarks()
        return [f"tensor {name}: {remarks[name]}" for name in needed if name in remarks]

    def _files(
        self,
        variant: ModuleVariant,
        config: TuningConfig,
        ranges: Mapping[str, Range],
        weights: Mapping[str, GroupedWeight],
        reduce_range: bool,
        corrected: Mapping[str, str] | None = None,
    ) -> ExportedModel:
        module, _, done = self._quantized(variant, config, ranges, weights, reduce_range, corrected)
        constants = corrected or done.to_plain()
        return written(module, self._model, variant, config, ranges, weights, reduce_range, constants)


def _check_device(device: str) -> None:
    if device == "cpu":
        return
    if not torch.cuda.is_available():
        raise UsageError("device: gpu needs a GPU that torch can use, and torch.cuda.is_available() says there is none")
    raise UsageError("device: gpu is not supported by the integer kernels of the PyTorch backend; use device: cpu")


def _dtypes(role: Mapping[str, tuple[Any, ...]]) -> tuple[Any, ...]:
    return role.get("dtype", ())


def _examples(job: TuningJob) -> Iterator[Inputs]:
    """Inputs of first batches, with which the module is exported."""
    for dataloader in (job.calibration.dataloader, job.evaluation.dataloader):
        if dataloader is not None:
            for count, batch in enumerate(open_dataloader(dataloader, job.seed)):
                if count >= _BATCHES_LOOKED_AT:
                    break
                yield batch.inputs
